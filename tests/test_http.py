"""The endpoints of a real service: health, readiness, status, and what a bad client may cost."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cdc import failures, health
from cdc.errors import CdcError, StateError
from cdc.http import HttpServer, connections
from cdc.service import Phase, Service
from cdc.snapshot import snapshot
from tests.conftest import Database, OwnCluster
from tests.waiting import Running, eventually, make_config, running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other within milliseconds."""
    monkeypatch.setattr(failures, "BACKOFF_SECONDS", (0.01, 0.05))


async def ready(run: Running) -> tuple[int, list[str]]:
    """What /readyz says: status code and reasons."""
    code, body = await run.get("/readyz")
    answer = json.loads(body)
    assert answer["ready"] is (code == 200)
    return code, answer["reasons"]


def idle_server(folder: Path, **settings: Any) -> HttpServer:
    """The endpoints of a service that was never started."""
    return HttpServer(Service(make_config("postgresql:///none", folder, http=settings)))


async def send(server: HttpServer, request: bytes) -> bytes:
    """Everything the server answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(request)
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_streaming_service_is_alive_and_ready(database: Database, tmp_path: Path) -> None:
    """Both probes say 200 without a reason against it."""
    async with running(make_config(database.dsn, tmp_path)) as run:
        alive = await run.get("/healthz")
        is_ready = await ready(run)

    assert alive == (200, '{"alive":true,"reasons":[],"codes":[]}')
    assert is_ready == (200, [])


async def test_ready_turns_503_when_a_handler_is_removed(database: Database, tmp_path: Path) -> None:
    """The reason names the handler; the service stays alive."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path, {"good": "receive", "bad": "fail"})) as run:
        database.execute("INSERT INTO a SELECT generate_series(1, 3)")

        async def is_not_ready() -> bool:
            return (await ready(run))[0] == 503

        await eventually(is_not_ready)
        answer = await ready(run)
        alive, _ = await run.get("/healthz")

    assert answer == (503, ["handler 'bad' is removed"])
    assert alive == 200


async def test_ready_turns_503_beyond_the_lag_objective(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that does not come to an end makes the service late, and settled it is ready again."""
    monkeypatch.setattr(health, "LAG_OBJECTIVE_SECONDS", 0.2)
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")

        async def is_late() -> bool:
            code, reasons = await ready(run)
            return code == 503 and "behind" in reasons[0]

        async def is_ready() -> bool:
            return (await ready(run))[0] == 200

        await eventually(is_late)
        run.callbacks.gate.set()
        await eventually(is_ready)


async def test_ready_turns_503_when_the_checkpoint_cannot_be_written(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk loses nothing, but somebody must come; the reason is the state's own."""

    async def full(*, asked: bool = True) -> None:
        raise StateError("no space left on device")

    async with running(make_config(database.dsn, tmp_path)) as run:
        assert run.service.checkpointer is not None
        with monkeypatch.context() as patch:
            patch.setattr(run.service.checkpointer, "save", full)

            async def is_not_ready() -> bool:
                return (await ready(run))[0] == 503

            await eventually(is_not_ready)
            _, reasons = await ready(run)
            answer = json.loads((await run.get("/readyz"))[1])

    assert reasons == ["the checkpoint cannot be written: no space left on device"]
    assert answer["codes"] == ["checkpoint_failed"]


async def test_ready_turns_503_when_a_callback_waits_for_room(database: Database, tmp_path: Path) -> None:
    """Its dead letters are full: its next failed event is held, and so is the slot; the reason names it."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    limits = {"max_parked_events": 1, "remove_failing_callbacks": False}
    async with running(make_config(database.dsn, tmp_path, {"bad": "fail"}, signal=limits)) as run:
        database.execute("INSERT INTO a VALUES (1), (2)")

        async def is_held() -> bool:
            return (await ready(run))[0] == 503

        await eventually(is_held)
        _, reasons = await ready(run)
        shown = json.loads((await run.get("/status"))[1])

    assert reasons[0].startswith("handler 'bad' waits: ")
    assert (shown["not_ready"], shown["not_ready_codes"]) == (reasons, ["dead_letters_full"])
    (letters,) = shown["dead_letters"]
    assert (letters["callback"], letters["state"], letters["count"]) == ("bad", "failed", 1)
    assert shown["callbacks"][0]["held"]


async def test_a_service_that_stands_by_is_alive_but_not_ready(tmp_path: Path) -> None:
    """Another one holds the state: a restart of this one would change nothing."""
    service = Service(make_config("postgresql:///none", tmp_path))
    service.phase = Phase.STANDBY
    seen = snapshot(service)

    assert list(seen.not_ready) == ["standby: another one holds the state"]
    assert seen.alive
    assert seen.phase == "standby"


async def test_ready_says_draining_until_the_last_callback_is_done(database: Database, tmp_path: Path) -> None:
    """After the stop was asked for, the endpoints go on until the service has come to its end."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path)) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")
        await eventually(lambda: run.service.manager.pool.queued_events == 1)
        run.service.stop()
        await eventually(lambda: run.service.phase is Phase.DRAINING)
        draining = await ready(run)
        run.callbacks.gate.set()
        await run.task
        stopped = await ready(run)
        dead, _ = await run.get("/healthz")
        url = run.url("/readyz")

    assert draining == (503, ["draining"])
    assert stopped == (503, ["stopped"])
    assert dead == 503
    async with aiohttp.ClientSession() as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(url)


