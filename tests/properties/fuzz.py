"""The fuzzer: any bytes from outside are a value or the documented error.

``python -m tests.properties.fuzz --seconds 60``, or ``make fuzz SECONDS=60``.

Real examples are damaged, those whose damage reaches code that none has reached before are kept and damaged
further. What breaks the rule, or takes too long, is written to a file and ends the run with status 1; the same
file as an argument reads it again. The same seed gives the same bytes on the same Python, for as long as it runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import cdc
from tests.properties.targets import Target, targets

SOURCES = str(Path(cdc.__file__).parent)
MAX_BYTES = 8_192
"""Of one input: what is long is slow, and finds little that is not found by something short."""
MAX_KEPT = 2_000
SLOW_SECONDS = 5.0
"""CPU time for one input of at most `MAX_BYTES`: a thousand times what the slowest takes."""
TURN = 50
"""Inputs for one target before it is the next one's turn."""


class Finding(Exception):
    """An input that breaks the rule."""

    def __init__(self, target: Target, data: bytes, reason: str) -> None:
        super().__init__(f"{target.name}: {reason}")
        self.target, self.data, self.reason = target, data, reason

    def write(self, folder: Path) -> Path:
        """The reproducer; its name begins with the target's."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.target.name}.{hashlib.sha256(self.data).hexdigest()[:12]}"
        path.write_bytes(self.data)
        return path


class Coverage:
    """Which steps from line to line of the package's own code were ever taken."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()
        self._new = False

    def __call__(self, read: Callable[[bytes], object], data: bytes) -> bool:
        """Run it; whether it took a step that no run before has. Its error passes."""
        self._new = False
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            read(data)
        finally:
            sys.settrace(before)
        return self._new

    @property
    def has_news(self) -> bool:
        """Whether the last run took a new step."""
        return self._new

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:  # noqa: ARG002
        file = frame.f_code.co_filename
        if not file.startswith(SOURCES):
            return None
        last = 0

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal last
            edge = (file, last, frame.f_lineno)
            last = frame.f_lineno
            if edge not in self.seen:
                self.seen.add(edge)
                self._new = True
            return step

        return step


VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1.5, 1700, "", "x", "1.5", [], {})


