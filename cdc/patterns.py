"""Which tables and which tags somebody wants: the patterns of configuration and `add_callback`.

Owns reading ``schema.table`` patterns and tag globs, matching them, and saying the same in the plugin's own
filter language as far as that can. It must not know events, callbacks or connections.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from cdc.errors import ConfigError

__all__ = ["TablePatterns", "TagPatterns"]

_STAR = None  # among literal pieces of a name: any run of characters
_SEPARATOR = "\0"  # between schema and table when both are matched at once: no PostgreSQL name holds it
# What wal2json's option parser gives a meaning of its own. It trims white space of every kind.
_WAL2JSON_SPECIAL = re.compile(r"([\s'\",.*\\])")

_Part = tuple[str | None, ...]


class TablePatterns:
    """Tables by name: those that one of `include` matches (none given: all), but none of `exclude`.

    A pattern is ``schema.table``; each part may hold ``*`` anywhere. Names are compared as they are stored
    (``public.Users`` is the table created as ``"Users"``); inside double quotes dots and stars are ordinary
    characters, and ``""`` is one quote. ConfigError for a pattern that cannot be read.
    """

    __slots__ = ("_exclude", "_excluded", "_include", "_included")

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = [_parse(text) for text in include or ("*.*",)]
        self._exclude = [_parse(text) for text in exclude]
        self._included = _regex(self._include)
        self._excluded = _regex(self._exclude)

    def matches(self, schema: str, table: str) -> bool:
        """Whether the table of this exact name, unquoted, is wanted."""
        name = f"{schema}{_SEPARATOR}{table}"
        return bool(self._included.fullmatch(name)) and not self._excluded.fullmatch(name)

    def server_side(self) -> tuple[str | None, str | None]:
        """Values for wal2json's ``add-tables`` and ``filter-tables``; None: leave the option out.

        The server lets at least everything pass that `matches`: wal2json knows a star only as a whole name,
        so that a partial one is widened in what it adds and left out of what it filters.
        """
        wide = [(_widened(schema), _widened(table)) for schema, table in self._include]
        add = None if (_ANY, _ANY) in wide else _wal2json_list(dict.fromkeys(wide))
        return add, _wal2json_list(one for one in self._exclude if _is_exact(one))


class TagPatterns:
    """Tags by shell globs (``audit:*``), case-sensitive; no glob at all is no condition."""

    __slots__ = ("_regex", "globs")

    def __init__(self, globs: Sequence[str] = ()) -> None:
        self.globs = tuple(globs)
        self._regex = re.compile("|".join(map(fnmatch.translate, globs))) if globs else None

    def matches(self, tags: Iterable[str]) -> bool:
        """Whether any of the tags matches any of the globs."""
        if self._regex is None:
            return True
        return any(self._regex.match(tag) for tag in tags)


_ANY: _Part = (_STAR,)


def _parse(text: str) -> tuple[_Part, _Part]:
    """Read one pattern; ConfigError says what is wrong with it."""
    parts = _split(text.strip())
    if len(parts) == 1:
        raise ConfigError(
            f"table pattern {text!r} names no schema", hint=f"write schema.table, e.g. public.{text.strip()}"
        )
    if len(parts) > 2:
        raise ConfigError(
            f"table pattern {text!r} has more than one dot",
            hint='write schema.table, and a name that holds a dot in double quotes: public."my.table"',
        )
    if () in parts:
        raise ConfigError(f"table pattern {text!r} leaves a name empty", hint="write schema.table or *.*")
    return parts[0], parts[1]


def _split(text: str) -> list[_Part]:
    """The dot-separated parts, each a run of literal pieces and stars."""
    parts: list[list[str | None]] = [[]]
    quoted = False
    at = 0
    while at < len(text):
        char = text[at]
        part = parts[-1]
        if char == '"':
            if quoted and text[at + 1 : at + 2] == '"':
                part.append('"')
                at += 1
            else:
                quoted = not quoted
        elif quoted or char not in ".*":
            part.append(char)
        elif char == ".":
            parts.append([])
        elif part[-1:] != [_STAR]:  # two stars are one, and cost less
            part.append(_STAR)
        at += 1
    if quoted:
        raise ConfigError(f"table pattern {text!r} has an unclosed quote", hint='write "" for a quote in a name')
    return [tuple(part) for part in parts]


def _regex(patterns: Iterable[tuple[_Part, _Part]]) -> re.Pattern[str]:
    """One expression for schema, separator and table; matches nothing without patterns."""
    alternatives = [_SEPARATOR.join(map(_part_regex, pattern)) for pattern in patterns]
    return re.compile("|".join(alternatives) or r"(?!)")


def _part_regex(part: _Part) -> str:
    return "".join(f"[^{_SEPARATOR}]*" if piece is _STAR else re.escape(piece) for piece in part)


def _widened(part: _Part) -> _Part:
    """The same or more, in what wal2json can say."""
    return _ANY if _STAR in part else part


def _is_exact(pattern: tuple[_Part, _Part]) -> bool:
    """Whether wal2json can say exactly this; all of everything it cannot."""
    return pattern != (_ANY, _ANY) and all(part == _ANY or _STAR not in part for part in pattern)


def _wal2json_list(patterns: Iterable[tuple[_Part, _Part]]) -> str | None:
    return ",".join(".".join(map(_wal2json_part, pattern)) for pattern in patterns) or None


def _wal2json_part(part: _Part) -> str:
    if part == _ANY:
        return "*"
    return _WAL2JSON_SPECIAL.sub(r"\\\1", "".join(piece or "" for piece in part))
