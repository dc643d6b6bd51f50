"""Commands that go on until somebody has seen enough: Ctrl-C, SIGTERM and a closed pipe are good ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any

__all__ = ["let_go_of_stdout", "until_signal"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


async def until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Work until its end, or until a signal; whether it was a signal. A second one ends the process."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopped.set)
    task, stopping = loop.create_task(work), loop.create_task(stopped.wait())
    await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        task.result()
        return False
    task.cancel()
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
    await asyncio.gather(task, return_exceptions=True)
    return True


def let_go_of_stdout() -> None:
    """Nobody reads it any more: what still lies in its buffer must not become an error at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
