"""The `redis_stream` handler: each event an entry of a Redis stream, once, in commit order.

Owns the form of an entry and where it stands in its stream; must not know the connection, which is
`handlers.redis_server`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import monotonic
from typing import Literal

import structlog
from pydantic import Field, ValidationInfo, field_validator

from cdc import DatabaseEvent, PermanentError, traceparent
from handlers.name_template import NameTemplate
from handlers.redis_server import MAX_SCRIPT_BYTES, Argument, Call, RedisOptions, RedisServer, Script

__all__ = ["RedisStream", "RedisStreamOptions"]

_log = structlog.get_logger(__name__)

LATE_LOG_SECONDS = 60.0
"""Between two lines about late entries: of a stream of another server's history, every event is one."""
MAX_LATE = 100_000
"""Late entries whose positions are remembered, per stream: some megabytes; past it the oldest are forgotten."""


class RedisStreamOptions(RedisOptions):
    """Options of the `redis_stream` handler."""

    stream: str = Field(
        default="{schema}.{table_name}",
        description="Name of the stream: a text with `{schema}`, `{table_name}`, `{event_type}`, `{record_id}` or"
        " columns in it. A fixed name puts all tables into one stream, in commit order.",
    )
    entry_ids: Literal["position", "auto"] = Field(
        default="position",
        description='`"position"`: an entry\'s id is commit LSN and ordinal, so that no event is in the stream twice.'
        ' `"auto"`: the server\'s time; an event that is delivered twice is in the stream twice.',
    )
    max_length: int | None = Field(
        default=None, gt=0, description="Keep about so many of the newest entries (`MAXLEN ~`); without it, all."
    )
    max_age_seconds: float | None = Field(
        default=None,
        gt=0,
        description='Keep about the entries of so many seconds (`MINID ~`); only with `entry_ids = "auto"`.',
    )

    @field_validator("stream")
    @classmethod
    def _is_template(cls, value: str) -> str:
        NameTemplate(value)
        return value

    @field_validator("max_age_seconds")
    @classmethod
    def _is_possible(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("max_length") is not None:
            raise ValueError("a stream is trimmed by max_length or by max_age_seconds, not by both")
        if value is not None and info.data.get("entry_ids") == "position":
            raise ValueError('needs entry_ids = "auto": the ids of positions are no times')
        return value


# What is appended in order is found by its id. An id that is refused belongs to an event that is there already, or
# to one that comes late: a dead letter that is tried again, or another server's history. The former has its own
# entry, or stands before everything that trimming has left; the latter is put at the end, and remembered by its
# identity, as its id is another one. Stops at the first other error: an entry after a missing one would make that
# one late.
#
# KEYS: stream, its late entries. ARGV: "MAXLEN" or "", its number, how many late ones to remember, then five per
# entry: id, identity, event type and table, event, its trace or "".
_BY_POSITION = Script("""
local stream, late = KEYS[1], KEYS[2]
local trims = ARGV[1] ~= ""
local added, appended = 0, 0
local function add(id, i)
    local fields = {id, "position", ARGV[i + 1], "kind", ARGV[i + 2], "event", ARGV[i + 3]}
    if ARGV[i + 4] ~= "" then fields[8], fields[9] = "traceparent", ARGV[i + 4] end
    if trims then return redis.pcall("XADD", stream, "MAXLEN", "~", ARGV[2], unpack(fields)) end
    return redis.pcall("XADD", stream, unpack(fields))
end
local function before(a, b)
    local a1, a2, b1, b2 = a:match("^(%d+)"), a:match("%-(%d+)$"), b:match("^(%d+)"), b:match("%-(%d+)$")
    if #a1 ~= #b1 then return #a1 < #b1 end
    if a1 ~= b1 then return a1 < b1 end
    if #a2 ~= #b2 then return #a2 < #b2 end
    return a2 < b2
end
local function is_there(i)
    local same = redis.call("XRANGE", stream, ARGV[i], ARGV[i])[1]
    if same and same[2][1] == "position" and same[2][2] == ARGV[i + 1] then return true end
    if redis.call("ZSCORE", late, ARGV[i + 1]) then return true end
    local first = trims and redis.call("XRANGE", stream, "-", "+", "COUNT", 1)[1]
    return first and before(ARGV[i], first[1])
end
for i = 4, #ARGV, 5 do
    local answer = add(ARGV[i], i)
    if type(answer) ~= "table" or not answer.err then
        added = added + 1
    elseif not answer.err:find("equal or smaller", 1, true) then
        return answer
    elseif not is_there(i) then
        local info, last = redis.call("XINFO", "STREAM", stream), nil
        for n = 1, #info, 2 do
            if info[n] == "last-generated-id" then last = info[n + 1] end
        end
        answer = add(string.format("%s-%.0f", last:match("^%d+"), last:match("%d+$") + 1), i)
        if type(answer) == "table" and answer.err then return answer end
        redis.call("ZADD", late, redis.call("TIME")[1], ARGV[i + 1])
        redis.call("ZREMRANGEBYRANK", late, 0, -tonumber(ARGV[3]) - 1)
        appended = appended + 1
    end
end
return {added, appended}
""")

# The same form, with ids of the server's. A retry begins anew: stopping at an error keeps the order, at least.
# KEYS: stream. ARGV: "MAXLEN", "MINID" or "", its number (of MINID: milliseconds back), then four per entry.
_BY_TIME = Script("""
local limit = ARGV[2]
if ARGV[1] == "MINID" then
    local now = redis.call("TIME")
    limit = string.format("%.0f", now[1] * 1000 - tonumber(limit))
end
for i = 3, #ARGV, 4 do
    local fields = {"*", "position", ARGV[i], "kind", ARGV[i + 1], "event", ARGV[i + 2]}
    if ARGV[i + 3] ~= "" then fields[8], fields[9] = "traceparent", ARGV[i + 3] end
    local answer
    if ARGV[1] == "" then
        answer = redis.pcall("XADD", KEYS[1], unpack(fields))
    else
        answer = redis.pcall("XADD", KEYS[1], ARGV[1], "~", limit, unpack(fields))
    end
    if type(answer) == "table" and answer.err then return answer end
end
return {(#ARGV - 2) / 4, 0}
""")


class RedisStream:
    """Append each event to the stream that its template names; settled when the server has answered for all.

    An entry has the fields ``position`` (position and commit time, which together name the event), ``kind``
    (``create public.users``), ``event`` (the event as JSON), and ``traceparent`` where the event has one.
    """

    def __init__(self, options: RedisStreamOptions) -> None:
        self._options = options
        self._server = RedisServer(options)
        self._stream = NameTemplate(options.stream)
        self._late = 0
        self._late_told = 0.0

    async def open(self) -> None:
        """Connect; CallbackError when the server may lose what it acknowledges, and that is not accepted."""
        await self._server.open()

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Append the events to their streams, in one round trip."""
        streams: dict[str, list[DatabaseEvent]] = {}
        for event in events:
            streams.setdefault(self._name(event), []).append(event)
        calls = [call for name, share in streams.items() for call in self._calls(name, share)]
        answers = await self._server.run(calls)
        self._tell_late(sum(late for _, late in answers))

    async def close(self) -> None:
        """Let the connection go; a second call does nothing."""
        await self._server.close()

    def _name(self, event: DatabaseEvent) -> str:
        name = self._stream.of(event)
        if name is None:
            raise PermanentError(f"{event.kind.table}: no stream, a value in {self._stream.text!r} is NULL")
        return name

    def _calls(self, name: str, events: Sequence[DatabaseEvent]) -> Iterator[Call]:
        """One script with all of them, or several: one blocks the server, and its arguments have a limit."""
        by_position = self._options.entry_ids == "position"
        script = _BY_POSITION if by_position else _BY_TIME
        keys = [name, f"{name}:late"] if by_position else [name]
        head = [*self._trimming(), MAX_LATE] if by_position else self._trimming()
        arguments, size = list(head), 0
        for event in events:
            data = event.to_json()
            if size and size + len(data) > MAX_SCRIPT_BYTES:
                yield script, keys, arguments
                arguments, size = list(head), 0
            position = event.position
            if by_position:
                arguments.append(f"{int(position.commit_lsn)}-{position.ordinal}")
            identity, kind = f"{position} {event.timestamp.isoformat()}", f"{event.event_type} {event.kind.table}"
            arguments += (identity, kind, data, traceparent(event) or "")
            size += len(data)
        yield script, keys, arguments

    def _trimming(self) -> list[Argument]:
        if (age := self._options.max_age_seconds) is not None:
            return ["MINID", int(age * 1000)]
        return ["", 0] if self._options.max_length is None else ["MAXLEN", self._options.max_length]

    def _tell_late(self, count: int) -> None:
        self._late += count
        if self._late and monotonic() - self._late_told >= LATE_LOG_SECONDS:
            _log.warning("events_appended_late", events=self._late)
            self._late, self._late_told = 0, monotonic()
