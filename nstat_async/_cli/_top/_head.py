"""The first lines of `top`, its chart, and what it says when there is nothing to show."""

from __future__ import annotations

import attrs

from ..._coverage import Coverage
from ..._escape import escape
from ..._events import silent_hosts
from ..._model import Capabilities
from .._cells import media_text, rate_text
from .._limits import limits_text, refusal_texts, silence_text, unseen
from .._table import fit
from ._graph import chart_lines
from ._model import TopModel

SMALL = 12
"""Screens with fewer lines have a head of one line, and no list of keys."""
CHART = 5
"""Lines of the chart."""
_LABEL = 11
"""Columns of the chart's labels."""
_SCALE = 17
"""Columns of the scale of a chart in a line."""


@attrs.define
class State:
    """Facts about the whole screen."""

    source: str
    """Name of the backend."""
    capabilities: Capabilities | None = None
    """What the monitor can tell; `None` until it is open."""
    coverage: Coverage | None = None
    """How much of the interfaces' traffic the flows explain; `None` while that is not known."""
    ended: bool = False
    paused: bool = False
    filtered: bool = False
    """True: the command line has a filter."""


def state_text(state: State, model: TopModel) -> str:
    """Where the numbers come from, how much the monitor may see, and what was lost."""
    able, silence = state.capabilities, silence_text(model.hosts)
    parts = [
        "END" if state.ended else "",
        "PAUSED" if state.paused else "",
        f"! {model.gaps} gap{'' if model.gaps == 1 else 's'}" if model.gaps else "",
        f"! {silence}" if silence else "",
        *(f"! {fit(text, 50).rstrip()}" for text in refusal_texts(model.refused)),
        f"filter {model.wanted!a}" if model.wanted else "",
        state.source,
        f"by {model.view.group_by.name}",
        *([] if able is None else unseen(able)),
        _ebpf(able),
        _explained(state.coverage),
        "" if able is None or able.kernel is None else fit(escape(able.kernel), 30).rstrip(),
    ]
    return "  ".join(filter(None, parts))


def _explained(coverage: Coverage | None) -> str:
    """Payload against wire bytes."""
    shares = (None, None) if coverage is None else (coverage.rx_share, coverage.tx_share)
    texts = ["?" if share is None else f"{share:.0%}" for share in shares]
    return "" if shares == (None, None) else f"payload of flows: rx {texts[0]}, tx {texts[1]} of the wire"


def _ebpf(able: Capabilities | None) -> str:
    if able is None or able.ebpf is None:
        return ""
    return f"eBPF {able.ebpf}" + (
        "" if able.ebpf_reason is None else f" ({fit(escape(able.ebpf_reason), 40).rstrip()})"
    )


def alarm_text(model: TopModel) -> str:
    """What a head of one line has room for of what is wrong."""
    silent = len(silent_hosts(model.hosts))
    return "  ".join(filter(None, [f"! {model.gaps}" if model.gaps else "", f"! {silent} silent" if silent else ""]))


def totals_text(model: TopModel, width: int, *, alarm: str = "") -> str:
    """The sum of what is shown."""
    total = model.total
    what = "row" if not model.view.is_of_processes else "process"
    rows = f"{model.shown} {what}{'' if model.shown == 1 else 'es' if what == 'process' else 's'}"
    parts = [
        alarm,
        rows if width >= 60 else "",
        f"{total.open_flows} flow{'' if total.open_flows == 1 else 's'}",
        f"rx {rate_text(total.rx_rate if total.flows else 0)}",
        f"tx {rate_text(total.tx_rate if total.flows else 0)}",
        media_text(total.media) if width >= 120 else "",
    ]
    return "  ".join(filter(None, parts))


def small_chart(model: TopModel, room: int, *, ascii_only: bool) -> str:
    """The chart of the total in `room` columns of a line, with its scale; empty if the room is too small."""
    rates = [rx + tx for rx, tx in model.history][-max(1, room - _SCALE) :]
    top = _nice(max(rates, default=0.0))
    if room < _SCALE + 8 or not any(rates):
        return ""
    (line,) = chart_lines(rates, room - _SCALE, 1, top, ascii_only=ascii_only)
    return f"  0 to {rate_text(top)} ".ljust(_SCALE) + line


def chart(model: TopModel, width: int, *, ascii_only: bool) -> list[tuple[str, str]]:
    """Lines of the chart of the total, each a label and blocks; the scale is linear."""
    room = max(1, width - _LABEL)
    rates = [rx + tx for rx, tx in model.history]
    top = _nice(max(rates[-room:], default=0.0))
    lines = chart_lines(rates, room, CHART, top, ascii_only=ascii_only)
    labels = [rate_text(top), *[""] * (CHART - 2), rate_text(0)]
    return [(label.rjust(_LABEL - 1) + " ", line) for label, line in zip(labels, lines, strict=True)]


def _nice(rate: float) -> float:
    """A round number that is not below the rate, so that the scale does not change with each look."""
    step = 1000.0
    while True:
        for factor in (1, 2, 5):
            if rate <= factor * step:
                return factor * step
        step *= 10


def empty_text(state: State, model: TopModel) -> list[str]:
    """Why there is no row."""
    if model.wanted and model.hidden:
        rows = "1 row is" if model.hidden == 1 else f"{model.hidden} rows are"
        return [f"Nothing here has {model.wanted!a} in its name.", f"{rows} hidden: escape shows them again."]
    if state.capabilities is None:
        return [f"Opening {state.source} …"]
    if not model.polls:
        return ["Waiting for the first answer of the kernel …" if not state.ended else "It ended without an answer."]
    lines = ["No flow passes the filter of the command line." if state.filtered else "There are no flows."]
    limits = limits_text(state.capabilities)
    if limits is not None:
        lines.append(f"It {escape(limits)}")
    return lines
