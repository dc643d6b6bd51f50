"""Changes per second: every contender over its own copy of the same slot, one at a time, in rounds.

How the time is taken stands in `bench.rounds`, and what each contender is in `bench.contenders`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.backlog import mixed
from bench.contenders import REFERENCE, Contender
from bench.results import ThroughputResult, summed_up
from bench.rounds import Say, in_rounds
from bench.server import BenchError, Server

__all__ = ["measure"]


def measure(
    server: Server,
    contenders: Sequence[Contender],
    options: Mapping[str, str],
    *,
    changes: int,
    transaction_rows: int,
    rounds: int,
    say: Say,
) -> ThroughputResult:
    """All contenders, `rounds` times, over one backlog."""
    able = [contender for contender in contenders if not contender.missing]
    missing = [f"{one.title}: {one.missing}" for one in contenders if one.missing]
    if not able:
        raise BenchError("; ".join(missing))
    say(f"throughput: {changes:,} changes in transactions of {transaction_rows}")
    with mixed(server, changes, transaction_rows) as backlog:
        runs = in_rounds(server, able, backlog, options, rounds=rounds, say=say)
    reference = runs.get(REFERENCE, [])
    return ThroughputResult(
        changes=backlog.changes,
        transaction_rows=backlog.transaction_rows,
        rounds=rounds,
        contenders=[summed_up(one.name, one.title, runs[one.name], reference) for one in able],
        missing=missing,
    )
