"""What the variables of an example may stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["values_for"]

_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(:-[^}]*)?\}")
_VALUES = {  # by the end of the name
    "_DSN": "postgresql://user@localhost/db",
    "_URL": "https://example.com/x",
    "_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "": "word",
}


def values_for(text: str) -> Mapping[str, str]:
    """A value for each variable of the text that has no default of its own."""
    return {
        name: next(value for end, value in _VALUES.items() if name.endswith(end))
        for name, default in _VARIABLE.findall(text)
        if not default
    }
