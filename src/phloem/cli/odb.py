"""The text of `phloem odb ls`, `get` and `set`.

``ls -l`` prints the table of MIDAS' odbedit. Columns (from 0): name 0, indented by 4 for each level with
-r, type 32, #val 40, size 46, last 52, opn 57, mode 61, value 66; an array has a line for each item, index
at 40 and value at 56. Without ``-l``: name and value, the value at 32.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from phloem.control.odb import MODE_DELETE, MODE_READ, MODE_WRITE, KeyRow
from phloem.control.odb_values import shown
from phloem.model.event import TID

__all__ = ["age", "listing", "plain_value", "table"]

_HEADER = "Key name                        Type    #Val  Size  Last Opn Mode Value"
_LINE = "-" * 75
_MODES = ((MODE_READ, "R"), (MODE_WRITE, "W"), (MODE_DELETE, "D"))
_NAME, _INDENT = 32, 4


def listing(rows: Iterable[KeyRow]) -> str:
    """What `ls` and `ls -r` print: names and values."""
    lines = []
    for row in rows:
        name = " " * _INDENT * row.level + row.name
        if row.tid == TID.KEY:
            lines.append(name)
        elif isinstance(row.value, list):
            lines.append(name)
            lines += [" " * _NAME + shown(TID(row.tid), item) for item in row.value]
        else:
            lines.append(_columns((name, _NAME)) + shown(TID(row.tid), row.value))
    return "\n".join(line.rstrip() for line in lines)


def table(rows: Iterable[KeyRow]) -> str:
    """What `ls -l` and `ls -lr` print, with header."""
    lines = [_HEADER, _LINE]
    for row in rows:
        lines += _table_lines(row)
    return "\n".join(line.rstrip() for line in lines)


def _table_lines(row: KeyRow) -> list[str]:
    name = (" " * _INDENT * row.level + row.name, _NAME)
    tid = TID(row.tid)
    if tid is TID.KEY:
        return [_columns(name, (tid.odb_name, 0))]
    mode = "".join(letter if row.mode & bit else " " for bit, letter in _MODES)
    head = _columns(
        name,
        (tid.odb_name, 8),
        (str(row.num_values), 6),
        (str(row.item_size), 6),
        (age(row.age_s), 5),
        (str(row.opened), 4),
        (mode, 5),
    )
    if isinstance(row.value, list):
        return [head, *(" " * 40 + f"[{n}]".ljust(16) + shown(tid, item) for n, item in enumerate(row.value))]
    text = shown(tid, row.value)
    return [head + "<multi-line>", text] if "\n" in text else [head + text]


def _columns(*cells: tuple[str, int]) -> str:
    """Cells padded to their widths; one that is too long keeps a blank before the next."""
    return "".join(text.ljust(width) if len(text) < width or not width else text + " " for text, width in cells)


def age(age_s: float) -> str:
    """How long ago, as odbedit writes it: 12s, 3m, 18h, 5d, >99d."""
    if age_s < 60:
        return f"{int(age_s)}s"
    if age_s < 3600:
        return f"{age_s / 60:.0f}m"
    if age_s < 86400:
        return f"{age_s / 3600:.0f}h"
    return f"{age_s / 86400:.0f}d" if age_s < 86400 * 99 else ">99d"


def plain_value(value: Any) -> str:
    """What `get` prints: a value by itself, arrays one item to a line, directories as JSON."""
    if isinstance(value, dict):
        return json.dumps(value, indent=2, ensure_ascii=False)
    if isinstance(value, list):
        return "\n".join(plain_value(item) for item in value)
    if isinstance(value, bool):
        return "y" if value else "n"
    return f"{value:.16g}" if isinstance(value, float) else str(value)
