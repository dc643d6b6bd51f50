"""`metrics` under the contract: figures in memory have no server to lose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tests.handlers.contract import Clause, Subject


class MetricsSubject(Subject[None]):
    """There is no server, and a figure does not tell positions."""

    name = "metrics"
    wrong_options: ClassVar = {
        "namespace": "cdc",
        "max_series": 0,
        "histograms": [{"column": "total", "buckets": [2, 1]}],
    }
    exempt: ClassVar = {
        Clause.DURABLE: "figures begin at zero with the process, as Prometheus expects of a counter",
        Clause.ONCE: "a figure tells no positions, and another process counts anew; see test_metrics_handler.py",
        Clause.DOWN: "there is no server that could be down",
        Clause.BACK: "there is no server that could come back",
        Clause.SLOW: "there is no server, and counting never waits",
        Clause.CANCELLED: "counting never waits, so that no call can be cancelled in its midst",
    }

    def make_server(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return {"tags": ["audit:*"]}

    async def effects(self) -> Sequence[str]:
        raise NotImplementedError