async def test_a_lost_server_is_not_ready_but_alive(own_cluster: OwnCluster, tmp_path: Path) -> None:
    """A restart of ours would not bring the server back; when it is back, all is well again."""
    cluster = own_cluster()
    cluster.create_database("shop")
    async with running(make_config(cluster.dsn("shop"), tmp_path)) as run:
        await asyncio.to_thread(cluster.stop, "immediate")
        await eventually(lambda: run.service.phase is Phase.RECONNECTING)
        lost = await ready(run)
        alive, _ = await run.get("/healthz")
        await asyncio.to_thread(cluster.start)

        async def is_ready() -> bool:
            return (await ready(run))[0] == 200

        await eventually(is_ready)

    assert lost == (503, ["reconnecting"])
    assert alive == 200


async def test_a_silent_wire_is_not_alive(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No message for too long while streaming: only then a restart could help."""
    monkeypatch.setattr(health, "WIRE_SILENCE_SECONDS", 0.2)
    async with running(make_config(database.dsn, tmp_path)) as run:

        async def is_dead() -> bool:
            code, body = await run.get("/healthz")
            return code == 503 and "no message for" in body

        await eventually(is_dead)


async def test_status_tells_everything_but_secrets_and_values(database: Database, tmp_path: Path) -> None:
    """Slot, positions, queue and callbacks are there; DSN, password, row values and error texts are not."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY, t text)")
    dsn = f"{database.dsn} password=hidden-password"
    async with running(make_config(dsn, tmp_path, {"good": "receive", "bad": "fail"})) as run:
        database.execute("INSERT INTO a VALUES (1, 'row-value')")
        await eventually(lambda: run.callbacks.seen and run.service.monitor.slot is not None)

        async def has_failed() -> bool:
            _, body = await run.get("/status")
            return any(item["failed"] == 1 for item in json.loads(body)["callbacks"])

        await eventually(has_failed)
        _, text = await run.get("/status")
        slot_name = run.service.config.source.slot
    found = json.loads(text)

    assert found["phase"] == "streaming"
    assert found["connected"] is found["ready"] is found["alive"] is True
    assert found["slot"]["name"] == slot_name
    assert found["slot"]["wal_status"] == "reserved"
    assert "/" in found["received_lsn"]
    assert found["queue"]["limit_events"] == 10_000
    assert [item["name"] for item in found["callbacks"]] == ["good", "bad"]
    assert found["callbacks"][1]["last_error"] == "ValueError"
    for secret in ("hidden-password", "row-value", "secret-value", "dbname", str(tmp_path)):
        assert secret not in text