@dataclass(slots=True)
class Mutator:
    """Damages bytes, in ways that a parser of JSON or of a fixed layout may care for."""

    chance: random.Random
    words: Sequence[bytes] = ()
    others: Sequence[bytes] = field(default_factory=list)

    def __call__(self, data: bytes) -> bytes:
        """`data` with one to four damages."""
        for _ in range(self.chance.choice((1, 1, 2, 4))):
            data = self.chance.choice(DAMAGES)(self, data)[:MAX_BYTES]
        return data

    def span(self, data: bytes) -> tuple[int, int]:
        """A part of it, more often a short one."""
        start = self.chance.randint(0, len(data))
        return start, min(len(data), start + self.chance.choice((0, 1, 1, 2, 4, 8, 32, len(data))))

    def flip(self, data: bytes) -> bytes:
        at = self.chance.randrange(len(data) or 1)
        return data[:at] + bytes([self.chance.randrange(256)]) + data[at + 1 :]

    def cut(self, data: bytes) -> bytes:
        start, end = self.span(data)
        return data[:start] + data[end:]

    def double(self, data: bytes) -> bytes:
        start, end = self.span(data)
        return data[:end] + data[start:end] * self.chance.choice((1, 1, 3, 200)) + data[end:]

    def insert(self, data: bytes) -> bytes:
        start, end = self.span(data)
        word = self.chance.choice(self.words) if self.words else self.chance.randbytes(self.chance.choice((1, 2, 8)))
        return data[:start] + word + data[self.chance.choice((start, end)) :]

    def splice(self, data: bytes) -> bytes:
        other = self.chance.choice(self.others) if self.others else data
        (start, end), (first, last) = self.span(data), self.span(other)
        return data[:start] + other[first:last] + data[end:]

    def number(self, data: bytes) -> bytes:
        digits = [at for at, byte in enumerate(data) if 0x30 <= byte <= 0x39]
        at = self.chance.choice(digits) if digits else 0
        numbers = (b"0", b"-1", b"2147483648", b"18446744073709551616", b"1e5", b"0.10", b"17", b"1700", b"3910")
        return data[:at] + self.chance.choice(numbers) + data[at + 1 :]

    def replace(self, data: bytes) -> bytes:
        """Another value at some place of a JSON document, or none at all."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return self.flip(data)
        document = self._replaced(document)
        return json.dumps(document, ensure_ascii=self.chance.random() < 0.1, separators=(",", ":")).encode(
            "utf-8", "backslashreplace"
        )

    def _replaced(self, node: Any) -> Any:
        if not node or not isinstance(node, dict | list) or self.chance.random() < 0.2:
            return self.chance.choice(
                (None, True, False, 0, -1, 1.5, "", "x", [], {}, [node], {"name": node}, "1.5", 1700)
            )
        steps = list(node) if isinstance(node, dict) else range(len(node))
        step = self.chance.choice(steps)
        copy: Any = node.copy()
        if self.chance.random() < 0.1:
            del copy[step]
        else:
            copy[step] = self._replaced(node[step])
        return copy


DAMAGES = (
    Mutator.flip, Mutator.cut, Mutator.double, Mutator.insert, Mutator.splice, Mutator.number, Mutator.replace,
    Mutator.replace,
)  # fmt: skip


class Fuzzer:
    """One target at a time; `runs` counts inputs."""

    def __init__(self, target: Target, chance: random.Random) -> None:
        self.target = target
        self.runs = 0
        self.coverage = Coverage()
        self.kept: list[bytes] = []
        self._chance = chance
        self._mutate = Mutator(chance, target.words, self.kept)
        for example in target.examples:
            self.try_one(example)
            self.kept.append(example)

    def turn(self) -> None:
        """Some inputs; Finding when one breaks the rule."""
        for _ in range(TURN):
            data = self._mutate(self._chance.choice(self.kept))
            if self.try_one(data) and len(self.kept) < MAX_KEPT:
                self.kept.append(data)

    def try_one(self, data: bytes) -> bool:
        """Whether the input has reached something new; Finding when it breaks the rule."""
        self.runs += 1
        began = time.process_time()
        try:
            self.coverage(self.target.read, data)
        except self.target.documented:
            pass
        except Exception as error:
            raise Finding(self.target, data, f"{type(error).__name__} is not its documented error") from error
        if (took := time.process_time() - began) > SLOW_SECONDS:
            raise Finding(self.target, data, f"took {took:.1f} s")
        return self.coverage.has_news


def fuzz(chosen: Sequence[Target], seconds: float, seed: int, turns: int = 0) -> list[Fuzzer]:
    """Take turns until the time is over, or so many; Finding for the first input that breaks the rule."""
    fuzzers = [Fuzzer(target, random.Random(f"{seed} {target.name}")) for target in chosen]
    deadline = time.monotonic() + seconds
    taken = 0
    while taken < turns if turns else time.monotonic() < deadline:
        for fuzzer in fuzzers:
            fuzzer.turn()
        taken += 1
    return fuzzers


def again(path: Path, known: Sequence[Target]) -> None:
    """Read a reproducer; whatever it raises passes."""
    name = path.name.partition(".")[0]
    target = next((one for one in known if one.name == name), None)
    if target is None:
        raise SystemExit(f"{path}: no target is named {name}; known are {', '.join(one.name for one in known)}")
    print(f"{name}: {target.read(path.read_bytes())!r}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.properties.fuzz", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--turns", type=int, default=0, help="so many of each target, however long they take")
    parser.add_argument("--seed", type=int, default=None, help="of an earlier run (default: a new one)")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument("--corpus", type=Path, help="further messages of wal2json, one a line")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder for reproducers (%(default)s)")
    parser.add_argument("reproducer", nargs="*", type=Path, help="read these files instead")
    options = parser.parse_args(arguments)
    known = targets(options.corpus.read_bytes().splitlines() if options.corpus else ())
    if options.reproducer:
        for path in options.reproducer:
            again(path, known)
        return 0
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}, {options.seconds:g} s", flush=True)
    try:
        chosen = [one for one in known if one.name in (options.target or one.name)]
        fuzzers = fuzz(chosen, options.seconds, seed, options.turns)
    except Finding as finding:
        traceback.print_exception(finding.__cause__)
        path = finding.write(options.out)
        print(f"FOUND {finding}\n{finding.data[:500]!r}\nread it again: python -m tests.properties.fuzz {path}")
        return 1
    for fuzzer in fuzzers:
        print(
            f"{fuzzer.target.name:15} {fuzzer.runs:9,} inputs {len(fuzzer.kept):6,} kept "
            f"{len(fuzzer.coverage.seen):6,} steps of code reached"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
