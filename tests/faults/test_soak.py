"""The soak in its short form; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Database
from tests.faults.soak import Figures, Sample, prepared, table

SECONDS = 10
FAULTS = 2
TRANSACTIONS = 50
SEED = 62


def test_a_short_soak_ends_at_rest(faulty_database: Database, tmp_path: Path) -> None:
    """Case 62: two services under a random schedule of kills and faults; all arrives, and the lag goes."""
    with prepared(faulty_database, tmp_path, SEED) as soak:
        soak.run(SECONDS, between=(1.0, 3.0), faults=FAULTS, transactions=TRANSACTIONS)
        text = "\n".join(table(soak))
    assert soak.faults.total() >= FAULTS
    assert all(one.ordered.transactions >= TRANSACTIONS for one in soak.scenes.values()), text
    assert len({taken.pid for taken in soak.figures["steady"].samples}) == 1


def test_a_leak_is_seen_in_the_figures() -> None:
    """The last third of what grows lies above the middle one, and the slope is that of the leak."""
    figures = Figures()
    for second in range(3 * Figures.LIMIT):
        figures.add(Sample(float(second), 1, 1000 * second, 10, 5), 0.0)
    assert len(figures.samples) <= Figures.LIMIT + 1
    assert figures.third("rss", 2) > figures.third("rss", 1) > figures.third("rss", 0)
    assert abs(figures.slope("rss") - 3_600_000) < 1
    assert figures.slope("fds") == 0
    assert figures.third("threads", 2) == 5
