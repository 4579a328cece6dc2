"""How findings are shown."""

from __future__ import annotations

import json

from support import run

from nstat_async._cli._doctor import render_json, render_text
from nstat_async._doctor import DoctorReport, Finding, Status

GOOD = DoctorReport(
    (
        Finding("platform", Status.INFO, "Linux 6.1", {"system": "Linux"}),
        Finding("sock_diag", Status.OK, "open\n3 of 3 flows found", {"flows": 3}),
        Finding("kctl", Status.FAIL, "evil\x1b[31m"),
    ),
    works=True,
)


def test_text_has_a_line_a_finding_and_indented_details():
    assert render_text(GOOD) == [
        "info  platform   Linux 6.1",
        "ok    sock_diag  open",
        "                 3 of 3 flows found",
        "fail  kctl       evil\\x1b[31m",
    ]


def test_a_detail_is_wrapped_between_words_on_a_terminal_that_has_room_for_it():
    report = DoctorReport(
        (Finding("kctl", Status.INFO, "the kernel's self-control is kept on macOS only"),), works=True
    )
    assert render_text(report, columns=32) == [
        "info  kctl  the kernel's",
        "            self-control is kept",
        "            on macOS only",
    ]
    assert len(render_text(report, columns=31)) == 1, "too little is left for whole words"


def test_colour_marks_the_status_only():
    lines = render_text(GOOD, colour=True)
    assert lines[1].startswith("\x1b[32mok  \x1b[0m  sock_diag")


def test_json_is_one_object_with_every_fact():
    shown = json.loads(render_json(GOOD))
    assert list(shown) == ["v", "works", "findings"]
    assert shown["findings"][1] == {
        "name": "sock_diag",
        "status": "ok",
        "detail": "open\n3 of 3 flows found",
        "data": {"flows": 3},
    }
    assert shown["findings"][2]["data"] == {}


def test_a_machine_where_nothing_works_says_so():
    report = DoctorReport((Finding("backend", Status.FAIL, "none"),), works=False)
    assert render_text(report)[-1].startswith("nothing works")
    assert json.loads(render_json(report))["works"] is False


def test_doctor_examines_a_chosen_kernel():
    """Status 0 for one that works, 1 for one that is not there; the findings are JSON."""
    status, out, err = run("doctor", "--json", "--backend", "emulated")
    assert (status, err) == (0, "")
    assert json.loads(out)["works"] is True
    status, out, _ = run("doctor", "--backend", "unix:/nonexistent/socket", "--kernel", "xnu-11417")
    assert status == 1
    assert "nonexistent" in out
    status, _, err = run("doctor", "--kernel", "xnu-11417")
    assert status == 2
    assert "argument --kernel: backend auto asks this machine" in err
