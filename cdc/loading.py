"""From a handler in the configuration to the callback object: import it, make it, check its options.

Owns the names that `callback` may be, the search path of users' modules, and the validation of
``[handlers.options]`` against the signature of the class. It must not call the callback or know the stream.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from cdc.config import HandlerConfig
from cdc.errors import ConfigError
from cdc.logs import clean

__all__ = ["ENTRY_POINTS", "load_callback"]

ENTRY_POINTS = "walsignal.handlers"


def load_callback(handler: HandlerConfig, base: Path, python_path: Sequence[Path] = ()) -> object:
    """The callback that the handler names: a function, or an object made of a class and its options.

    `base` is the folder of the configuration file, where relative paths in options start, and those of
    `python_path`, whose folders stay on ``sys.path`` (at its end: they cannot hide what is installed).
    ConfigError when it cannot be found, imported or made, with every wrong option at once.
    """
    folders = [base / folder for folder in python_path]
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    found = _resolve(handler, folders)
    if inspect.isclass(found):
        arguments = _arguments(handler, found, base)
        found = _guarded(handler, "cannot be made", lambda: found(**arguments))
    elif handler.options:
        raise _error(handler, "options", f"{handler.callback} is no class and takes no options; remove them")
    if not any(callable(getattr(found, name, None)) for name in ("handle", "handle_batch", "__call__")):
        raise _error(
            handler,
            "callback",
            f"{handler.callback} is a {type(found).__name__}; it must be a function, or have `handle` or"
            " `handle_batch`",
        )
    return found


def _resolve(handler: HandlerConfig, folders: Sequence[Path]) -> Any:
    module_name, colon, name = handler.callback.partition(":")
    if not colon:
        entry = _built_in(handler)
        module_name, name = entry.module, entry.attr
    value: Any = _import(handler, module_name, folders)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            where = getattr(sys.modules[module_name], "__file__", None) or module_name
            raise _error(handler, "callback", f"there is no {name!r} in {where}") from None
    return value


def _built_in(handler: HandlerConfig) -> EntryPoint:
    known = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if handler.callback not in known:
        raise _error(
            handler,
            "callback",
            f"there is no built-in handler {handler.callback!r} (known: {', '.join(sorted(known)) or '-'});"
            " write package.module:name for one of your own",
        )
    return known[handler.callback]


def _import(handler: HandlerConfig, module_name: str, folders: Sequence[Path]) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _error(handler, "callback", _not_found(module_name, error.name, folders)) from error
        raise _error(handler, "callback", f"importing {module_name} failed: {_text(error)}; install it") from error
    except (Exception, SystemExit) as error:
        raise _error(handler, "callback", f"importing {module_name} failed: {_text(error)}") from error


def _not_found(module_name: str, missing: str, folders: Sequence[Path]) -> str:
    """Where it was looked for, and, when a package of that name hides the user's, where that one lies."""
    looked = ", ".join(str(folder) for folder in folders) or "no folders"
    parent, _, _ = missing.rpartition(".")
    origin = ""
    if parent and parent in sys.modules:
        places = list(getattr(sys.modules[parent], "__path__", ()))
        origin = f"; the package {parent} was found in {', '.join(places)}" if places else ""
    return (
        f"no module {missing!r} for {module_name}: looked in python_path ({looked}) and in what is installed"
        f"{origin}; add its folder to python_path"
    )


def _arguments(handler: HandlerConfig, cls: type, base: Path) -> dict[str, Any]:
    """The keyword arguments of the class, each converted to what its annotation says."""
    signature = _guarded(handler, "has a signature that cannot be read", lambda: _signature(cls))
    names: dict[str, str] = {}  # field → parameter: a field cannot be called everything a parameter can
    fields: dict[str, Any] = {}
    takes_all = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_all = True
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            field = f"option{len(names)}"
            names[field] = parameter.name
            fields[field] = _field(parameter)
    config = ConfigDict(
        extra="allow" if takes_all else "forbid", arbitrary_types_allowed=True, hide_input_in_errors=True
    )
    try:
        model = create_model("Options", __config__=config, **fields)
    except PydanticUserError as error:
        raise _error(
            handler, "callback", f"{handler.callback} has annotations that cannot be checked: {error}"
        ) from error
    try:
        values = model.model_validate(handler.options)
    except ValidationError as error:
        raise _wrong_options(handler, error, list(names.values())) from None
    given = {names[field]: getattr(values, field) for field in names if _is_passed(values, field)}
    return {name: _from_base(value, base) for name, value in {**given, **(values.model_extra or {})}.items()}


def _is_passed(values: BaseModel, field: str) -> bool:
    """Defaults are the constructor's own, but a path among them starts at the base as well."""
    return field in values.model_fields_set or isinstance(getattr(values, field), Path)


def _signature(cls: type) -> inspect.Signature:
    try:
        return inspect.signature(cls, eval_str=True)
    except NameError:  # of a type that is imported for the type checker only
        return inspect.signature(cls)


def _field(parameter: inspect.Parameter) -> tuple[Any, Any]:
    annotation = parameter.annotation
    if annotation is parameter.empty or isinstance(annotation, str):
        annotation = Any
    default = ... if parameter.default is parameter.empty else parameter.default
    return annotation, Field(default, alias=parameter.name)


def _wrong_options(handler: HandlerConfig, error: ValidationError, known: Sequence[str]) -> ConfigError:
    problems = []
    for details in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(step) for step in details["loc"])
        if details["type"] == "extra_forbidden":
            text = f"{handler.callback} has no such option; it takes {', '.join(known) or 'none'}"
        elif details["type"] == "missing":
            text = f"is missing: {handler.callback} needs it"
        else:
            text = clean(details["msg"])
        problems.append(f"{_key(handler, f'options.{key}')}: {text}")
    return ConfigError(f"the options of handler {handler.name} are wrong", problems=problems)


def _from_base(value: Any, base: Path) -> Any:
    """A relative path means the same wherever the service was started."""
    if isinstance(value, Path):
        return base / value
    return [_from_base(item, base) for item in value] if type(value) is list else value


def _guarded(handler: HandlerConfig, what: str, call: Callable[[], Any]) -> Any:
    """Run a user's code; whatever it raises is a fault of the configuration by now."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise _error(handler, "callback", f"{handler.callback} {what}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return clean(f"{type(error).__name__}: {error}")


def _key(handler: HandlerConfig, key: str) -> str:
    return f"handlers[{handler.name}].{key}"


def _error(handler: HandlerConfig, key: str, text: str) -> ConfigError:
    return ConfigError(f"handler {handler.name} cannot be loaded", problems=[f"{_key(handler, key)}: {text}"])
