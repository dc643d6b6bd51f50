"""The fuzzer: it finds what it is there to find, and nothing in what is there."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from cdc.errors import DecodeError
from cdc.messages import Begin, Commit, Message
from cdc.wal2json import Decoder, Wal2JsonChange
from tests.conftest import Database
from tests.properties import fuzz
from tests.properties.messages import FixedCatalog
from tests.properties.recording import record
from tests.properties.targets import RECORDED, Target, targets

SEED = 20_240_229


def test_any_bytes_are_a_value_or_the_documented_error(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A short run over every target; what this server sends right now is among what is damaged.

    By turns, not by time: a faster machine would try other inputs, and find by chance what `make fuzz` is there for.
    """
    corpus = tmp_path / "corpus"
    corpus.write_bytes(b"\n".join(record(database.dsn)))

    status = fuzz.main(["--turns", "15", "--seed", str(SEED), "--corpus", str(corpus), "--out", str(tmp_path)])

    output = capsys.readouterr().out
    assert (status, "FOUND" in output) == (0, False), output
    assert output.startswith(f"seed {SEED}")
    assert all(target.name in output for target in targets())


def test_recorded_messages_are_of_all_kinds() -> None:
    """What is damaged has every kind of message in it, and is whole itself."""
    decoder = Decoder(FixedCatalog())
    decoded = [decoder.decode(message) for message in RECORDED.read_bytes().splitlines()]

    kinds = {one.event_type if isinstance(one, Wal2JsonChange) else type(one) for one in decoded}
    assert len(kinds) == 7
    assert kinds > {Begin, Commit, Message}


def test_examples_are_whole() -> None:
    """No target begins with something that it refuses, but the packed messages of other kinds in `wire`."""
    for target in targets():
        refused = []
        for example in target.examples:
            try:
                target.read(example)
            except target.documented:
                refused.append(example)
        assert len(refused) <= len(target.examples) // 2, target.name


def hidden(data: bytes) -> object:
    """Breaks its rule three damages away from the example, and only then."""
    if len(data) > 3 and data[0] == ord("{") and data[-1] != ord("}"):
        raise DecodeError("as documented", lsn=0)
    if b"[]" in data:
        raise KeyError("not documented")
    return data


def test_finding_is_written_and_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with 1, and says how to have the same error again."""
    target = Target("hidden", hidden, (DecodeError,), [b'{"a":1}'], [b"[]"])
    monkeypatch.setattr(fuzz, "targets", lambda _: [target])

    assert fuzz.main(["--seconds", "100", "--seed", "1", "--out", str(tmp_path)]) == 1

    (reproducer,) = tmp_path.iterdir()
    assert str(reproducer) in capsys.readouterr().out
    with pytest.raises(KeyError, match="not documented"):
        fuzz.main([str(reproducer)])


def test_slow_input_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that makes a parser compute for long stops a service as well as an error does."""
    monkeypatch.setattr(fuzz, "SLOW_SECONDS", -1.0)

    with pytest.raises(fuzz.Finding, match="took"):
        fuzz.fuzz([Target("any", bytes, (), [b"x"])], 1, SEED)


def test_same_seed_gives_the_same_inputs() -> None:
    """So that a run can be had again."""
    mutators = [fuzz.Mutator(random.Random(SEED), [b"word"], [b"other"]) for _ in range(2)]

    first, second = ([mutate(b'{"a":[1,2.5,"x"]}') for _ in range(200)] for mutate in mutators)
    assert first == second
    assert len(set(first)) > 100


def test_inputs_that_reach_new_code_are_kept() -> None:
    """What is behind several conditions is reached step by step, which damage to the example alone would not."""
    target = next(one for one in targets() if one.name == "text")
    tracer = sys.gettrace()
    fuzzer = fuzz.Fuzzer(target, random.Random(SEED))
    reached = len(fuzzer.coverage.seen)
    for _ in range(20):
        fuzzer.turn()

    assert len(fuzzer.coverage.seen) > reached
    assert len(fuzzer.kept) > len(target.examples)
    assert sys.gettrace() is tracer
