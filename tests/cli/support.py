"""Runs the command line in this process."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from nstat_async._cli import main


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a command."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.buffer.getvalue().decode(), err.getvalue()


def run_json(*arguments: str) -> list[dict[str, Any]]:
    """The objects that a command prints; it must succeed and say nothing else."""
    status, out, err = run(*arguments)
    assert (status, err) == (0, ""), err
    return [json.loads(line) for line in out.splitlines()]


PYTHON = sys.executable
