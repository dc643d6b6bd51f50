"""`cdc status --watch`: the status again and again, in place on a terminal, else one after the other."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.live import Live

from cdc.cli.interrupts import let_go_of_stdout, until_signal
from cdc.cli.output import PIPE_WIDTH
from cdc.cli.picture import Picture, of_records, of_service, rendered
from cdc.config import SlotGuardConfig
from cdc.guard import Guard
from cdc.slots import SlotInfo
from cdc.state import CallbackRecord, Checkpoint, LetterTotal

__all__ = ["Found", "watch"]


class Found(Protocol):
    """What `cdc status` could learn."""

    slot: SlotInfo | None
    checkpoint: Checkpoint | None
    callbacks: list[CallbackRecord]
    letters: list[LetterTotal]
    live: dict[str, Any] | None
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As `cdc status --json` prints it."""


def watch(look: Callable[[], Awaitable[Found]], slot: str, seconds: float, *, as_json: bool) -> None:
    """Look every `seconds` until Ctrl-C, SIGTERM, or nobody reads any more."""
    with ExitStack() as stack:
        show: Callable[[RenderableType], None] = _print
        if sys.stdout.isatty() and not as_json:
            live = Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="ellipsis")
            stack.enter_context(live)
            show = _updater(live)
        try:
            asyncio.run(_forever(look, slot, seconds, None if as_json else show))
        except BrokenPipeError:
            let_go_of_stdout()


async def _forever(
    look: Callable[[], Awaitable[Found]], slot: str, seconds: float, show: Callable[[RenderableType], None] | None
) -> None:
    async def work() -> None:
        before: tuple[dict[str, Any], float] | None = None
        guard = Guard(SlotGuardConfig())  # it measures; what it finds is the service's to say
        while True:
            began = monotonic()
            found = await look()
            now = datetime.now(UTC).strftime("%H:%M:%SZ")
            guard.note(found.slot, began)
            if show is None:
                _write(json.dumps({"time": datetime.now(UTC).isoformat(), **found.to_dict()}, default=str) + "\n")
            else:
                show(rendered(_picture(found, guard, before, began), slot, now))
            before = None if found.live is None else (found.live, began)
            await asyncio.sleep(max(seconds - (monotonic() - began), 0.05))

    await until_signal(work())


def _picture(found: Found, guard: Guard, before: tuple[dict[str, Any], float] | None, now: float) -> Picture:
    if found.live is None:
        left = guard.seconds_to_invalidation
        return of_records(found.slot, left, found.checkpoint, found.callbacks, found.letters, found.problems)
    earlier, since = before or (None, now)
    return of_service(found.live, earlier, now - since)


def _updater(live: Live) -> Callable[[RenderableType], None]:
    return lambda picture: live.update(picture, refresh=True)


def _print(picture: RenderableType) -> None:
    out = io.StringIO()
    Console(file=out, highlight=False, width=PIPE_WIDTH, no_color=True).print(picture)
    _write("\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
