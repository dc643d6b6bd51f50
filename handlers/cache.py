"""The `cache` handler: keys in Redis that follow the rows, invalidated or written anew, never set back to an older row.

Owns which keys a change touches and what becomes of them; must not know the connection, which is
`handlers.redis_server`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator

from cdc import DatabaseEvent, EventType, HandlerOptions, PermanentError, Position, PostgresValue, to_json
from handlers.name_template import NameTemplate, value_text
from handlers.redis_server import MAX_SCRIPT_BYTES, Argument, Call, RedisOptions, RedisServer, Script

__all__ = ["Cache", "CacheOptions", "CacheRule"]

SCAN_COUNT = 1000  # keys the server looks at per step: well under a millisecond of its time
_GLOB = re.compile(r"([*?\[\]\\^-])")  # what SCAN's patterns give a meaning of their own


class CacheRule(HandlerOptions):
    """Which key of which tables, and what becomes of it."""

    tables: list[str] = Field(default=["*"], description="Tables as globs over `schema.table`.")
    key: str = Field(
        description="The key: a text with `{schema}`, `{table_name}`, `{record_id}` or columns in it; begins with text."
    )
    action: Literal["delete", "json", "hash"] = Field(
        default="delete",
        description='Of a created or updated row: `"delete"` its key (whoever reads next fetches the row), or write the'
        ' row there as a `"json"` object or a `"hash"`. Of a deleted row the key is always deleted.',
    )
    columns: list[str] = Field(default=[], description="Columns to write; without any, all.")
    ttl_seconds: float | None = Field(
        default=None, gt=0, description="How long a written key lives; without it, for ever."
    )
    old_key: Literal["required", "if_known"] = Field(
        default="required",
        description="When a column in `key` may have changed and the replica identity does not tell its old value:"
        ' `"required"` fails the event, `"if_known"` takes it for unchanged.',
    )

    @field_validator("key")
    @classmethod
    def _is_template(cls, value: str) -> str:
        template = NameTemplate(value)
        first = template.literals[0]
        # Otherwise a TRUNCATE would delete what belongs to others.
        if first is None and template.fields[0].name not in ("schema", "table_name"):
            raise ValueError("must begin with text, {schema} or {table_name}, so that its keys are told from others")
        return value


class CacheOptions(RedisOptions):
    """Options of the `cache` handler."""

    durability: Literal["fsync", "memory"] = Field(
        default="memory",
        description='`"memory"`: settled when the server has answered. `"fsync"`: it must also write to its disk first'
        " (`appendfsync always`), otherwise the handler does not open.",
    )
    rules: list[CacheRule] = Field(min_length=1, description="What to do with which tables; all that match are used.")
    position_prefix: str = Field(
        default="cdc:position:",
        min_length=1,
        description="Begins the key beside each key that holds the row's position.",
    )
    tombstone_seconds: float = Field(
        default=7 * 86400.0,
        gt=0,
        description="How long the position of a deleted key is kept, so that nothing older is written there again.",
    )


# Per key: nothing happens if the position beside it, or that of the last TRUNCATE of its table, is not older.
# Positions are digits of fixed width: they compare as text, in every locale of the server.
#
# KEYS: three per operation: key, its position, the TRUNCATE's position. ARGV: milliseconds that a tombstone lives,
# then per operation: position, "delete", "json" or "hash", milliseconds that the key lives (0: for ever), number of
# values, values.
_APPLY = Script("""
local tombstone, at, applied = tonumber(ARGV[1]), 2, 0
for k = 1, #KEYS, 3 do
    local position, action, ttl, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local seen, floor = redis.call("GET", KEYS[k + 1]), redis.call("GET", KEYS[k + 2])
    if not (seen and seen >= position) and not (floor and floor >= position) then
        redis.call("UNLINK", KEYS[k])
        if action == "json" then
            redis.call("SET", KEYS[k], ARGV[at + 4])
        elseif action == "hash" then
            redis.call("HSET", KEYS[k], unpack(ARGV, at + 4, at + 3 + count))
        end
        if action == "delete" then
            redis.call("SET", KEYS[k + 1], position, "PX", tombstone)
        elseif ttl > 0 then
            redis.call("PEXPIRE", KEYS[k], ttl)
            redis.call("SET", KEYS[k + 1], position, "PX", math.max(ttl, tombstone))
        else
            redis.call("SET", KEYS[k + 1], position)
        end
        applied = applied + 1
    end
    at = at + 4 + count
