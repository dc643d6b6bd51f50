"""What is wrong with a file, one line per problem: the key, the value as the file has it, and the fix.

A value is shown only when it cannot be a secret: not what came from outside, not a connection string, not an
option of a handler.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from cdc.config import models
from cdc.config.expand import Expanded, Location
from cdc.logs import clean
from cdc.wording import told

__all__ = ["key_of", "problem", "problem_of", "value_at"]

_ALIKE = 0.5  # "timout" is still taken for timeout_seconds
MAX_SHOWN = 60  # characters of a value: enough to find it in the file
MAX_BITS = 256  # of a number that is shown; Python refuses to write one of thousands of digits
_HIDDEN_KEYS = {"dsn", "url", "options"}

SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): models.Config,
    ("source",): models.SourceConfig,
    ("state",): models.StateConfig,
    ("signal",): models.SignalConfig,
    ("slot_guard",): models.SlotGuardConfig,
    ("http",): models.HttpConfig,
    ("log",): models.LogConfig,
    ("tag_rules",): models.TagRule,
    ("handlers",): models.HandlerConfig,
    ("handlers", "columns"): models.Columns,
}


def problem(location: Location, data: Any, text: str) -> str:
    """One line: ``handlers[1] (audit).concurrency = 99: must be at most 64``."""
    found, value = value_at(data, location)
    shown = _shown(location, value) if found else ""
    return clean(f"{key_of(location, data)}{f' = {shown}' if shown else ''}: {text}")


def problem_of(error: ErrorDetails, data: Any) -> str:
    """The line for what pydantic found in `data`."""
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        return clean(f"{key_of(location, data)}: unknown key{_suggestion(location)}")
    if error["type"] == "tuple_type" and location in SECTIONS and isinstance(error["input"], Mapping):
        return problem(location, data, f"must be a list of tables; write [[{location[-1]}]]")
    return problem(location, data, told(error))


def key_of(location: Location, data: Any) -> str:
    """The key as a person finds it: items of a list are counted from 1, handlers carry their name."""
    text = ""
    for depth, step in enumerate(location):
        if isinstance(step, str):
            text += f".{step}" if text else step
            continue
        text += f"[{step + 1}]"
        _, item = value_at(data, location[: depth + 1])
        if isinstance(item, Mapping) and isinstance(item.get("name"), str):
            text += f" ({item['name'][:MAX_SHOWN]})"
    return text


def value_at(data: Any, location: Location) -> tuple[bool, Any]:
    """(True, the value at `location`), or (False, None)."""
    for step in location:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return False, None
    return True, data


def _shown(location: Location, value: Any) -> str:
    if isinstance(value, Expanded):
        return json.dumps(value.template[:MAX_SHOWN])
    if _HIDDEN_KEYS.intersection(location) or isinstance(value, Mapping | list):
        return ""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return ""
    if isinstance(value, str | bool | int | float):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= MAX_SHOWN else f'{text[:MAX_SHOWN]}..."'
    return str(value)


def _suggestion(location: Location) -> str:
    """'; did you mean x?' - the nearest name in the same section, or the section where the key belongs."""
    key = str(location[-1])
    section = tuple(step for step in location[:-1] if isinstance(step, str))
    if section not in SECTIONS:
        return ""
    homes = [".".join(home) for home, model in SECTIONS.items() if home and key in model.model_fields]
    if homes:
        return f"; it belongs in {' or '.join(f'[{home}]' for home in homes)}"
    near = difflib.get_close_matches(key.lower(), SECTIONS[section].model_fields, n=1, cutoff=_ALIKE)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known are {', '.join(sorted(SECTIONS[section].model_fields))}"
