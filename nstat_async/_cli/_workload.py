"""What happens on an emulated kernel: at random, or by a script.

A script is JSON Lines, one step a line, in the order of time::

    {"at": 0,   "do": "open",     "flow": "a", "kind": "tcp", "pid": 501, "name": "curl", "remote": "198.51.100.7:443"}
    {"at": 0.5, "do": "transfer", "flow": "a", "rx": 10000, "tx": 500}
    {"at": 2,   "do": "close",    "flow": "a"}
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from .._errors import NstatError, UsageError
from ..testing import EmulatedFlow, EmulatedKernel

_MAX_STEPS = 1_000_000
_KINDS = ("tcp", "udp", "quic", "connection")


@attrs.frozen
class Step:
    """One line of a script."""

    at: float
    """Seconds since the start."""
    do: str
    flow: str
    line: int
    values: Mapping[str, Any]


@attrs.define(eq=False)
class Script:
    """Steps that a kernel's timers carry out on it."""

    kernel: EmulatedKernel
    steps: tuple[Step, ...]
    complain: Callable[[str], None]
    """Is called with a line about a step that cannot be done; the steps after it are still done."""
    _flows: dict[str, EmulatedFlow] = attrs.field(factory=dict, init=False)

    def start(self) -> None:
        """Set the timers."""
        for step in self.steps:
            self.kernel.call_later(step.at, functools.partial(self._carry_out, step))

    def _carry_out(self, step: Step) -> None:
        try:
            self._do(step)
        except NstatError as error:
            self.complain(f"script line {step.line}: {error}")
        except KeyError as error:
            self.complain(f"script line {step.line}: {error} is missing")
        except (TypeError, ValueError) as error:  # a value of a wrong kind
            self.complain(f"script line {step.line}: {step.do}: {error}")

    def _do(self, step: Step) -> None:
        values = dict(step.values)
        if step.do == "open":
            if step.flow in self._flows:
                raise UsageError(f"flow {step.flow!r} is open already")
            opener = getattr(self.kernel, "open_" + values.pop("kind", "tcp"))  # one of _KINDS
            self._flows[step.flow] = opener(**values)
            return
        if step.flow not in self._flows:
            raise UsageError(f"flow {step.flow!r} is not open")
        flow = self._flows[step.flow]
        if step.do == "transfer":
            flow.transfer(values.get("rx", 0), values.get("tx", 0))
        elif step.do == "connect":
            flow.connect(values["remote"], established=bool(values.get("established", True)))
        elif step.do == "listen":
            flow.listen(values["local"])
        elif step.do == "state":
            flow.set_state(values["state"])
        elif step.do == "set":
            flow.set(values)
        else:
            flow.close()
            del self._flows[step.flow]


_STEPS = ("open", "transfer", "connect", "listen", "state", "set", "close")


def read_script(path: str) -> tuple[Step, ...]:
    """The steps of a file, ``-`` for standard input, in the order of their time."""
    text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8", "replace")
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > _MAX_STEPS:
        raise NstatError(f"{path}: more than {_MAX_STEPS} steps")
    steps = [_step(path, number, line) for number, line in lines]
    return tuple(sorted(steps, key=lambda step: step.at))


def _step(path: str, number: int, line: str) -> Step:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NstatError(f"{where}: no JSON ({error})") from error
    if not isinstance(values, dict):
        raise NstatError(f"{where}: a step is a JSON object")
    at, do, flow = values.pop("at", 0), values.pop("do", None), values.pop("flow", None)
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not 0 <= at < 1e9:
        raise NstatError(f"{where}: at {at!r} is not a number of seconds")
    if do not in _STEPS:
        raise NstatError(f"{where}: do {do!r} is not one of {', '.join(_STEPS)}")
    if not isinstance(flow, str):
        raise NstatError(f"{where}: flow {flow!r} is not a name")
    if do == "open" and values.get("kind", "tcp") not in _KINDS:
        raise NstatError(f"{where}: kind {values['kind']!r} is not one of {', '.join(_KINDS)}")
    return Step(float(at), do, flow, number, values)