end
return applied
""")

# KEYS: the TRUNCATE's position. ARGV: milliseconds, position.
_TRUNCATE = Script("""
local floor = redis.call("GET", KEYS[1])
if not (floor and floor >= ARGV[2]) then redis.call("SET", KEYS[1], ARGV[2], "PX", ARGV[1]) end
return 1
""")


@dataclass(frozen=True, slots=True)
class _Operation:
    """What shall become of one key."""

    position: str
    floor: str  # the key that holds the position of the last TRUNCATE
    action: str = "delete"
    ttl_ms: int = 0
    values: Sequence[Argument] = ()


@dataclass(slots=True)
class _Rule:
    """A rule at work: its template read, and the pattern of its keys per table."""

    options: CacheRule
    key: NameTemplate
    patterns: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, options: CacheRule) -> _Rule:
        return cls(options, NameTemplate(options.key))

    def matches(self, table: str) -> bool:
        return any(fnmatchcase(table, pattern) for pattern in self.options.tables)

    def pattern(self, event: DatabaseEvent) -> str:
        """SCAN's pattern of the keys of the event's table."""
        found = self.patterns.get((event.schema, event.table_name))
        if found is None:
            fields = iter(self.key.fields)
            names = {"schema": event.schema, "table_name": event.table_name}
            pieces = []
            for literal in self.key.literals:
                if literal is not None:
                    pieces.append(_escaped(literal))
                    continue
                part = next(fields)
                is_fixed = not part.is_column and part.name in names
                pieces.append(_escaped(names[part.name]) if is_fixed else "*")
            found = self.patterns[event.schema, event.table_name] = "".join(pieces)
        return found


class Cache:
    """Keep keys in step with rows. Beside each key it keeps the position of the change that last touched it.

    Neither a redelivery nor a late retry sets a key back. A batch goes to the server in one round trip; of several
    changes that touch a key only the last counts.
    """

    def __init__(self, options: CacheOptions) -> None:
        self._options = options
        self._server = RedisServer(options)
        self._rules = [_Rule.of(rule) for rule in options.rules]
        self._of_table: dict[tuple[str, str], list[_Rule]] = {}
        self._tombstone_ms = int(options.tombstone_seconds * 1000) or 1

    async def open(self) -> None:
        """Connect; CallbackError when `durability` asks for more than the server does."""
        await self._server.open()

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Invalidate or write the keys of the events."""
        operations: dict[str, _Operation] = {}
        for event in events:
            for rule in self._rules_for(event):
                if event.event_type is EventType.TRUNCATE:
                    await self._run(operations)
                    operations = {}
                    await self._truncate(rule, event)
                else:
                    operations.update(self._operations(rule, event))
        await self._run(operations)

    async def close(self) -> None:
        """Let the connection go; a second call does nothing."""
        await self._server.close()

    def _rules_for(self, event: DatabaseEvent) -> list[_Rule]:
        table = (event.schema, event.table_name)
        rules = self._of_table.get(table)
        if rules is None:
            rules = self._of_table[table] = [rule for rule in self._rules if rule.matches(event.kind.table)]
        return rules

    def _operations(self, rule: _Rule, event: DatabaseEvent) -> Iterator[tuple[str, _Operation]]:
        position, floor = _digits(event.position), self._floor(rule, event)
        key = rule.key.of(event)
        if event.event_type is EventType.UPDATE:
            old = rule.key.of(event, _row_before(rule, event), _id_before(rule, event))
            if old is not None and old != key:
                yield old, _Operation(position, floor)
        if key is None:
            return
        values = () if event.event_type is EventType.DELETE else _values(rule.options, event)
        if not values:
            yield key, _Operation(position, floor)
        else:
            ttl_ms = int((rule.options.ttl_seconds or 0) * 1000)
            yield key, _Operation(position, floor, rule.options.action, ttl_ms, values)

    async def _run(self, operations: Mapping[str, _Operation]) -> None:
        if operations:
            await self._server.run(list(self._calls(operations)))

    def _calls(self, operations: Mapping[str, _Operation]) -> Iterator[Call]:
        """One script with all of them, or several: one blocks the server, and its arguments have a limit."""
        keys: list[Argument] = []
        arguments: list[Argument] = [self._tombstone_ms]
        size = 0
        for key, operation in operations.items():
            more = sum(len(value) for value in operation.values if not isinstance(value, int))
            if keys and size + more > MAX_SCRIPT_BYTES:
                yield _APPLY, keys, arguments
                keys, arguments, size = [], [self._tombstone_ms], 0
            keys += (key, self._options.position_prefix + key, operation.floor)
            arguments += (operation.position, operation.action, operation.ttl_ms, len(operation.values))
            arguments += operation.values
            size += more
        yield _APPLY, keys, arguments

    async def _truncate(self, rule: _Rule, event: DatabaseEvent) -> None:
        """Delete all keys that the rule may have made of the table; those of newer rows stay."""
        position, floor, pattern = _digits(event.position), self._floor(rule, event), rule.pattern(event)
        cursor = 0
        while True:
            cursor, found = await self._server.client.scan(cursor, pattern, SCAN_COUNT)
            names = [self._server.text(name) for name in found]
            names = [name for name in names if not name.startswith(self._options.position_prefix)]
            # Not yet refused by the floor, which comes last: a TRUNCATE that was cut short begins anew.
            await self._run({name: _Operation(position, floor) for name in names})
            if cursor == 0:
                break
        await self._server.run([(_TRUNCATE, [floor], [self._tombstone_ms, position])])

    def _floor(self, rule: _Rule, event: DatabaseEvent) -> str:
        return f"{self._options.position_prefix}truncate:{rule.pattern(event)}"