async def test_status_names_who_holds_the_slot(database: Database, tmp_path: Path) -> None:
    """Of two callbacks the one that lies behind is named, with how much and since when."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    async with running(make_config(database.dsn, tmp_path, {"slow": "receive", "fast": "fail"})) as run:
        run.callbacks.gate.clear()
        database.execute("INSERT INTO a VALUES (1)")
        await eventually(lambda: run.service.manager.pool.queued_events == 1)

        async def fast_is_done() -> bool:
            found = json.loads((await run.get("/status"))[1])
            slow, fast = found["callbacks"]
            return bool(found["slot_held_by"] == "slow" and fast["holdback_bytes"] == 0 < slow["holdback_bytes"])

        await eventually(fast_is_done)
        run.callbacks.gate.set()


async def test_other_paths_and_methods_are_refused(tmp_path: Path) -> None:
    """404 for what is not there, 405 for what would change something; HEAD is GET without a body."""
    async with idle_server(tmp_path) as server, aiohttp.ClientSession() as client:
        base = f"http://127.0.0.1:{server.port}"
        answers = {}
        for method, path in [
            ("GET", "/x"),
            ("GET", "/metrics/x"),
            ("POST", "/status"),
            ("HEAD", "/status"),
            ("HEAD", "/"),
        ]:
            async with client.request(method, base + path) as response:
                answers[method, path] = response.status, len(await response.read())
                assert response.headers["Server"] == "walsignal"
                assert response.headers["Cache-Control"] == "no-store"

    assert answers["GET", "/x"][0] == answers["GET", "/metrics/x"][0] == 404
    assert answers["POST", "/status"][0] == 405
    assert answers["HEAD", "/status"] == answers["HEAD", "/"] == (200, 0)


async def test_a_service_that_has_not_connected_yet_answers(tmp_path: Path) -> None:
    """Starting is alive and not ready; metrics are there from the first moment."""
    async with idle_server(tmp_path) as server, aiohttp.ClientSession() as client:
        codes = {}
        for path in ("/healthz", "/readyz", "/status", "/metrics"):
            async with client.get(f"http://127.0.0.1:{server.port}{path}") as response:
                codes[path] = response.status

    assert codes == {"/healthz": 200, "/readyz": 503, "/status": 200, "/metrics": 200}


async def test_a_port_in_use_is_told_with_the_fix(tmp_path: Path) -> None:
    """Before anything streams; the error names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(CdcError, match=rf"http\.port: .*{port}.*in use.*http\.port to a free one"):
            await idle_server(tmp_path, port=port).start()


async def test_an_address_of_another_machine_is_told_with_the_fix(tmp_path: Path) -> None:
    """A host that is not ours is the host's fault, not the port's."""
    with pytest.raises(CdcError, match=r"192\.0\.2\.1.*set http\.host"):
        await idle_server(tmp_path, host="192.0.2.1").start()


async def test_disabled_serves_nothing(tmp_path: Path) -> None:
    """`enabled = false` opens no port."""
    async with idle_server(tmp_path, enabled=False) as server:
        assert server.port is None


async def test_a_slow_client_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request holds a connection until the deadline, no longer; after an answer it is closed at once."""
    async with idle_server(tmp_path) as server:
        assert (await send(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(connections, "CONNECTION_SECONDS", 0.1)
        async with asyncio.timeout(60):
            assert await send(server, b"GET /healthz HTTP/1.1\r\nHo") == b""


async def test_a_flood_of_connections_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many is closed; those that are open go on."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
    async with idle_server(tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await send(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") == b""
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 100 + b"\r\n",
        b"\x16\x03\x01 not http\r\n\r\n",
    ],
    ids=["path", "header", "headers", "noise"],
)
async def test_oversized_and_broken_requests_are_refused(tmp_path: Path, request_text: bytes) -> None:
    """A 4xx or a closed connection, and the next client is served."""
    async with idle_server(tmp_path) as server:
        answer = await send(server, request_text)
        good = await send(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert answer == b"" or answer.startswith((b"HTTP/1.0 4", b"HTTP/1.1 4"))
    assert good.startswith(b"HTTP/1.1 200")
