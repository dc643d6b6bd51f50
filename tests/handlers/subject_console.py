"""`console` under the contract: what can be asked of a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tests.handlers.contract import Clause, Subject


class ConsoleSubject(Subject[None]):
    """There is no server, and nothing to read back."""

    name = "console"
    wrong_options: ClassVar = {"format": "xml", "max_width": -1, "color": "perhaps"}
    exempt: ClassVar = {
        Clause.DURABLE: "a screen keeps nothing, and there is no server",
        Clause.ONCE: "a screen does not know what it has shown: what is delivered twice is shown twice",
        Clause.DOWN: "there is no server; test_console.py closes standard output",
        Clause.BACK: "there is no server that could come back",
        Clause.SLOW: "there is no server; a thread that hangs is held up in test_workers.py",
        Clause.CANCELLED: "a thread is not cancelled: it ends its write",
    }

    def make_server(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return {"format": "text"}

    async def effects(self) -> Sequence[str]:
        raise NotImplementedError
