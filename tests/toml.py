"""A value as TOML has it, in one line, for configurations that tests write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, time
from typing import Any

__all__ = ["toml"]


def toml(value: Any) -> str:
    """`value` in TOML, in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return value.isoformat() if isinstance(value, date | time) else str(value)
