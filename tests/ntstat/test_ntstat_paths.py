from __future__ import annotations

import pytest

from nstat_async.ntstat import Kernel
from nstat_async.ntstat._translate import Translator

KERNEL = Kernel.parse("xnu-11417.121.6")


def owner(paths, pid=7, name=b"curl\0"):
    return Translator(KERNEL, path_of=paths.get).process({"pid": pid, "upid": 70 + pid, "pname": name})


def test_a_process_is_told_with_the_path_of_its_executable():
    assert owner({7: "/usr/bin/curl"}).path == "/usr/bin/curl"


def test_a_name_that_the_kernel_cut_still_finds_its_path():
    assert owner({7: "/Applications/X/com.example.longservice"}, name=b"com.example.long").path is not None


@pytest.mark.parametrize("paths", [{}, {7: "/usr/sbin/sshd"}], ids=["gone", "given away"])
def test_a_pid_that_is_gone_or_was_given_away_has_no_path(paths):
    assert owner(paths).path is None


def test_without_a_resolver_no_path_is_known():
    assert Translator(KERNEL).process({"pid": 7, "upid": 77, "pname": b"curl"}).path is None
