"""docs/configuration.md: every key of cdc.toml, from the models, with what stands below each field in the source.

A key without a docstring is an error: a new one is never left out.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cdc.config.models import Config
from cdc.options import models_in
from tests.docs.tables import default_of, filled, type_of

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_MIB, _GIB = 1024**2, 1024**3


def page() -> str:
    """The whole page: as it is, with the tables between its markers written anew."""
    return filled(PAGE.read_text(), _tables())


def _tables() -> str:
    parts = ["## At the top of the file, before any section\n", _table(_plain_fields(Config))]
    for name, field in Config.model_fields.items():
        for model in models_in(field.annotation):
            is_list = bool(get_args(field.annotation))
            parts.append(f"## `[[{name}]]`\n" if is_list else f"## `[{name}]`\n")
            parts.append(_told(model) + "\n")
            parts.append(_table(_fields(model)))
            for key, inner in model.model_fields.items():
                for nested in models_in(inner.annotation):
                    parts.append(f"### `{key}` of `[[{name}]]`\n")
                    parts.append(_told(nested) + "\n")
                    parts.append(_table(_fields(nested)))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts).rstrip("\n")


def _told(model: type[BaseModel]) -> str:
    """Its docstring, without the section's name and on one line a paragraph."""
    text = inspect.cleandoc(model.__doc__ or "")
    _, _, rest = text.partition(": ")
    paragraphs = [" ".join(part.split()) for part in rest.split("\n\n")]
    return "\n\n".join(part[:1].upper() + part[1:] for part in paragraphs)


def _plain_fields(model: type[BaseModel]) -> list[tuple[str, FieldInfo, str]]:
    return [item for item in _fields(model, skip_models=True) if not list(models_in(item[1].annotation))]


def _fields(model: type[BaseModel], *, skip_models: bool = False) -> list[tuple[str, FieldInfo, str]]:
    """(key, field, meaning) of each; ValueError for a field without a docstring."""
    meanings = _docstrings(model)
    found = []
    for name, field in model.model_fields.items():
        if skip_models and list(models_in(field.annotation)):
            continue
        meaning = field.description or meanings.get(name)
        if not meaning:
            raise ValueError(f"{model.__name__}.{name} has no docstring below it")
        found.append((name, field, meaning))
    return found


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field in the source of the class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
            assert isinstance(below, ast.Expr)
            assert isinstance(below.value, ast.Constant)
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _table(fields: list[tuple[str, FieldInfo, str]]) -> str:
    lines = ["| key | type | default | what |", "|---|---|---|---|"]
    for name, field, meaning in fields:
        cells = (f"`{name}`", _type(name, field), _default(name, field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines)


def _type(name: str, field: FieldInfo) -> str:
    words = type_of(field.annotation, field.metadata)
    if name.endswith("_bytes"):
        return words.replace("integer", "size")
    return words.replace("number", "seconds") if name.endswith("_seconds") or "_seconds_" in name else words


def _default(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if name.endswith("_bytes") and isinstance(value, int) and value >= _MIB:
        unit, size = ("GiB", _GIB) if value % _GIB == 0 else ("MiB", _MIB)
        return f'`"{value // size}{unit}"`'
    if isinstance(value, frozenset):  # in the order of the enumeration, whatever the set's is
        (item,) = {type(one) for one in value}
        names = ", ".join(f'"{one.value}"' for one in item if one in value)
        return f"`[{names}]`"
    if isinstance(value, float) and value.is_integer() and name.endswith(("_seconds", "_invalidation")):
        return f"`{value:g}`"
    return default_of(field)
