"""References in strings: ``${NAME}``, ``${NAME:-default}``, ``${file:/run/secrets/x}``; ``$$`` is one ``$``.

They are resolved after TOML is parsed, and what came in is not looked at again, so that a secret's content
can become nothing but that string. Only the path of a file may itself hold references, to the environment:
``${file:${CREDENTIALS_DIRECTORY:-/run/secrets}/x}``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Expanded", "Expander", "Location", "plain"]

Location = tuple[str | int, ...]

_REFERENCE = re.compile(r"\$\$|\$\{(?P<body>file:(?:\$\{[^}]*\}|[^}])*|[^}]*)(?P<end>\}?)")
_IN_PATH = re.compile(r"\$\{(?P<body>[^}]*)\}")
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<fallback>:-(?P<default>.*))?", re.DOTALL)


class Expanded(str):
    """A string from outside the file. `template` is how the file wrote it: only that is ever shown."""

    __slots__ = ("template",)
    template: str

    @classmethod
    def of(cls, text: str, template: str) -> Expanded:
        """`text`, and how the file wrote it."""
        made = cls(text)
        made.template = template
        return made


@dataclass(slots=True)
class Expander:
    """Resolves all references of one file; `failures` says where that was not possible, and why."""

    environment: Mapping[str, str]
    folder: Path
    failures: dict[Location, str] = field(default_factory=dict)

    def tree(self, value: Any, location: Location = ()) -> Any:
        """`value` as TOML gave it, with every string in it resolved."""
        if isinstance(value, str):
            return self._string(value, location)
        if isinstance(value, list):
            return [self.tree(item, (*location, index)) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {key: self.tree(item, (*location, key)) for key, item in value.items()}
        return value

    def _string(self, text: str, location: Location) -> str:
        if "$" not in text:
            return text
        came_from_outside = False

        def resolve(match: re.Match[str]) -> str:
            nonlocal came_from_outside
            if match[0] == "$$":
                return "$"
            came_from_outside = True
            try:
                return self._reference(match)
            except ValueError as error:
                self.failures[location] = str(error)
                return ""

        result = _REFERENCE.sub(resolve, text)
        return Expanded.of(result, text) if came_from_outside else result

    def _reference(self, match: re.Match[str]) -> str:
        body = match["body"]
        if not match["end"]:
            raise ValueError("holds a ${ without its }; write $${ for the characters themselves")
        if body.startswith("file:"):
            return self._file(body.removeprefix("file:"))
        return self._variable(body)

    def _variable(self, body: str) -> str:
        name = _NAME.fullmatch(body)
        if name is None:
            raise ValueError(f"${{{body}}} is no reference; it is ${{NAME}}, ${{NAME:-default}} or ${{file:PATH}}")
        value = self.environment.get(name["name"])
        if name["fallback"] and not value:  # as in the shell: the default also stands in for an empty value
            return name["default"]
        if value is None:
            raise ValueError(f"environment variable {body} is not set; set it, or write ${{{body}:-default}}")
        return value

    def _file(self, written: str) -> str:
        path = _IN_PATH.sub(lambda inner: self._variable(inner["body"]), written)
        try:
            return (self.folder / path).read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise ValueError(f"cannot read the file {written}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ValueError(f"the file {written} is not UTF-8 text") from None


def plain(value: Any) -> Any:
    """`value` with ordinary strings in place of expanded ones: what leaves this package."""
    if isinstance(value, Expanded):
        return str(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
