"""Values of ODB keys: which ones a type takes, and how each is written for people and in MIDAS' JSON dumps.

=========== ================================ ========================= =====================
type        plain value here                 `ls`                      JSON dump
=========== ================================ ========================= =====================
WORD, DWORD int, checked against the range   decimal                   "0x0001", "0x00000001"
UINT64      int                              decimal                   "0x0000000000000001"
other ints  int                              decimal                   number
FLOAT       float                            %.7g                      number
DOUBLE      float                            %.16g                     number
BOOL        bool                             y, n                      true, false
STRING      str, UTF-8 of size - 1 bytes     itself                    string
CHAR        str of one ASCII character       itself                    string
=========== ================================ ========================= =====================
"""

from __future__ import annotations

import json
import math
from typing import Any

from phloem.model.errors import SettingsError
from phloem.model.event import TID

__all__ = ["ODB_TYPES", "check_value", "from_text", "guess_type", "item_size", "json_text", "shown"]

_INTEGERS = {
    TID.UINT8: (0, 2**8 - 1),
    TID.INT8: (-(2**7), 2**7 - 1),
    TID.UINT16: (0, 2**16 - 1),
    TID.INT16: (-(2**15), 2**15 - 1),
    TID.UINT32: (0, 2**32 - 1),
    TID.INT32: (-(2**31), 2**31 - 1),
    TID.BITFIELD: (0, 2**32 - 1),
    TID.INT64: (-(2**63), 2**63 - 1),
    TID.UINT64: (0, 2**64 - 1),
}
_HEX_DIGITS = {TID.UINT16: 4, TID.UINT32: 8, TID.UINT64: 16}
_LARGEST_FLOAT = 3.4028234663852886e38  # IEEE 754 single
_SMALLEST_STRING, _USUAL_STRING = 32, 256

ODB_TYPES = (*_INTEGERS, TID.CHAR, TID.BOOL, TID.FLOAT32, TID.FLOAT64, TID.STRING)


def item_size(tid: TID, size: int = 0) -> int:
    """Bytes of one value; for STRING the given ``size``."""
    return size if tid is TID.STRING else tid.dtype.itemsize


def guess_type(path: str, value: Any) -> tuple[TID, int]:
    """Type and string size for a value that comes without: bool, int, float, str, or a list of these."""
    items = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(item, bool) for item in items) and items:
        return TID.BOOL, 0
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items) and items:
        low, high = _INTEGERS[TID.INT32]
        return (TID.INT32 if all(low <= item <= high for item in items) else TID.INT64), 0
    if all(isinstance(item, int | float) and not isinstance(item, bool) for item in items) and items:
        return TID.FLOAT64, 0
    if all(isinstance(item, str) for item in items):
        longest = max((len(item.encode()) + 1 for item in items), default=_SMALLEST_STRING)
        return TID.STRING, max(_USUAL_STRING, 1 << (longest - 1).bit_length())
    raise SettingsError(
        f"{path}: {value!r} is no ODB value; use true or false, a number, a text, or a list of one of these"
    )


def check_value(path: str, tid: TID, size: int, value: Any) -> Any:
    """``value`` as one plain item of that type, or a `SettingsError` that says what the key takes."""
    if tid in _INTEGERS:
        return _checked_integer(path, tid, value)
    if tid is TID.BOOL:
        if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)):
            return bool(value)
        raise _refused(path, "BOOL", value, "y or n")
    if tid in (TID.FLOAT32, TID.FLOAT64):
        return _checked_float(path, tid, value)
    if tid is TID.CHAR:
        if isinstance(value, str) and len(value) <= 1 and value.isascii():
            return value
        raise _refused(path, "CHAR", value, "one ASCII character")
    if not isinstance(value, str) or "\0" in value:
        raise _refused(path, f"STRING[{size}]", value, "a text")
    if len(value.encode()) >= size:
        raise _refused(path, f"STRING[{size}]", value, f"at most {size - 1} bytes, not {len(value.encode())}")
    return value


def _checked_integer(path: str, tid: TID, value: Any) -> int:
    low, high = _INTEGERS[tid]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refused(path, tid.odb_name, value, f"a whole number from {low} to {high}")
    return int(value)


def _checked_float(path: str, tid: TID, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(path, tid.odb_name, value, "a number")
    if tid is TID.FLOAT32 and math.isfinite(value) and abs(value) > _LARGEST_FLOAT:
        raise _refused(path, tid.odb_name, value, f"a number up to {_LARGEST_FLOAT:.4g}")
    return float(value)


def _refused(path: str, type_name: str, value: Any, wanted: str) -> SettingsError:
    return SettingsError(f"{path} is {type_name} and takes {wanted}; {value!r} does not fit", path=path, value=value)


def from_text(path: str, tid: TID, text: str) -> Any:
    """What a person typed for one item of that type: y/n, decimal or 0x numbers, text."""
    text = text if tid in (TID.STRING, TID.CHAR) else text.strip()
    if tid is TID.BOOL:
        word = text.lower()
        if word in ("y", "yes", "true", "1"):
            return True
        if word in ("n", "no", "false", "0"):
            return False
        raise _refused(path, "BOOL", text, "y or n")
    try:
        if tid in _INTEGERS:
            return int(text, 0)
        if tid in (TID.FLOAT32, TID.FLOAT64):
            return float(text)
    except ValueError:
        raise _refused(path, tid.odb_name, text, "a number") from None
    return text


def shown(tid: TID, value: Any) -> str:
    """One item as `phloem odb ls` prints it."""
    if tid is TID.BOOL:
        return "y" if value else "n"
    if tid is TID.FLOAT32:
        return f"{value:.7g}"
    if tid is TID.FLOAT64:
        return f"{value:.16g}"
    return str(value)


def json_text(tid: TID, value: Any) -> str:
    """One item as MIDAS writes it in a JSON dump."""
    if tid in _HEX_DIGITS:
        return f'"0x{value:0{_HEX_DIGITS[tid]}x}"'
    if isinstance(value, float):
        if not math.isfinite(value):
            return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value, ensure_ascii=False)
