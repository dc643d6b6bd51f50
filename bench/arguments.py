"""The command line, and the sizes of the measurements."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.growth import AXES

__all__ = ["FULL", "PARTS", "QUICK", "Arguments", "Sizes"]

RESULTS = Path(__file__).resolve().parent / "results"  # kept out of git
PARTS = ("throughput", "latency", "memory", "growth", "faults")
WHAT = ("measure", "targets", "charts", "profile")

DESCRIPTION = """\
measure: all parts, then tables, charts and what must be reached. targets, charts: of the figures in the file.
profile: a flame graph of `cdc run`. With --only the other parts of the file stay as they are.
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. `changes` by the rows of a transaction, small ones being slower."""

    changes: Mapping[int, int]
    rounds: int
    rates: Sequence[int]
    seconds: int
    memory_rows: Sequence[int]
    growth_changes: int
    fault_rounds: int
    away_seconds: float  # of the killed server


FULL = Sizes(
    changes={1: 200_000, 10: 500_000, 1000: 1_000_000},
    rounds=3,
    rates=(200, 1000, 3000),
    seconds=10,
    memory_rows=(1_000_000, 5_000_000),
    growth_changes=300_000,
    fault_rounds=5,
    away_seconds=5,
)
QUICK = Sizes(
    changes={1: 20_000, 10: 50_000, 1000: 100_000},
    rounds=1,
    rates=(1000,),
    seconds=3,
    memory_rows=(200_000,),
    growth_changes=20_000,
    fault_rounds=1,
    away_seconds=0.5,
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line; `only` names parts or contenders, none of them means all."""

    what: str
    sizes: Sizes
    only: Sequence[str]
    axes: Sequence[str]
    json: Path
    charts: Path

    @classmethod
    def parse(cls, arguments: Sequence[str] | None = None) -> Arguments:
        """From `arguments`, or those of the process."""
        given = _parser().parse_args(arguments)
        preset = QUICK if given.quick else FULL
        wanted = given.transaction_rows or (list(preset.changes) if given.changes is None else [1000])
        largest = max(preset.changes.values())
        sizes = Sizes(
            changes={rows: given.changes or preset.changes.get(rows, largest) for rows in wanted},
            rounds=given.rounds or preset.rounds,
            rates=given.rates or preset.rates,
            seconds=given.seconds or preset.seconds,
            memory_rows=given.memory_rows or preset.memory_rows,
            growth_changes=given.growth_changes or preset.growth_changes,
            fault_rounds=given.rounds or preset.fault_rounds,
            away_seconds=preset.away_seconds,
        )
        return cls(
            given.what, sizes, given.only, given.axes or list(AXES), given.json, given.charts or given.json.parent
        )

    def wants(self, part: str) -> bool:
        """Whether the part was asked for; a contender's name asks for the throughput."""
        if not self.only or part in self.only:
            return True
        return part == "throughput" and any(name not in PARTS for name in self.only)


def _parser() -> argparse.ArgumentParser:
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=DESCRIPTION)
    add = parser.add_argument
    add("what", nargs="?", default="measure", choices=WHAT)
    add("--quick", action="store_true", help="one round of small sizes: does it work, and is it about right")
    add("--only", nargs="+", default=[], choices=[*PARTS, *names], help="parts, or contenders of the throughput")
    add("--rounds", type=int, help=f"of everything ({FULL.rounds}, of the faults {FULL.fault_rounds})")
    add("--changes", type=int, help=f"in the backlog, by rows of a transaction ({dict(FULL.changes)})")
    add("--transaction-rows", type=int, nargs="+", help="1, or multiples of 10; a table for each")
    add("--rates", type=int, nargs="+", help=f"of the latency, transactions/s {FULL.rates}")
    add("--seconds", type=int, help=f"of one latency run ({FULL.seconds})")
    add("--memory-rows", type=int, nargs="+", help=f"in one transaction {FULL.memory_rows}")
    add("--growth-changes", type=int, help=f"in each backlog of the growth ({FULL.growth_changes})")
    add("--axes", nargs="+", choices=list(AXES), help="of the growth")
    add("--json", type=Path, default=RESULTS / "latest.json", help="file of the figures")
    add("--charts", type=Path, help="folder of the charts (that of the figures)")
    return parser
