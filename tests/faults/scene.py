"""A server, a service through a proxy, a workload and the oracles that watch it: what every fault happens to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import make_conninfo

from tests.conftest import Database
from tests.faults.oracle import InOrder, Oracle, PerKey
from tests.faults.proxy import Proxy
from tests.faults.workload import Workload
from tests.running import POLL_SECONDS, Child, child, wait_until, walsender

EVENT_TYPES = ["create", "update", "delete", "truncate"]
HANDLERS: Mapping[str, Mapping[str, Any]] = {
    "ordered": {"callback": "tests.faults.recorder:Record", "event_types": EVENT_TYPES},
    "parallel": {"callback": "tests.faults.recorder:Parallel", "event_types": EVENT_TYPES, "concurrency": 4},
}
"""One lane, and four."""
SETTLE_SECONDS = 60


class Scene:
    """All of it. `start` begins with empty tables and a new slot, so that the shadow can be the source."""

    def __init__(self, database: Database, service: Child, proxy: Proxy | None, workload: Workload) -> None:
        self.database = database
        self.service = service
        self.workload = workload
        self._proxy = proxy
        self.ordered = InOrder(service.path("ordered"))
        self.parallel = PerKey(service.path("parallel"))

    @property
    def proxy(self) -> Proxy:
        """Between the service and the server."""
        assert self._proxy is not None, "this scene has no proxy"
        return self._proxy

    @property
    def oracles(self) -> dict[str, Oracle]:
        """By handler."""
        return {"ordered": self.ordered, "parallel": self.parallel}

    def start(self, failpoint: str = "") -> None:
        """The service with a fault (see `tests.faults.failpoints`), its slot, and the first transaction."""
        self.service.start()
        self.workload.open_accounts(self.database)
        if failpoint:
            self.stop()
            self.begin(failpoint)

    def begin(self, failpoint: str = "") -> None:
        """Start the service again, after `killed` or `stop`."""
        self.service.program = "tests.faults.failpoints" if failpoint else "cdc.cli"
        self.service.environment = {"CDC_FAILPOINT": failpoint}
        self.service.begin()

    def stop(self) -> None:
        """A clean end of the service."""
        self.service.stop()
        self.note_state()

    def kill(self) -> None:
        """kill -9."""
        self.service.kill()
        self.note_state()

    def wait_for_kill(self, timeout: float = SETTLE_SECONDS) -> None:
        """Until it has killed itself at its failpoint."""
        code = self.service.wait(timeout)
        assert code == -9, f"exit {code}:\n{self.service.tail()}"
        self.note_state()

    def note_state(self) -> None:
        """The process has gone: hold its durable state against what was delivered."""
        store = self.service.state()
        try:
            settled = {record.name: record.settled for record in store.callbacks()}
        finally:
            store.close()
        for name, oracle in self.oracles.items():
            oracle.restarted(settled.get(name))

    @property
    def http_port(self) -> int:
        """Of its endpoints, with ``http={"enabled": True, "port": 0}``: chosen by the process, so nobody else's."""
        return int(self.service.log("http_listening")[-1]["port"])

    def read(self) -> None:
        """Let the oracles see what is new."""
        for oracle in self.oracles.values():
            oracle.read()

    def wait_for_events(self, more: int, timeout: float = SETTLE_SECONDS) -> None:
        """Until the ordered handler has got so many more than now."""
        target = self.ordered.events + more
        self._wait(lambda: self.ordered.events >= target, timeout, f"{more} more events")

    def settle(self, timeout: float = SETTLE_SECONDS) -> None:
        """With the workload at rest: wait until all has arrived, and hold the shadows against the source."""
        for name, oracle in self.oracles.items():
            self._wait(lambda oracle=oracle: oracle.has_all(self.database), timeout, f"all events of {name}")
            oracle.assert_complete(self.database)

    def _wait(self, condition: Any, timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while True:
            self.read()
            if condition():
                return
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}\n{self.service.tail()}"
            time.sleep(POLL_SECONDS)

    def walsender(self) -> int | None:
        """Process id of the walsender, None while nobody streams."""
        return walsender(self.database.cluster, self.service.slot)

    def wait_for_walsender(self) -> int:
        """Its process id, as soon as there is one: where timeouts are short, a machine that stood still has cost it."""
        found: list[int] = []

        def streams() -> bool:
            found.extend(pid for pid in [self.walsender()] if pid is not None)
            return bool(found)

        wait_until(streams, SETTLE_SECONDS, "a walsender")
        return found[0]


@contextmanager
def scene(
    database: Database,
    folder: Path,
    seed: object,
    *,
    through_proxy: bool = False,
    options: str = "",
    writers: int = 3,
    pause: float = 0.015,
    prepare: bool = True,
    **sections: Mapping[str, Any],
) -> Iterator[Scene]:
    """Everything made, nothing started; `options` are settings of the service's sessions, as libpq has them."""
    if prepare:
        Workload.prepare(database)
    workload = Workload(database, seed, writers=writers, pause=pause)
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"options": options} if options else {}
    if not through_proxy:
        with child(folder, make_conninfo(database.dsn, **extra), HANDLERS, **sections) as service:
            yield Scene(database, service, None, workload)
        return
    with Proxy(database.cluster.port) as proxy:
        dsn = database.cluster.dsn(database.name, tcp=True, port=str(proxy.port), **extra)
        with child(folder, dsn, HANDLERS, **sections) as service:
            yield Scene(database, service, proxy, workload)
