"""The fenced blocks of a page, each with the marks that stand before it in HTML comments.

A mark is ``<!-- test: words -->`` on the line before a block (blank lines may be between). Words, or word=value:

    skip=REASON     not run here; everything behind it is the reason
    compile=REASON  python that is not complete: compiled, not run; everything behind it is the reason
    exit=N          what the block's commands end with, instead of 0
    scene=NAME      runs in a folder of its own, in that situation (see `tests.docs.scenes`)
    file=NAME       the block is written to that file of the folder; so is one that has its name above it: `name`:
    append          to the file, behind what is there

Pure: text in, blocks out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Block", "blocks", "named_blocks"]

_REST = ("skip", "compile")  # their value is all that follows
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*) *\n(?P<text>.*?)^(?P=indent)``` *$", re.DOTALL | re.MULTILINE
)
_MARK = re.compile(r"<!--\s*test:\s*(?P<words>.*?)\s*-->\s*\Z", re.DOTALL)
_NAME = re.compile(r"^`(?P<name>[\w./-]+)`:\s*\Z", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; `line` is that of its fence, from 1."""

    line: int
    language: str
    text: str
    file: str = ""
    marks: Mapping[str, str] = field(default_factory=dict)


def blocks(page: str) -> list[Block]:
    """All blocks of a page, in order. ValueError for a mark that nobody knows, or that stands before no block."""
    found, end = [], 0
    for match in _FENCE.finditer(page):
        before = page[end : match.start()]
        mark = _MARK.search(before)
        marks = _marks(mark["words"]) if mark is not None else {}
        name = _NAME.search(before[: mark.start()].rstrip() if mark is not None else before)
        text = "\n".join(line.removeprefix(match["indent"]) for line in match["text"].splitlines()) + "\n"
        line = page.count("\n", 0, match.start()) + 1
        file = marks.get("file", name["name"] if name is not None else "")
        found.append(Block(line, match["language"], text, file, marks))
        end = match.end()
    used = sum(bool(block.marks) for block in found)
    if used != page.count("<!-- test:"):
        raise ValueError("a mark stands before no block")
    return found


def named_blocks(page: str, language: str) -> list[tuple[str, str]]:
    """(name of its file or "", text) of each block of that language."""
    return [(block.file, block.text) for block in blocks(page) if block.language == language]


def _marks(words: str) -> dict[str, str]:
    marks: dict[str, str] = {}
    left = " ".join(words.split())
    while left:
        word, _, rest = left.partition(" ")
        key, _, value = word.partition("=")
        if key in _REST:
            marks[key], rest = left.partition("=")[2], ""
        elif key in ("exit", "scene", "file", "append"):
            marks[key] = value
        else:
            raise ValueError(f"no such mark: {word}")
        left = rest
    return marks
