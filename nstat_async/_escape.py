"""Text that others chose, made safe to print.

Processes and domains choose their own names. Printed as they are, these could move the
cursor, forge a line, change the reading direction or be invisible. So every character that
is not plainly printable becomes an escape sequence.
"""

from __future__ import annotations

import json.encoder
import re
from typing import Any

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Invisible letters and marks, and variation selectors, to which terminals give different widths."""
_LONE = re.compile("[\ud800-\udfff]")
"""In a text of Python a surrogate is always a lone one: a byte of a name that is no UTF-8."""
_LONE_IN_JSON = re.compile(r"\\(?:ud[89ab]..\\ud[c-f]..|(ud[89a-f]..)|.)")
"""What is escaped in JSON, pairs of surrogates as a whole; the group is a lone one."""
_encoder = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def escape(text: str) -> str:
    r"""`text` without control characters, line breaks, direction marks, invisible letters or lone surrogates.

    They become ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``; a backslash is doubled, so that a name
    that merely looks like an escape sequence can be told apart.
    """
    if text.isprintable() and "\\" not in text and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join(map(_escape_one, text))


def _escape_one(char: str) -> str:
    if char == "\\":
        return "\\\\"
    # str.isprintable is false for the categories Other (control, format, surrogate,
    # private, unassigned) and Separator: the bidirectional marks are among "format".
    if char.isprintable() and not _INVISIBLE.match(char):
        return char
    number = ord(char)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def dump(value: Any) -> str:
    """One line of JSON, in ASCII, that a terminal cannot misread; never NaN, and no lone surrogate.

    A lone surrogate becomes U+FFFD: most readers of JSON refuse it, and with it the whole file (RFC 7493 section 2.1).

    Raises:
        ValueError: A float in it is not finite.
    """
    return _without_lone(_encoder.encode(value))  # it escapes everything but the printable characters of ASCII


def quote(text: str) -> str:
    """A text as a JSON string, by the same rules."""
    return _without_lone(json.encoder.encode_basestring_ascii(text))


def unicode(text: str) -> str:
    """`text` as every encoding of Unicode can write it: U+FFFD for lone surrogates."""
    return text if text.isascii() else _LONE.sub("\N{REPLACEMENT CHARACTER}", text)


def _without_lone(written: str) -> str:
    return (
        _LONE_IN_JSON.sub(lambda found: r"\ufffd" if found[1] else found[0], written) if r"\ud" in written else written
    )
