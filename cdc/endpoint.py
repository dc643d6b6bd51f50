"""The port of a service on this machine, as a command finds it: what the service there says of itself.

Owns the question and how long it waits for an answer. It must not know what the answer is used for.
"""

from __future__ import annotations

from typing import Any

from cdc.config import HttpConfig

__all__ = ["ask"]

ANSWER_SECONDS = 2.0  # the endpoint answers from memory; longer means that nobody listens
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where a listener on all hosts is found


async def ask(http: HttpConfig) -> dict[str, Any] | None:
    """The service's `/status`, as `cdc.status.Status.to_dict` has it; None when no service answers there."""
    import aiohttp  # noqa: PLC0415 - a fifth of a second that only those spend who ask

    host = _ANY_HOST.get(http.host, http.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{http.port}/status"
    try:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            answer = await response.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and _is_status(answer) else None


def _is_status(answer: dict[str, Any]) -> bool:
    """Others may have a phase, too."""
    lists = ("not_ready", "not_ready_codes", "not_alive", "not_alive_codes")
    slot = answer.get("slot")
    return (
        "phase" in answer
        and all(isinstance(answer.get(name), list) for name in lists)
        and (slot is None or isinstance(slot, dict))
    )
