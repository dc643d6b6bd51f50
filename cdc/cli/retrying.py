"""`cdc dead-letters retry`: asks the service for another attempt, by way of the state, and watches what comes of it."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cdc.cli.output import console, counted
from cdc.cli.stored import changes, count, pages
from cdc.config import Config
from cdc.state import CallbackState, LetterFilter, LetterState, StateStore
from cdc.state.owner import is_owned

__all__ = ["Outcome", "retry", "told"]


@dataclass(slots=True)
class Outcome:
    """What came of it, as far as it was waited for.

    `waiting` letters are tried later: those of handlers in `held`, with the reason and what to do about it, and
    all of them when no service runs.
    """

    requested: int
    running: bool
    waited: bool
    delivered: int = 0
    failed: int = 0
    waiting: int = 0
    held: Mapping[str, str] | None = None
    is_held: bool = False  # all that wait are letters of handlers in `held`

    def to_dict(self) -> dict[str, Any]:
        """As `cdc dead-letters retry --json` prints it."""
        return {
            "requested": self.requested,
            "running": self.running,
            "waited": self.waited,
            "delivered": self.delivered,
            "failed": self.failed,
            "waiting": self.waiting,
            "held": self.held or {},
        }


def retry(store: StateStore, config: Config, wanted: LetterFilter, *, wait: bool) -> Outcome:
    """Ask for it; with `wait`, stay until no letter waits any more that a running service can deliver."""
    begun = datetime.now(UTC)
    running = is_owned(config.state.url)  # before the request: a service that ends at it is waited for, and found gone
    requested = store.request_retry(wanted)
    outcome = Outcome(requested, running, waited=False, waiting=requested)
    if not requested:
        return outcome
    names = [total.callback for total in store.letter_totals() if total.retry and _concerns(wanted, total.callback)]
    outcome.held = _held(store, config, names)
    outcome.is_held = bool(outcome.held) and outcome.held.keys() == set(names)  # a quick service has left no names
    if wait and outcome.running:
        outcome.waited = True
        _wait(store, config, outcome, set(names) - outcome.held.keys())
        outcome.held = _held(store, config, names)
        outcome.is_held = bool(outcome.held) and outcome.running  # all others were waited for
        outcome.waiting = count(store, replace(wanted, retry=True), requested)
        outcome.failed = _failed_again(store, wanted, begun)
        outcome.delivered = max(requested - outcome.waiting - outcome.failed, 0)
    return outcome


def _concerns(wanted: LetterFilter, name: str) -> bool:
    return wanted.callback in (None, name)


def _held(store: StateStore, config: Config, names: Collection[str]) -> dict[str, str]:
    """Those of the handlers that get nothing as things are, and why."""
    states = {record.name: record.state for record in store.callbacks()}
    configured = {handler.name for handler in config.handlers}
    held = {}
    for name in names:
        if name not in configured:
            held[name] = (
                f"it is not in the configuration; give its letters up: cdc dead-letters discard --handler {name}"
            )
        elif states.get(name) in (CallbackState.REMOVED, CallbackState.PAUSED):
            held[name] = f"it is {states[name]}; first: cdc handlers resume {name}"
    return held


def _wait(store: StateStore, config: Config, outcome: Outcome, names: Collection[str]) -> None:
    """Until none of these handlers has a letter that waits, or the service has ended, or has removed them."""
    with Progress(
        TextColumn("retrying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    ) as progress:  # fmt: skip
        task = None
        for _ in changes(store):
            left = {total.callback: total.retry for total in store.letter_totals() if total.callback in names}
            waiting = sum(left.values()) - sum(left.get(name, 0) for name in _held(store, config, names))
            task = progress.add_task("", total=waiting) if task is None else task
            progress.update(task, completed=(progress.tasks[0].total or 0) - waiting)
            if not waiting:
                return
            if not is_owned(config.state.url):
                outcome.running = False
                return


def _failed_again(store: StateStore, wanted: LetterFilter, begun: datetime) -> int:
    """Letters that are older than our request, and were tried since."""
    same = LetterFilter(ids=wanted.ids, callback=wanted.callback, table=wanted.table, state=LetterState.FAILED)
    return sum(
        letter.first_time <= begun < letter.last_time and not letter.retry
        for page in pages(store, same)
        for letter in page
    )


def told(outcome: Outcome) -> list[str]:
    """The same for people, a sentence each."""
    lines = []
    if outcome.delivered or outcome.failed:
        lines.append(f"{counted(outcome.delivered, 'dead letter')} delivered, {outcome.failed:,} failed again")
    if outcome.failed:
        lines.append("what failed: cdc dead-letters list")
    held = outcome.held or {}
    if not outcome.waiting:
        return lines
    if outcome.is_held:
        lines.append(f"{counted(outcome.waiting, 'dead letter')} {'waits' if outcome.waiting == 1 else 'wait'}")
        return [*lines, *(f"for {name}: {reason}" for name, reason in held.items())]
    when = "within a second" if outcome.running else "when the service is started: cdc run"
    lines.append(f"{counted(outcome.waiting, 'dead letter')} tried again {when}")
    return [*lines, *(f"but not those of {name}: {reason}" for name, reason in held.items())]
