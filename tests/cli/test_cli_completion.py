"""Completion scripts are made from the parser and understood by the shells."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from support import run

from nstat_async._cli import main
from nstat_async._cli._arguments import COMMANDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_option_is_offered(shell):
    status, out, err = run("--print-completion", shell)
    assert (status, err) == (0, "")
    for command in COMMANDS:
        assert command in out
    for option in ("no-loopback", "duration", "print-completion"):
        assert option in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_has_the_shells_grammar(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "completion"
    path.write_text(run("--print-completion", shell)[1])
    done = subprocess.run([shell, "-n", path], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["nstat-async", "wa"], ["watch"]),
        (["nstat-async", "watch", "--backend", "k"], ["kctl"]),
        (["nstat-async", "watch", "--no"], ["--no-loopback"]),
        (["nstat-async", "watch", "--provider", "qu"], ["quic"]),
        (["nstat-async", "--print-completion", "z"], ["zsh"]),
        (["nstat-async", "top", "--sort", "tr"], ["traffic"]),
    ],
)
def test_bash_completes(words, offered, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    path = tmp_path / "completion"
    path.write_text(run("--print-completion", "bash")[1])
    script = (
        f"source {path}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_shtab_nstat_async; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == offered


def test_without_shtab_only_the_completion_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert "pip install 'nstat-async[cli]'" in capsys.readouterr().err
    assert main(["watch", "--help"]) == 0
