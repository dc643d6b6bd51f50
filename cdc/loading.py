"""From a handler in the configuration to the callback object: import it, make it, check its options.

Owns the names that `callback` may be, the search path of users' modules, and the validation of
``[handlers.options]`` against the options model, or else the signature, of the class. It must not call the
callback or know the stream.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from cdc.codes import Code
from cdc.config import AllowedCallbacks, HandlerConfig
from cdc.errors import CallbackError, ConfigError
from cdc.invocation import Invocation
from cdc.logs import clean
from cdc.options import HandlerOptions, from_base, options_model, wrong_options

__all__ = ["ENTRY_POINTS", "code_of", "find_callback", "load_callback", "load_invocation"]

ENTRY_POINTS = "walsignal.handlers"


def load_callback(handler: HandlerConfig, base: Path, python_path: Sequence[Path] = ()) -> object:
    """The callback that the handler names: a function, or an object made of a class and its options.

    `base` is the folder of the configuration file, where relative paths in options start, and those of
    `python_path`, whose folders stay on ``sys.path`` (at its end: they cannot hide what is installed).
    ConfigError when it cannot be found, imported or made, with every wrong option at once.
    """
    found, entry = find_callback(handler, base, python_path)
    if inspect.isclass(found):
        found = _made(handler, found, base, entry)
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


def load_invocation(handler: HandlerConfig, base: Path, python_path: Sequence[Path] = ()) -> Invocation:
    """The callback as :func:`load_callback` has it, with how it is called; ConfigError when it cannot be."""
    callback = load_callback(handler, base, python_path)
    try:
        return Invocation(callback)
    except CallbackError as error:
        raise _error(handler, "callback", str(error), error.code) from error


def find_callback(
    handler: HandlerConfig, base: Path, python_path: Sequence[Path] = ()
) -> tuple[Any, EntryPoint | None]:
    """The object of that name, its module imported, nothing made of it; and the built-in's entry point."""
    folders = [base / folder for folder in python_path]
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    entry = None if ":" in handler.callback else _built_in(handler)
    return _resolve(handler, folders, entry), entry


def code_of(handler: HandlerConfig) -> tuple[str, str]:
    """The handler's module, which is imported, and a digest of its file as it is now ("" without one)."""
    name, _, _ = handler.callback.partition(":")
    if ":" not in handler.callback:
        name = _built_in(handler).module
    try:
        return name, blake2b(Path(sys.modules[name].__file__ or "").read_bytes(), digest_size=16).hexdigest()
    except (KeyError, AttributeError, OSError):
        return name, ""


def _resolve(handler: HandlerConfig, folders: Sequence[Path], entry: EntryPoint | None) -> Any:
    module_name, _, name = handler.callback.partition(":")
    if entry is not None:
        module_name, name = entry.module, entry.attr
    _require_allowed(handler, module_name, name)
    value: Any = _import(handler, module_name, folders, entry)
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            where = getattr(sys.modules[module_name], "__file__", None) or module_name
            raise _error(handler, "callback", f"there is no {name!r} in {where}") from None
    _require_allowed_origin(handler, module_name, name, value)
    return value


def _require_allowed(handler: HandlerConfig, module: str, name: str) -> None:
    """Before anything is imported: to import a module is to run it."""
    for allowed in handler.allowed:
        if not (allowed.names(handler.callback) or allowed.permits(module, name)):
            raise _forbidden(handler, allowed, f"{module}:{name}")


def _require_allowed_origin(handler: HandlerConfig, module: str, name: str, found: Any) -> None:
    """What a module only imports is no callback of its own: ``handlers.webhook:os.system`` is not let through.

    A name that a list has in full is what whoever wrote it wants, wherever it comes from.
    """
    for allowed in handler.allowed:
        if allowed.is_open or allowed.names(handler.callback) or allowed.names(f"{module}:{name}"):
            continue
        origin = _origin(found)
        if inspect.ismodule(found) or (origin is not None and not allowed.permits(*origin)):
            raise _forbidden(handler, allowed, ":".join(origin) if origin else f"{module}:{name}")


def _origin(found: Any) -> tuple[str, str] | None:
    """Where a class or a function was defined; None for an object, which its module has made."""
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return None
    return str(getattr(found, "__module__", None)), str(getattr(found, "__qualname__", found))


