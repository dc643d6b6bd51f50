"""A Dockerfile as values: its stages, each a list of instructions, and what the last stage says of itself.

Reads the instructions that our files use, and refuses any other: what nobody reads here must not stand there.
It must not run anything.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Instruction", "Stage", "context_files", "read"]

WORDS = frozenset(
    "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER WORKDIR".split()  # noqa: SIM905
)
_VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its word in capitals, its flags (``--from=build``), and the rest on one line."""

    word: str
    flags: Mapping[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The rest as a list: of the JSON form its items, else split as a shell would."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)

    @property
    def pairs(self) -> dict[str, str]:
        """The rest as NAME=VALUE; a name alone is empty."""
        return {name: value for name, _, value in (word.partition("=") for word in self.words)}


@dataclass(slots=True)
class Stage:
    """What lies between two FROMs. `name` may be empty; `base` is an image or another stage."""

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)

    def last(self, word: str) -> Instruction:
        """The instruction that counts where several stand; StopIteration when there is none."""
        return next(one for one in reversed(self.instructions) if one.word == word)

    def pairs(self, word: str) -> dict[str, str]:
        """All of ENV, LABEL or ARG."""
        return {name: value for one in self.instructions if one.word == word for name, value in one.pairs.items()}

    @property
    def command(self) -> list[str]:
        """What a container of it runs."""
        return self.last("ENTRYPOINT").words + self.last("CMD").words

    @property
    def health_command(self) -> list[str]:
        """The command of HEALTHCHECK, in its list form."""
        word, _, command = self.last("HEALTHCHECK").text.partition(" ")
        assert word == "CMD", "a health check is a command"
        return list(json.loads(command))


def read(file: Path, arguments: Mapping[str, str] | None = None) -> list[Stage]:
    """The stages; `arguments` are those of --build-arg. ValueError for what we do not know."""
    stages: list[Stage] = []
    known: dict[str, str] = {}  # ARGs before the first FROM: they reach no further than the FROMs
    for one in _instructions(file.read_text().splitlines()):
        if one.word == "FROM":
            base, *alias = [expanded(word, known) for word in one.words]
            stages.append(Stage(alias[1] if alias else "", base))
        elif stages:
            stages[-1].instructions.append(one)
        elif one.word == "ARG":
            known |= one.pairs | {name: value for name, value in (arguments or {}).items() if name in one.pairs}
        else:
            raise ValueError(f"{one.word} before the first FROM")
    return stages


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$NAME`` and ``${NAME}`` replaced; what is not known is empty."""
    return _VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), text)


def _instructions(lines: Iterable[str]) -> Iterable[Instruction]:
    whole = ""
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole += line.strip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        yield _instruction(whole)
        whole = ""


def _instruction(line: str) -> Instruction:
    word, _, rest = line.partition(" ")
    if word not in WORDS:
        raise ValueError(f"unknown instruction {word}")
    flags = {}
    while word in {"COPY", "FROM", "HEALTHCHECK", "RUN"} and rest.startswith("--"):
        flag, _, rest = rest.partition(" ")
        name, _, value = flag[2:].partition("=")
        flags[name] = value
    return Instruction(word, flags, rest.strip())


def context_files(root: Path, ignore: Sequence[str], sources: Iterable[str]) -> list[Path]:
    """The files under `sources`, relative to `root`, that the patterns of .dockerignore let through."""
    files = [file for source in sources for file in _files(root / source)]
    relative = sorted({file.relative_to(root) for file in files})
    return [file for file in relative if not is_ignored(file, ignore)]


def is_ignored(file: Path, ignore: Sequence[str]) -> bool:
    """Whether .dockerignore leaves it out: the last pattern that matches it or a folder above it decides."""
    candidates = [file.as_posix(), *(parent.as_posix() for parent in file.parents if parent != Path())]
    verdict = False
    for line in (line.strip() for line in ignore):
        if not line or line.startswith("#"):
            continue
        pattern = _pattern(line.removeprefix("!"))
        if any(pattern.fullmatch(candidate) for candidate in candidates):
            verdict = not line.startswith("!")
    return verdict


def _files(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]


def _pattern(text: str) -> re.Pattern[str]:
    parts: list[str] = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", text)
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meanings.get(one) or (one if one.startswith("[") else re.escape(one)) for one in parts))
