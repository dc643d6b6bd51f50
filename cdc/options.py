"""Options of a handler: the model they are an object of, and what is wrong with those of a file.

Owns `HandlerOptions`, which key a wrong option has, and where relative paths start. It must not know
how a handler is found, and shows no value: an option may be a secret, or hold one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from operator import is_not
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from cdc.logs import clean
from cdc.wording import told

__all__ = ["HandlerOptions", "from_base", "models_in", "options_model", "wrong_options"]

_OPTION: Final = "wrong_option"  # type of the errors of `HandlerOptions.wrong_option`
_LISTS: Final = frozenset({"list_type", "tuple_type"})

T = TypeVar("T")


class HandlerOptions(BaseModel):
    """Base of a handler's options: ``class MyOptions(HandlerOptions)`` with a field per option.

    A class whose constructor takes one of these and nothing else, ``def __init__(self, options: MyOptions)``, is
    made with `[handlers.options]` checked against it: unknown keys, wrong types and what its validators refuse
    (by ValueError, whose text should not show the value) are all told at once. A relative `Path`, in nested
    models, lists and tables too, starts at the folder of the configuration. Secrets are `pydantic.SecretStr`.
    A field's `description` is its line in the documentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True)

    @staticmethod
    def wrong_option(key: str, text: str) -> Exception:
        """What a validator of the whole model raises for options that do not go together: told as that of `key`."""
        return PydanticCustomError(_OPTION, "{text}", {"key": key, "text": text})


def options_model(signature: inspect.Signature) -> type[HandlerOptions] | None:
    """The model that a constructor takes as its only parameter; None for any other constructor."""
    if len(signature.parameters) != 1:
        return None
    (parameter,) = signature.parameters.values()
    annotation = parameter.annotation
    if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
        return None
    return annotation if inspect.isclass(annotation) and issubclass(annotation, HandlerOptions) else None


def from_base(value: T, base: Path) -> T:
    """`value` with every relative path in it starting at `base`: it means the same wherever the service was started."""
    moved: T = _moved(value, base)
    return moved


def _moved(value: Any, base: Path) -> Any:
    if isinstance(value, Path):
        return base / value
    if isinstance(value, BaseModel):
        fields = {name: _moved(getattr(value, name), base) for name in type(value).model_fields}
        changed = {name: item for name, item in fields.items() if item is not getattr(value, name)}
        return value.model_copy(update=changed) if changed else value
    if type(value) is dict:
        items = {key: _moved(item, base) for key, item in value.items()}
        return items if any(items[key] is not value[key] for key in items) else value
    if type(value) in (list, tuple):
        moved = [_moved(item, base) for item in value]
        return type(value)(moved) if any(map(is_not, moved, value)) else value
    return value


def wrong_options(
    error: ValidationError,
    given: Mapping[str, Any],
    known: Sequence[str],
    who: str,
    model: type[BaseModel] | None = None,
) -> list[str]:
    """A line per wrong option, ``options.KEY: what is wrong``; `known` are the options that `who` takes.

    Keys of tables are joined by dots, items of lists are counted from 1: ``options.rules[2].to``. `model`, where
    there is one, tells which keys a nested table takes.
    """
    found: dict[str, list[str]] = {}
    errors = error.errors(include_url=False, include_input=False)
    for details in errors:
        if details["type"] == "too_short" and any(_is_inside(one, details) for one in errors):
            continue  # of a list whose only item was refused, which is told
        steps = _place(details, given, model, known)
        text = _list_text(details, steps, given, model) or _text(details, steps, known, who, model)
        texts = found.setdefault(_key(steps), [])
        if text not in texts:  # of a union, each member has its say
            texts.append(text)
    return [f"{key}: {'; or: '.join(texts)}" for key, texts in found.items()]


def _is_inside(details: ErrorDetails, outer: ErrorDetails) -> bool:
    depth = len(outer["loc"])
    return len(details["loc"]) > depth and details["loc"][:depth] == outer["loc"]


def _place(details: ErrorDetails, given: Any, model: type[BaseModel] | None, known: Sequence[str]) -> list[str | int]:
    """The steps of the location that a person finds in the file; pydantic's also name members of unions.

    An option that is not in the file, and whose default was refused, is the last step.
    """
    found: list[str | int] = []
    for step in details["loc"]:
        try:
            given = given[step]
        except (KeyError, IndexError, TypeError):
            if step in known and isinstance(given, Mapping):
                found.append(step)
                break
            continue
        found.append(step)
        inside = None if model is None else _model_at(model, found)
        known = [] if inside is None else _keys(inside)
    else:
        if details["type"] == "missing":
            found.append(details["loc"][-1])
    return [*found, details["ctx"]["key"]] if details["type"] == _OPTION else found


def _key(steps: Sequence[str | int]) -> str:
    return "options" + "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in steps)


def _text(
    details: ErrorDetails, steps: Sequence[str | int], known: Sequence[str], who: str, model: type[BaseModel] | None
) -> str:
    if details["type"] == "extra_forbidden":
        if len(steps) == 1:
            return f"{who} has no such option; it takes {', '.join(known) or 'none'}"
        nested = None if model is None else _model_at(model, steps[:-1])
        return "there is no such key" + ("" if nested is None else f"; known are {', '.join(_keys(nested))}")
    if details["type"] == "missing":
        return f"is missing: {who} needs it"
    return clean(told(details))


def _list_text(details: ErrorDetails, steps: Sequence[str | int], given: Any, model: type[BaseModel] | None) -> str:
    """Of what should be a list, and "" of anything else; without a model it is not known what its items are."""
    if details["type"] not in _LISTS:
        return ""
    for step in steps:
        given = given[step]
    if not isinstance(given, Mapping) or (model is not None and _model_at(model, steps) is None):
        return "must be a list"
    key = ".".join(["handlers", "options", *(step for step in steps if isinstance(step, str))])
    return f"must be a list of tables; write [[{key}]]"


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], steps: Sequence[str | int]) -> type[BaseModel] | None:
    """The model of a nested table, when there is only one that it can be."""
    for step in steps:
        if isinstance(step, int):
            continue  # the list's annotation was looked through with its key
        field = model.model_fields.get(step)
        inside = set() if field is None else set(models_in(field.annotation))
        if len(inside) != 1:
            return None
        (model,) = inside
    return model


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that values of this annotation may hold, at any depth of lists, tables and unions."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)
