"""Pause, resume and remove: what becomes of events, over HTTP with a token and on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from cdc.callbacks import CallbackState
from cdc.config import Config
from cdc.errors import CallbackError, UnknownCallback
from cdc.events import Position
from cdc.lsn import Lsn
from cdc.orders import Order, obey
from cdc.state import open_state
from tests.conftest import Database
from tests.waiting import Running, eventually, make_config, running

TOKEN = "0123456789abcdef-rest"
JSON = {"Content-Type": "application/json"}
GOOD = JSON | {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """As an operator makes it."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


def replace(file: Path, token: str, mode: int = 0o600) -> None:
    """Another token, or another mode, as a rotation brings it."""
    file.write_text(token)
    file.chmod(mode)


async def post(run: Running, path: str, headers: Mapping[str, str], data: bytes = b"{}") -> tuple[int, dict[str, Any]]:
    """Status and answer of an order."""
    async with run.client.post(run.url(path), data=data, headers=headers) as response:
        found: dict[str, Any] = json.loads(await response.read())
        return response.status, found


def state_of(run: Running, name: str) -> CallbackState:
    """Of the handler, as the service has it now."""
    return next(item.state for item in run.service.manager.registry if item.name == name)


def becomes(run: Running, name: str, state: CallbackState) -> Callable[[], bool]:
    """Whether it is so now."""
    return lambda: state_of(run, name) is state


def with_token(config: Config, file: Path) -> Config:
    """The same configuration with changes over HTTP turned on."""
    return config.model_copy(update={"http": config.http.model_copy(update={"token_file": str(file)})})


async def test_what_comes_while_a_handler_is_paused_is_parked_and_delivered_in_order(
    database: Database, tmp_path: Path, token_file: Path
) -> None:
    """The other handler and the slot go on, the service stays ready; resumed, nothing is missing and nothing twice.

    So also for a handler that drops events once it is removed, and across a restart.
    """
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    handlers: dict[str, Any] = {"audit": {"callback": "receive", "after_removal": "drop"}, "other": "also"}
    callbacks = (
        "import asyncio\ngate = asyncio.Event()\nseen = []\nothers = []\n"
        "async def receive(event):\n    seen.append(event.payload['id'])\n"
        "async def also(event):\n    others.append(event.payload['id'])\n"
    )
    config = with_token(make_config(database.dsn, tmp_path, handlers, callbacks), token_file)
    async with running(config) as run:
        database.execute("INSERT INTO a SELECT generate_series(1, 5)")
        await eventually(lambda: len(run.callbacks.seen) == 5)
        code, answer = await post(run, "/handlers/audit/pause", GOOD)
        assert (code, answer["state"]) == (200, "paused")
        await eventually(becomes(run, "audit", CallbackState.PAUSED))
        database.execute("INSERT INTO a SELECT generate_series(6, 10)")
        await eventually(lambda: len(run.callbacks.others) == 10)
        await eventually(lambda: run.service.manager.pool.queued_events == 0)  # parked: it holds nothing back
        ready, _ = await run.get("/readyz")
        status = json.loads((await run.get("/status"))[1])
        module = run.callbacks
    assert len(module.seen) == 5
    assert ready == 200
    assert status["callbacks"][0]["state"] == "paused"
    assert status["dead_letters"][0]["state"] == "parked"

    async with running(config) as run:
        assert state_of(run, "audit") is CallbackState.PAUSED
        database.execute("INSERT INTO a SELECT generate_series(11, 15)")
        await eventually(lambda: len(module.others) == 15)
        assert (await post(run, "/handlers/audit/resume", GOOD))[0] == 200
        await eventually(becomes(run, "audit", CallbackState.ACTIVE))
        database.execute("INSERT INTO a SELECT generate_series(16, 20)")
        await eventually(lambda: len(module.seen) == 20)
        found = {item["name"]: item for item in json.loads((await run.get("/status"))[1])["callbacks"]}

    assert module.seen == list(range(1, 21))
    assert found["audit"]["missed"] == 0


async def test_a_paused_handler_without_room_gives_up_nothing_and_says_that_it_waits(
    database: Database, tmp_path: Path, token_file: Path
) -> None:
    """Past the bound its events hold the slot, the service is not ready and says why, and resumed all of them come."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = with_token(make_config(database.dsn, tmp_path, signal={"max_parked_events": 3}), token_file)
    async with running(config) as run:
        await post(run, "/handlers/audit/pause", GOOD)
        await eventually(becomes(run, "audit", CallbackState.PAUSED))
        database.execute("INSERT INTO a SELECT generate_series(1, 8)")

        async def is_full() -> bool:
            code, body = await run.get("/readyz")
            return code == 503 and "'audit' waits: its parked events are at their bound" in body

        await eventually(is_full, timeout=30)
        held_by = json.loads((await run.get("/status"))[1])["slot_held_by"]
        await post(run, "/handlers/audit/resume", GOOD)
        await eventually(lambda: len(run.callbacks.seen) == 8, timeout=30)
        await eventually(becomes(run, "audit", CallbackState.ACTIVE), timeout=30)
        ids = [event.payload["id"] for event in run.callbacks.seen]
        (registration,) = run.service.manager.registry

    assert held_by == "audit"
    assert ids == list(range(1, 9))
    assert registration.outcomes["missed"] == 0


async def test_orders_that_come_at_once_end_as_the_last_one_says(database: Database, tmp_path: Path) -> None:
    """A pause that is taken back before the service has looked: nothing is left of it, in the service or on record."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    config = make_config(database.dsn, tmp_path)
    async with running(config) as run:
        with closing(open_state(config.state.url)) as command:

            def state() -> CallbackState:
                return command.callbacks()[0].state

            for order in (Order.PAUSE, Order.RESUME):
                obey(command, config, "audit", order)
            database.execute("INSERT INTO a VALUES (1)")
            await eventually(lambda: len(run.callbacks.seen) == 1)
            await eventually(lambda: state() is CallbackState.ACTIVE)
        assert state_of(run, "audit") is CallbackState.ACTIVE


