"""Which callbacks may be loaded: the list in the file, and the one of whoever deploys the service.

Owns the form of an entry and what it lets through. It must not import what it judges.

A list in the file guards against a mistake, or a name that comes in through ``${NAME}``; one in the environment also
against whoever may change the file and nothing else. Where both are given, both must let a callback through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ANY", "VARIABLE", "AllowedCallbacks"]

VARIABLE = "CDC_ALLOWED_CALLBACKS"
ANY = "*"
_IDENTIFIER = r"[^\W\d]\w*"
_ENTRY = re.compile(
    rf"\*|{_IDENTIFIER}(?:\.{_IDENTIFIER})*(?:\.\*|:{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?",
)


@dataclass(frozen=True, slots=True)
class AllowedCallbacks:
    """The entries of one list, and where it is kept.

    ``*`` lets all through, ``package.*`` the package and everything in it, ``package.module`` every name of that one
    module, ``package.module:name`` that name alone, ``short_name`` the built-in handler of that name.
    """

    entries: tuple[str, ...]
    origin: str = "allowed_callbacks"

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> AllowedCallbacks | None:
        """The list of ``$CDC_ALLOWED_CALLBACKS``, entries between commas or spaces; None where it is not set.

        ValueError for an entry that is none. A variable that is set and empty lets nothing through.
        """
        text = environment.get(VARIABLE)
        if text is None:
            return None
        return cls(checked(re.split(r"[,\s]+", text.strip(" ,")) if text.strip(" ,") else ()), f"${VARIABLE}")

    @property
    def is_open(self) -> bool:
        """Whether it lets everything through."""
        return ANY in self.entries

    def names(self, callback: str) -> bool:
        """Whether exactly this callback has an entry: a short name, or ``package.module:name``."""
        return callback in self.entries

    def permits(self, module: str, name: str) -> bool:
        """Whether `name` of `module` may be loaded."""
        return self.is_open or any(_matches(entry, module, name) for entry in self.entries)


def checked(entries: Sequence[str]) -> tuple[str, ...]:
    """`entries` as they are; ValueError for the first that could let nothing through, or not what it seems to."""
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise ValueError(f'{entry!r} is none of "*", "package.*", "package.module", "package.module:name"')
    return tuple(entries)


def _matches(entry: str, module: str, name: str) -> bool:
    if entry.endswith(".*"):
        return f"{module}.".startswith(entry.removesuffix("*"))
    return entry in (module, f"{module}:{name}")