def _forbidden(handler: HandlerConfig, allowed: AllowedCallbacks, what: str) -> ConfigError:
    entries = ", ".join(allowed.entries) or "nothing"
    return _error(handler, "callback", f"{allowed.origin} lets through {entries}, and not {what}")


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


def _import(handler: HandlerConfig, module_name: str, folders: Sequence[Path], entry: EntryPoint | None) -> object:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise _error(handler, "callback", _not_found(module_name, error.name, folders)) from error
        raise _not_installed(handler, error, entry, f"importing {module_name} failed") from error
    except (Exception, SystemExit) as error:
        raise _error(handler, "callback", f"importing {module_name} failed: {_text(error)}") from error


def _not_installed(
    handler: HandlerConfig, error: ModuleNotFoundError, entry: EntryPoint | None, what: str
) -> ConfigError:
    """A library that the handler needs is not there: what installs it, for a built-in its extra."""
    extra = None if entry is None else _extra(entry)
    if extra is None:
        return _error(handler, "callback", f"{what}: {_text(error)}; install it")
    return _error(handler, "callback", f"{handler.callback} needs {error.name}: pip install '{extra}'")


def _extra(entry: EntryPoint) -> str | None:
    """``distribution[short_name]``, where the distribution that declares the handler has an extra of its name."""
    if entry.dist is None:
        return None
    extras = entry.dist.metadata.get_all("Provides-Extra") or []
    is_there = _normal(entry.name) in map(_normal, extras)
    return f"{entry.dist.metadata['Name']}[{entry.name}]" if is_there else None


def _normal(name: str) -> str:
    """Names of extras compare so (https://packaging.python.org/en/latest/specifications/name-normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


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


def _made(handler: HandlerConfig, cls: type, base: Path, entry: EntryPoint | None) -> object:
    signature = _guarded(handler, "has a signature that cannot be read", lambda: _signature(cls))
    if (model := options_model(signature)) is not None:
        options = _options(handler, model, base)
        return _guarded(handler, "cannot be made", lambda: cls(options), entry)
    arguments = _arguments(handler, signature, base)
    return _guarded(handler, "cannot be made", lambda: cls(**arguments), entry)


def _options(handler: HandlerConfig, model: type[HandlerOptions], base: Path) -> HandlerOptions:
    """The object of the options model that the constructor takes."""
    try:
        return from_base(model.model_validate(handler.options), base)
    except ValidationError as error:
        known = [field.alias or name for name, field in model.model_fields.items()]
        raise _wrong_options(handler, error, known, model) from None
    except PydanticUserError as error:  # of an annotation that is imported for the type checker only
        raise _error(
            handler, "callback", f"{model.__name__} has annotations that cannot be checked: {error}"
        ) from error


def _arguments(handler: HandlerConfig, signature: inspect.Signature, base: Path) -> dict[str, Any]:
    """The keyword arguments of the class, each converted to what its annotation says."""
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
    return {name: from_base(value, base) for name, value in {**given, **(values.model_extra or {})}.items()}


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


def _wrong_options(
    handler: HandlerConfig, error: ValidationError, known: Sequence[str], model: type[BaseModel] | None = None
) -> ConfigError:
    problems = wrong_options(error, handler.options, known, handler.callback, model)
    return ConfigError(
        f"the options of handler {handler.name} are wrong",
        problems=[_key(handler, problem) for problem in problems],
        code=Code.HANDLER_OPTIONS_WRONG,
    )


def _guarded(handler: HandlerConfig, what: str, call: Callable[[], Any], entry: EntryPoint | None = None) -> Any:
    """Run a user's code; whatever it raises is a fault of the configuration by now."""
    try:
        return call()
    except ModuleNotFoundError as error:  # of a library that only some options need
        raise _not_installed(handler, error, entry, f"{handler.callback} {what}") from error
    except (Exception, SystemExit) as error:
        raise _error(handler, "callback", f"{handler.callback} {what}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return clean(f"{type(error).__name__}: {error}")


def _key(handler: HandlerConfig, key: str) -> str:
    return f"handlers[{handler.name}].{key}"


def _error(handler: HandlerConfig, key: str, text: str, code: str = Code.HANDLER_NOT_LOADED) -> ConfigError:
    return ConfigError(
        f"handler {handler.name} cannot be loaded",
        problems=[f"{_key(handler, key)}: {text}"],
        code=code,
    )
