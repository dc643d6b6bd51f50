"""What our connection to a slot is called, and which ones left over on the server are ours to end.

A connection that was cut without a word leaves a walsender that holds the slot until `wal_sender_timeout`. It is
ended only when its name proves that it is of this process, or of an earlier owner of the same state, who by
that lost the right to it. Every other one is waited for.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

__all__ = ["APPLICATION", "Consumer"]

APPLICATION = "walsignal"
_NAME = re.compile(rf"{APPLICATION} ([0-9a-f]+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Consumer:
    """Who reads the slot: which state it has, and in whose term, which rises with every owner."""

    state: str = field(default_factory=lambda: secrets.token_hex(6))  # without one, this process alone
    term: int = 0

    @property
    def application_name(self) -> str:
        """For pg_stat_activity and pg_stat_replication."""
        return f"{APPLICATION} {self.state}.{self.term}"

    def outlives(self, application_name: str) -> bool:
        """Whether a connection of that name is a leftover: ours, while we have none, or an earlier owner's."""
        match = _NAME.fullmatch(application_name)
        return match is not None and match[1] == self.state and int(match[2]) <= self.term
