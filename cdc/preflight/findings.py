"""What a check has found: how bad, what, and the statement or command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from psycopg import sql

__all__ = ["Finding", "Severity", "error", "ok", "quoted", "warning"]


class Severity(Enum):
    """`value` is the word shown to people and programs."""

    ERROR = "error"  # the service would not start, or not receive
    WARNING = "warning"  # it works, but not as its owner may think, or not for ever
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `cdc check`. `code` is a fixed word for programs; `fix` is SQL or a command, or empty."""

    severity: Severity
    code: str
    message: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """As `cdc check --json` prints it."""
        return {
            "severity": self.severity.value,
            "code": self.code,
            "message": self.message,
            "fix": self.fix,
        }


def error(code: str, message: str, fix: str = "") -> Finding:
    """What must be mended first."""
    return Finding(Severity.ERROR, code, message, fix)


def warning(code: str, message: str, fix: str = "") -> Finding:
    """What should be known."""
    return Finding(Severity.WARNING, code, message, fix)


def ok(code: str, message: str) -> Finding:
    """What is as it should be."""
    return Finding(Severity.OK, code, message)


def quoted(*names: str) -> str:
    """An SQL identifier, qualified by all names but the last, quoted: "public"."my table"."""
    return sql.Identifier(*names).as_string()
