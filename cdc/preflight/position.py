"""The stored checkpoint against the server and the slot: is it of this cluster, and can both go on from it.

Only tells; `cdc.resume` decides, here as when the service starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cdc.codes import Code
from cdc.config import Config, SourceConfig
from cdc.errors import (
    CheckpointMismatch,
    SlotInvalidated,
    SlotMismatch,
    SlotMissing,
    StateError,
    StreamLost,
    StreamRefused,
)
from cdc.preflight.findings import Finding, error, ok, warning
from cdc.replication import SystemIdentity
from cdc.resume import resume_point
from cdc.slots import SlotInfo
from cdc.state import Checkpoint, open_state
from cdc.state.owner import require_makeable, require_primary

__all__ = ["has_state", "judge", "load"]

SQLITE = "sqlite:///"
_NO_STATE = ok("checkpoint", "no state yet: cdc run makes it, and begins at the slot's position")
_CODES: Mapping[type[StreamRefused], str] = {
    CheckpointMismatch: "checkpoint_mismatch",
    SlotMissing: "checkpoint_without_slot",
    SlotMismatch: "checkpoint_slot_moved",
    SlotInvalidated: "slot_invalidated",
}


def load(config: Config) -> tuple[Checkpoint | None, list[Finding]]:
    """The checkpoint, and what is wrong with the state that should hold it. Blocks on the disk."""
    if not has_state(config):
        return None, [_NO_STATE]
    try:
        state = open_state(config.state.url, read_only=True)
    except StateError as problem:
        return None, [_not_opened(config, problem)]
    try:
        checkpoint = state.load()
    except StateError as problem:
        return None, [error("state", problem.message, problem.hint)]
    finally:
        state.close()
    return checkpoint, list(_not_writable(config))


def _not_writable(config: Config) -> Iterator[Finding]:
    """What is there can be read on a standby, too."""
    if config.state.url.startswith(SQLITE):
        return
    try:
        require_primary(config.state.url)
    except StateError as problem:
        yield error("state", problem.message, problem.hint)


def _not_opened(config: Config, problem: StateError) -> Finding:
    if problem.code == Code.STATE_MISSING and not config.state.url.startswith(SQLITE):
        try:
            require_makeable(config.state.url)
        except StateError as obstacle:
            problem = obstacle
        else:
            return _NO_STATE
    return error("state", problem.message, problem.hint)


def has_state(config: Config) -> bool:
    """Whether there is something to open. An SQLite file's side files without it are something, too."""
    if not config.state.url.startswith(SQLITE):
        return True
    path = Path(config.state.url.removeprefix(SQLITE))
    return path.exists() or path.with_name(f"{path.name}-wal").exists()


def judge(
    checkpoint: Checkpoint, source: SourceConfig, slot: SlotInfo | None, identity: SystemIdentity
) -> Iterator[Finding]:
    """What the service would decide at its start, by the same rules."""
    try:
        resume_point(identity, slot, checkpoint, source)
    except StreamLost as waiting:
        yield warning("server_standby", waiting.message, waiting.hint)
        return
    except StreamRefused as refusal:
        yield error(_CODES.get(type(refusal), "checkpoint"), refusal.message, refusal.hint)
        return
    if identity.timeline != checkpoint.source.timeline:
        yield warning(
            "checkpoint_timeline",
            f"the checkpoint is of timeline {checkpoint.source.timeline}, the server on {identity.timeline}:"
            " it was promoted or restored since; changes that only the old server had are not there",
        )
    confirmed = slot.confirmed_flush_lsn if slot else None
    yield ok("checkpoint", f"the checkpoint is at {checkpoint.flushed_lsn}, the slot at {confirmed}")