async def test_orders_need_the_token_of_the_file_as_it_is_now(
    database: Database, tmp_path: Path, token_file: Path
) -> None:
    """Without, with another, from another site's page, with a form's body: refused, and nothing has changed."""
    config = with_token(make_config(database.dsn, tmp_path), token_file)
    path = "/handlers/audit/remove"
    with capture_logs() as logs:
        async with running(config) as run:
            refused = [
                await post(run, path, JSON),
                await post(run, path, GOOD | {"Authorization": f"Bearer {TOKEN}x"}),
                await post(run, path, GOOD | {"Authorization": f"Basic {TOKEN}"}),
                await post(run, path, GOOD | {"Authorization": "Bearer é"}),
                await post(run, path, GOOD | {"Sec-Fetch-Site": "cross-site"}),
                await post(run, path, GOOD | {"Origin": "http://rebound.example"}),
                await post(run, path, GOOD | {"Content-Type": "text/plain"}),
                await post(run, path, GOOD, b'{"x": 1}'),
                await post(run, path, GOOD, b"{" * 500),
                await post(run, path, GOOD, b" " * 5000),
                await post(run, "/handlers/nobody/remove", GOOD),
                await post(run, "/handlers/audit/resume", GOOD),
                await post(run, "/handlers/audit/destroy", GOOD),
                await post(run, "/handlers/audit/x/remove", GOOD),
            ]
            get, _ = await run.get(path)
            assert state_of(run, "audit") is CallbackState.ACTIVE

            replace(token_file, "another-token-of-its-own")
            old, _ = await post(run, path, GOOD)
            replace(token_file, "another-token-of-its-own", 0o644)
            exposed, said = await post(run, path, JSON | {"Authorization": "Bearer another-token-of-its-own"})
            replace(token_file, "another-token-of-its-own")
            new, _ = await post(run, path, JSON | {"Authorization": "Bearer another-token-of-its-own"})
            await eventually(becomes(run, "audit", CallbackState.REMOVED))

    codes = [code for code, _ in refused]
    assert codes == [401, 401, 401, 401, 403, 403, 415, 400, 400, 413, 404, 409, 404, 404]
    assert get == 405
    assert (old, exposed, new) == (401, 403, 200)
    assert str(tmp_path) not in str(said)
    assert TOKEN not in str(logs)
    assert "another-token" not in str(logs)
    assert {"http_token_refused", "http_token_unusable", "http_order"} <= {entry["event"] for entry in logs}


async def test_orders_are_off_by_default(database: Database, tmp_path: Path) -> None:
    """403, and what turns them on; the handler goes on."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        code, answer = await post(run, "/handlers/audit/remove", GOOD)
        state = state_of(run, "audit")

    assert code == 403
    assert "http.token_file" in answer["error"]
    assert state is CallbackState.ACTIVE


def test_an_order_that_means_nothing_is_refused(tmp_path: Path) -> None:
    """Of nobody, of one that has not run, twice, of one that is removed already: each with what to do instead."""
    config = make_config("postgresql:///none", tmp_path, {"audit": "receive", "fresh": "receive"})
    store = open_state(config.state.url, owner=True)
    try:
        store.mark_removed("audit", Position(Lsn(5), 1), "failures")
        store.mark_resuming("audit")
        store.mark_active("audit")
        with pytest.raises(UnknownCallback, match="no handler is named 'nobody'"):
            obey(store, config, "nobody", Order.PAUSE)
        with pytest.raises(CallbackError, match="fresh has not run yet"):
            obey(store, config, "fresh", Order.PAUSE)
        store.mark_paused("audit", Position(Lsn(5), 1), "operator")
        with pytest.raises(CallbackError, match="audit is paused already"):
            obey(store, config, "audit", Order.PAUSE)
        assert obey(store, config, "audit", Order.REMOVE) is CallbackState.REMOVED
        with pytest.raises(CallbackError, match="audit is removed already"):
            obey(store, config, "audit", Order.PAUSE)
        assert obey(store, config, "audit", Order.RESUME) is CallbackState.RESUMING
        store.mark_active("audit")
        with pytest.raises(CallbackError, match="audit is not removed or paused"):
            obey(store, config, "audit", Order.RESUME)
    finally:
        store.close()
