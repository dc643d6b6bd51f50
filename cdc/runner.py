"""The process around the service: event loop, signals, garbage collector, endpoints, exit.

A callback may leave a coroutine that swallows its cancellation, or a thread that never returns;
neither may keep the process from ending, so the loop is not run by `asyncio.run`, which waits for all.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import socket
import sys
import threading
import time

import structlog

from cdc.config import Config
from cdc.hangups import Hangups
from cdc.http import HttpServer
from cdc.service import Service

__all__ = ["run"]

log = structlog.get_logger("cdc.runner")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
RELOAD_SIGNAL = signal.SIGHUP
GRACE_SECONDS = 12.0
"""Past the drain deadline, what a stop may take: callbacks that are cancelled and closed (4 s), removals
on record (2 s), the last checkpoint, the end of the stream (3 s), strays (1 s)."""
STRAY_SECONDS = 1.0
"""How long what is left on the loop may take to end after its cancellation."""


def run(config: Config, *, accept_gap: bool = False, hangups: Hangups | None = None) -> None:
    """Run the service until SIGTERM or SIGINT, which drain; a second one ends the process at once, exit 1.

    SIGHUP reloads; `hangups` may have heard one already. Raises the CdcError that ended the service.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(_serve(config, hangups or Hangups(), accept_gap=accept_gap))
    finally:
        strays = _cancel_all(loop)
        sys.stdout.flush()
        sys.stderr.flush()
        if strays:
            log.warning("calls_abandoned", calls=strays)
            if sys.exc_info()[0] is None:
                os._exit(0)  # the interpreter would wait for them, or complain about each
        else:
            loop.close()


async def _serve(config: Config, hangups: Hangups, *, accept_gap: bool) -> None:
    service = Service(config, accept_gap=accept_gap)
    _handle_signals(service, hangups)
    _calm_garbage_collector()
    async with HttpServer(service):  # first, so that a port in use stops us here; and until the end
        await service.run()


def _handle_signals(service: Service, hangups: Hangups) -> None:
    """Signals are heard by a thread of its own: a callback that blocks the event loop must not keep us alive.

    Python's C-level handler writes the signal's number to the socket at once, whatever the main thread does.
    """
    hear, tell = socket.socketpair()
    tell.setblocking(False)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    for number in (*STOP_SIGNALS, RELOAD_SIGNAL):
        signal.signal(number, lambda *_: None)
    patience = service.config.signal.drain_timeout_seconds + GRACE_SECONDS
    obey = functools.partial(_obey, hear, tell, asyncio.get_running_loop(), service, hangups, patience)
    threading.Thread(target=obey, name="cdc-signals", daemon=True).start()
    if hangups.asked:
        service.reload()


def _obey(
    hear: socket.socket,
    _tell: socket.socket,
    loop: asyncio.AbstractEventLoop,
    service: Service,
    hangups: Hangups,
    patience: float,
) -> None:
    """SIGHUP reloads; the first other signal drains; the second, or a drain that does not end, ends it all: exit 1.

    Nothing more is acknowledged then: what was saved stays, the rest comes again.
    """
    number = _next_signal(hear)
    while number == RELOAD_SIGNAL and not hangups.lost_terminal():
        loop.call_soon_threadsafe(service.reload)
        number = _next_signal(hear)
    name = signal.Signals(number).name
    loop.call_soon_threadsafe(_stop, service, name)
    deadline = time.monotonic() + patience
    try:
        while _next_signal(hear, deadline) == RELOAD_SIGNAL:
            loop.call_soon_threadsafe(service.reload)  # which says that it is too late
    except TimeoutError:
        log.error("stuck", hint="a callback blocks the event loop; what it had in work comes again")  # noqa: TRY400
    os._exit(1)


def _next_signal(hear: socket.socket, deadline: float | None = None) -> int:
    while True:
        hear.settimeout(None if deadline is None else max(deadline - time.monotonic(), 0.001))
        if (number := hear.recv(1)[0]) in (*STOP_SIGNALS, RELOAD_SIGNAL):
            return number


def _stop(service: Service, name: str) -> None:
    log.info("stopping", signal=name)
    service.stop()


def _calm_garbage_collector() -> None:
    """Events hold no reference cycles: keep the collector from walking all that is queued, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _cancel_all(loop: asyncio.AbstractEventLoop) -> int:
    """Cancel what is left and give it a moment; how many tasks do not end."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = loop.run_until_complete(asyncio.wait(tasks, timeout=STRAY_SECONDS))
    return len(tasks)
