"""What `cdc status --watch` shows of one moment: of the running service, or of server and state without it.

Owns the choice of figures and their words; must not know where they came from or what they are shown on. The names
of `live` are those of `cdc.status.Status`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cdc.cli.output import human_bytes, table
from cdc.logs import clean
from cdc.slots import SlotInfo
from cdc.state import CallbackRecord, CallbackState, Checkpoint, LetterState, LetterTotal

__all__ = ["Picture", "Row", "of_records", "of_service", "rendered"]

Live = Mapping[str, Any]
BUSIEST = 5  # tables and types in a line
_ACTIVE = CallbackState.ACTIVE.value
_COLUMNS = (
    "callback",
    "state",
    "events/s",
    "latency",
    "p99",
    "ok",
    "failed",
    "dead",
    "parked",
    "behind",
    "note",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One callback; what is not known is None. `note`: why it waits, was removed, or failed last."""

    name: str
    state: str
    rate: float | None = None
    latency: float | None = None
    p99: float | None = None
    ok: int | None = None
    failed: int | None = None
    dead_letters: int = 0
    parked: int = 0
    behind: float | None = None
    note: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nobody has to look at it."""
        return self.state == _ACTIVE and not (self.dead_letters or self.parked or self.note)

    def cells(self) -> Sequence[str]:
        """In the order of the columns."""
        counts = [_count(value) for value in (self.ok, self.failed, self.dead_letters or None, self.parked or None)]
        times = (_duration(self.latency), _duration(self.p99))
        return self.name, self.state, _rate(self.rate), *times, *counts, _duration(self.behind), self.note


@dataclass(frozen=True, slots=True)
class Picture:
    """A headline, what is wrong, the figures in groups, and the callbacks: those in trouble first."""

    headline: str
    is_well: bool
    troubles: Sequence[str]
    figures: Sequence[tuple[str, str]]
    rows: Sequence[Row]


def of_service(live: Live, before: Live | None, seconds: float) -> Picture:
    """Of what the service says; `before` is what it said `seconds` ago, for the rates that it does not tell."""
    troubles = [*live.get("not_ready", []), *live.get("not_alive", [])]
    if live.get("last_error"):
        troubles.append(f"last error: {live['last_error']}")
    ready = "ready" if live.get("ready") else "not ready"
    return Picture(
        headline=f"{live.get('phase')}, {ready}, up {_duration(live.get('uptime_seconds'))}",
        is_well=bool(live.get("ready")),
        troubles=troubles,
        figures=list(_figures(live, before, seconds)),
        rows=_in_order(_rows(live, before, seconds)),
    )


def _figures(live: Live, before: Live | None, seconds: float) -> Iterator[tuple[str, str]]:
    rates = live.get("rates") or _rates(live, before, seconds)
    events, transactions = _rate(rates.get("events_per_second")), _rate(rates.get("transactions_per_second"))
    size = human_bytes(_whole(rates.get("bytes_per_second")))
    yield "throughput", f"{events} events/s, {transactions} tx/s, {size}/s"
    if busiest := live.get("activity"):
        yield "busiest", ", ".join(_busy(item) for item in busiest[:BUSIEST])
    yield "lag", f"{_duration(live.get('lag_seconds'))}, {human_bytes(live.get('lag_bytes'))} of WAL"
    if slot := live.get("slot"):
        yield "slot", _slot(slot, live)
        yield "held by", live.get("slot_held_by") or "nobody: all is settled"
    queue = live.get("queue") or {}
    events = f"{queue.get('events', 0):,} of {queue.get('limit_events', 0):,} events"
    size = f"{human_bytes(queue.get('bytes'))} of {human_bytes(queue.get('limit_bytes'))}"
    yield "queue", f"{events}, {size}{'; reading waits for room' if queue.get('held_back') else ''}"
    checkpoint = live.get("checkpoint") or {}
    yield "checkpoint", f"{checkpoint.get('lsn') or '-'}, {_duration(checkpoint.get('age_seconds'))} old"


def _slot(slot: Live, live: Live) -> str:
    safe, left = slot.get("safe_wal_bytes"), slot.get("seconds_to_invalidation")
    until = "no limit" if safe is None else f"{human_bytes(max(safe, 0))} until it is lost"
    when = "" if left is None else f", in {_duration(left)} at this rate"
    user = slot.get("active_pid")
    state = slot.get("invalidation") or slot.get("wal_status") or "-"
    if live.get("slot_invalidated"):
        state = f"INVALIDATED ({state})"
    return (
        f"{slot.get('name')}: keeps {human_bytes(slot.get('retained_bytes'))}, {until}{when};"
        f" {state}, {'in use by process ' + str(user) if user else 'not in use'}"
    )


def _rows(live: Live, before: Live | None, seconds: float) -> Iterator[Row]:
    known = {item["name"]: item for item in (before or {}).get("callbacks", [])}
    letters = {(item["callback"], item["state"]): item["count"] for item in live.get("dead_letters", [])}
    for item in live.get("callbacks", []):
        name, rate = item["name"], item.get("events_per_second")
        if rate is None and name in known and seconds > 0:
            rate = max(item["ok"] - known[name]["ok"], 0) / seconds
        recent = item.get("recent_mean_seconds")
        yield Row(
            name=name,
            state=item["state"],
            rate=rate,
            latency=recent if recent is not None else item["mean_seconds"] or None,
            p99=item.get("recent_p99_seconds"),
            ok=item["ok"],
            failed=item["failed"] + item["timeout"],
            dead_letters=letters.get((name, LetterState.FAILED.value), 0),
            parked=letters.get((name, LetterState.PARKED.value), 0),
            behind=item["holdback_seconds"],
            note=item["held"] or item["last_error"],
        )


def _rates(live: Live, before: Live | None, seconds: float) -> dict[str, float]:
    """What a service does not tell while nobody measures: from what it has counted."""
    if before is None or seconds <= 0:
        return {}
    counted = [name for name in ("events", "transactions") if name in live and name in before]
    return {f"{name}_per_second": max(live[name] - before[name], 0) / seconds for name in counted}


def _busy(item: Live) -> str:
    return f"{item['table']} {item['event_type']} {_rate(item['events_per_second'])}/s"


def of_records(
    slot: SlotInfo | None,
    left: float | None,
    checkpoint: Checkpoint | None,
    callbacks: Sequence[CallbackRecord],
    letters: Sequence[LetterTotal],
    problems: Sequence[str],
) -> Picture:
    """Of what server and state say while no service answers; `left`: seconds until the slot is invalidated."""
    figures = []
    if slot is not None:
        figures += [
            ("lag", f"{human_bytes(slot.lag_bytes)} of WAL"),
            ("slot", _slot(slot.to_dict() | {"seconds_to_invalidation": left}, {})),
        ]
    if checkpoint is not None:
        figures.append(("checkpoint", f"{checkpoint.flushed_lsn}, event {checkpoint.last_event_id}"))
    totals = {(total.callback, total.state): total.count for total in letters}
    rows = [
        Row(
            name=record.name,
            state=str(record.state),
            dead_letters=totals.get((record.name, LetterState.FAILED), 0),
            parked=totals.get((record.name, LetterState.PARKED), 0),
            note=record.reason,
        )
        for record in callbacks
    ]
    return Picture("no service answers here (cdc run)", False, problems, figures, _in_order(rows))


def _in_order(rows: Iterator[Row] | Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row.is_well)


def rendered(picture: Picture, slot: str, time: str) -> RenderableType:
    """For a terminal or a file; nothing in it is markup."""
    style = "bold green" if picture.is_well else "bold red"
    parts: list[RenderableType] = [Text.assemble((f"{slot}  ", "bold"), (clean(picture.headline), style), f"  {time}")]
    parts += [Text.assemble(("  ! ", "bold red"), clean(trouble)) for trouble in picture.troubles]
    figures = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in picture.figures:
        figures.add_row(Text(name, style="dim"), Text(clean(value)))
    parts.append(figures)
    if picture.rows:
        parts.append(table("", _COLUMNS, [row.cells() for row in picture.rows]))
    return Group(*parts)


def _rate(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _duration(seconds: float | None) -> str:
    """0.00042 → "0.42 ms", 75 → "1 min 15 s"."""
    if seconds is None:
        return "-"
    if 0 < seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