def _digits(position: Position) -> str:
    """The position as text that compares as positions do: 20 digits for 64 bits each."""
    return f"{int(position.commit_lsn):020d}{position.ordinal:020d}"


def _escaped(text: str) -> str:
    return _GLOB.sub(r"\\\1", text)


def _id_before(rule: _Rule, event: DatabaseEvent) -> str | None:
    """The record id before an update; PermanentError when the key needs it, and the replica identity lacks it."""
    old = event.row.previous_record_id()
    if old is None and rule.options.old_key == "required" and rule.key.has_record_id:
        raise _unknown(rule, event, "record_id")
    return old


def _row_before(rule: _Rule, event: DatabaseEvent) -> Mapping[str, PostgresValue]:
    """The columns of the key as they were before an update; PermanentError when one is not known and must be."""
    before = event.before or {}
    row = dict(before)
    for name in rule.key.columns:
        if name in before:
            continue
        if rule.options.old_key == "required":
            raise _unknown(rule, event, name)
        if name in event.payload:
            row[name] = event.payload[name]
    return row


def _unknown(rule: _Rule, event: DatabaseEvent, name: str) -> PermanentError:
    return PermanentError(
        f"{event.kind.table}: the old value of {name!r}, which the key {rule.key.text!r} needs, is not known",
        hint='ALTER TABLE ... REPLICA IDENTITY FULL, or old_key = "if_known" where it never changes',
    )


def _values(rule: CacheRule, event: DatabaseEvent) -> Sequence[Argument]:
    """What to write at the key: one JSON text, or names and values in turn; nothing: delete it.

    Large values that have not changed are not known: without one of the wanted columns the key is deleted, and
    whoever reads next fetches the row.
    """
    if rule.action == "delete":
        return ()
    payload = event.payload
    row = {name: payload[name] for name in rule.columns if name in payload} if rule.columns else payload
    missing = event.unchanged.difference(payload)
    if missing and (not rule.columns or not missing.isdisjoint(rule.columns)):
        return ()
    if rule.columns and len(row) < len(set(rule.columns)):
        absent = next(name for name in rule.columns if name not in row)
        raise PermanentError(f"{event.kind.table} has no column {absent!r}", hint="see the rule's option `columns`")
    if rule.action == "json":
        return (to_json(row),)
    return [text for name, value in row.items() if value is not None for text in (name, value_text(value))]
