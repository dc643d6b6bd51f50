"""A pydantic model as a table in Markdown, and the place between two markers where it stands on a page.

Owns how a setting is shown; must not know any handler or section.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cdc.options import models_in

__all__ = ["BEGIN", "END", "default_of", "filled", "options_table", "type_of"]

BEGIN, END = "<!-- options:begin -->", "<!-- options:end -->"
_MARKED = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_WORDS = {str: "text", SecretStr: "text, secret", int: "integer", float: "number", bool: "true, false", Path: "path"}
_BOUNDS = {Ge: ("ge", "≥"), Gt: ("gt", ">"), Le: ("le", "≤"), Lt: ("lt", "<")}


def options_table(model: type[BaseModel]) -> str:
    """A table of the options of a model, in Markdown, and one below for each model inside."""
    parts = [_table(model)]
    for path, nested in _nested(model, ""):
        parts.append(f"Each of `{path}`:\n\n{_table(nested)}")
    return "\n\n".join(parts)


def filled(page: str, table: str) -> str:
    """The page with the table between its markers; ValueError without them."""
    if len(_MARKED.findall(page)) != 1:
        raise ValueError(f"the page needs {BEGIN} and {END}, once")
    return _MARKED.sub(lambda _: f"{BEGIN}\n{table}\n{END}", page)


def _table(model: type[BaseModel]) -> str:
    lines = ["| option | type | default | what |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if not field.description:
            raise ValueError(f"{model.__name__}.{name} has no description")
        kind = type_of(field.annotation, field.metadata)
        cells = (f"`{field.alias or name}`", kind, default_of(field), field.description)
        lines.append("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def _nested(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        for inner in models_in(field.annotation):
            yield path, inner
            yield from _nested(inner, f"{path}.")


def type_of(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value of this type is, in a few words, with its bounds."""
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for kind, (name, sign) in _BOUNDS.items()
        if isinstance(item, kind)
    ]
    return " ".join([_word(annotation), *bounds])


def _word(annotation: Any) -> str:  # noqa: PLR0911 - one line per kind of type
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, UnionType):
        words = [type_of(argument) for argument in arguments if argument is not NoneType]
        return " or ".join(dict.fromkeys(words))
    if origin in (list, tuple, set, frozenset) or _is_sequence(origin):
        return f"list of {type_of(arguments[0])}"
    if origin is dict or _is_mapping(origin):
        return f"table of {type_of(arguments[1])}"
    if inspect.isclass(annotation):
        if issubclass(annotation, BaseModel):
            return "table, see below"
        if issubclass(annotation, Enum):
            return ", ".join(f"`{json.dumps(item.value)}`" for item in annotation)
        if issubclass(annotation, ByteSize):
            return 'size, such as `"64MiB"`'
        return next((_WORDS[base] for base in annotation.__mro__ if base in _WORDS), annotation.__name__)
    return "any" if annotation is Any else str(annotation)


def _is_sequence(origin: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, Sequence)


def _is_mapping(origin: Any) -> bool:
    return inspect.isclass(origin) and hasattr(origin, "keys")


def default_of(field: FieldInfo) -> str:
    """As it is written in TOML; "required" without one, empty where nothing is the default."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True) if field.default_factory else field.default
    if value is None or value is PydanticUndefined:
        return ""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, list | tuple | set | frozenset):
        value = [item if isinstance(item, str | int | float) else str(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(value, ensure_ascii=False, default=str)}`"
