"""The one thread that may touch the state store, and shows the store's server that its owner lives.

It works off jobs in order for the event loop. From here, not from the loop, it pings: a callback may block
the loop for longer than the server waits for a sign of life.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from cdc.errors import StateError
from cdc.state.records import StateStore

__all__ = ["PING_SECONDS", "StateThread"]

PING_SECONDS = 1.0
"""Between two signs of life: two may be lost or late before a server gives the state to another owner."""

T = TypeVar("T")


class StateThread:
    """See the module. Set `store` once it is open. The thread is a daemon: a disk that hangs keeps nobody alive."""

    def __init__(self) -> None:
        self.store: StateStore | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._closed = False
        self._alive = monotonic()
        self._lost = ""
        self._thread = threading.Thread(target=self._run, name="cdc-state", daemon=True)
        self._thread.start()

    @property
    def last_alive(self) -> float:
        """Until when, in monotonic seconds, the state is known to have been ours; a file stays ours."""
        return self._alive if self._is_leased() else monotonic()

    @property
    def lost(self) -> str:
        """Why the last ping failed; "" when it did not."""
        return self._lost

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run `function` in the thread, after all that was asked before."""
        if self._closed:
            raise RuntimeError("the state's thread is closed")
        job = _Job(lambda: function(*args, **kwargs))
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Wait for what was asked, and end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        due = monotonic() + PING_SECONDS
        while True:
            try:
                job = self._jobs.get(timeout=max(0.0, due - monotonic()))
            except Empty:
                pass
            else:
                if job is None:
                    return
                job.work()
                del job  # while it waits, the thread holds no events
            if monotonic() >= due:
                self._ping()
                due = monotonic() + PING_SECONDS

    def _is_leased(self) -> bool:
        return self.store is not None and self.store.leased

    def _ping(self) -> None:
        if self.store is None or not self.store.leased:
            return
        began = monotonic()  # the server's clock starts no earlier
        try:
            self.store.ping()
        except StateError as error:
            self._lost = str(error)
        else:
            self._alive, self._lost = began, ""


class _Job:
    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def work(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - whoever asked for it gets whatever it was
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
