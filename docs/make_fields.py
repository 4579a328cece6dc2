"""Writes ``docs/fields.md`` from the table of fields: ``python docs/make_fields.py``.

Explanations are the docstrings beneath the fields of the classes; everything else is the table's.
"""

from __future__ import annotations

from pathlib import Path

from nstat_async._fields import TABLE, Field, FieldTable, Record
from nstat_async._public import explanations

PAGE = Path(__file__).with_name("fields.md")
_HEAD = """\
# Fields

Every public field of values, events and rows: its key in JSON, its type and unit, where it is known, where else it
appears, what it means. This page is made from the table of fields (`nstat_async/_fields.py`) by `python docs/make_fields.py`.

Keys marked *later* are left out of a line where they are unknown; all others are always there, `null` when unknown.
Keys marked *full* are in the lines of `json.dumps` and of `watch --details`, not in others.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


def _row(field: Field, text: str) -> str:
    kind = field.kind.name if field.kind.record is None else f"[{field.kind.name}](#{field.kind.name.lower()})"
    also = []
    if field.sql is not None:
        also.append(
            f"SQL `{field.sql.value}.{field.name}`" + (f" since schema {field.since}" if field.since > 1 else "")
        )
    if field.heading:
        also.append(f"`processes`: {field.heading}")
    if field.group:
        also.append(f"groups: *{field.group}*")
    marks = [mark for mark, is_set in (("later", field.later), ("full", field.full)) if is_set]
    key = f"`{field.key}`" + (f" *{', '.join(marks)}*" if marks else "")
    cells = (
        f"`{field.name}`", key, f"{kind}, {field.unit}" if field.unit else kind, field.platform, "; ".join(also), text,
    )  # fmt: skip
    return f"| {' | '.join(map(_cell, cells))} |"


def _section(record: Record) -> str:
    texts = explanations(record.cls)
    title = record.cls.__name__
    head = f"## {title}\n\n" + (f'`"event":"{record.event}"`\n\n' if record.event else "")
    head += "| field | JSON | type | where | also | means |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(_row(field, texts.get(field.name, "")) for field in record.fields) + "\n"


def page(table: FieldTable = TABLE) -> str:
    """The whole page."""
    records = sorted(table.records, key=lambda record: record.event is None)
    return "\n".join([_HEAD, *map(_section, records)])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
