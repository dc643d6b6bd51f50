"""A thread that works off jobs in order for one event loop, and cannot keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

__all__ = ["DaemonThread"]

_Job = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class DaemonThread:
    """See the module. Whoever sets `abandoned` does not want what the job in work still brings."""

    def __init__(self, name: str, ended: Callable[[], None] | None = None) -> None:
        self.abandoned = False
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run `job` in the thread, unless the future is cancelled before; it gets the result or exception."""
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def end(self) -> None:
        """Let the thread end after the jobs it has; it is of no more use."""
        self.abandoned = True
        self._jobs.put(None)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            if not self._work(*item):
                return
            del item  # while it waits, the thread holds no events
        if self._ended is not None:
            self._report(self._ended)

    def _work(self, job: Callable[[], Any], future: asyncio.Future[Any]) -> bool:
        if future.cancelled():
            return True
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - a callback may raise anything, SystemExit too
            return self._report(_reject, future, error)
        return self._report(_resolve, future, result)

    def _report(self, function: Callable[..., None], *args: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is closed: the process is on its way out
            return False
        return True


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _reject(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        # A future cannot carry StopIteration.
        future.set_exception(RuntimeError("StopIteration") if isinstance(error, StopIteration) else error)
