"""From a commit to mails and requests: `notify` and `webhook` in the real service, behind a real PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cdc.config import Config, HandlerConfig
from tests.conftest import Database
from tests.handlers.endpoint import SECRETS, Endpoint
from tests.handlers.mail_server import MailServer
from tests.handlers.servers import Servers
from tests.waiting import eventually, make_config, running

ROWS = 10_000


def with_handlers(config: Config, handlers: dict[str, dict[str, Any]]) -> Config:
    """The same, and built-in handlers by their short names."""
    more = [HandlerConfig(name=name, callback=name, options=options) for name, options in handlers.items()]
    return config.model_copy(update={"handlers": [*config.handlers, *more]})


async def test_bulk_update_reaches_people_as_a_digest_and_programs_row_by_row(
    database: Database, servers: Servers, tmp_path: Path
) -> None:
    """10,000 rows updated in one transaction: three mails in all, and every row at the endpoint, in order."""
    hook, mail = servers.of(Endpoint), servers.of(MailServer)
    hook.forget()
    mail.forget()
    rule: dict[str, Any] = {
        "name": "big orders",
        "channels": ["ops"],
        "when": [{"column": "total", "op": ">", "value": 100}],
        "title": "Order {record_id}: {payload[total]:,.2f}",
        "limit": 2,
        "window_seconds": 3600,
    }
    options: dict[str, dict[str, Any]] = {
        "webhook": {
            "url": hook.url(),
            "secrets": SECRETS,
            "batch": 100,
            "allow_http": True,
            "allow_internal": True,
        },
        "notify": {"channels": {"ops": mail.url()}, "rules": [rule], "journal": str(tmp_path / "notify.db")},
    }
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, total numeric(12, 2))")
    database.execute(f"INSERT INTO orders SELECT n, 50 FROM generate_series(1, {ROWS}) n")

    async with running(with_handlers(make_config(database.dsn, tmp_path), options)) as service:
        database.execute("INSERT INTO orders VALUES (0, 12345.60)")
        database.execute("UPDATE orders SET total = 100.01 WHERE id > 0")
        await eventually(lambda: len(service.callbacks.seen) == ROWS + 1, timeout=60)
        await eventually(lambda: sum(len(request.events) for request in hook.requests()) == ROWS + 1, timeout=60)
        await eventually(lambda: not service.service.manager.pool.queued_events, timeout=60)  # the mails' handler, too

    await eventually(lambda: len(mail.mails()) >= 3, timeout=60)  # the digest: its way may take longer than the stop
    first, second, digest = mail.mails()
    assert (first.subject, second.subject) == ("Order 0: 12,345.60", "Order 1: 100.01")
    assert digest.subject == f"big orders: {ROWS - 1} more events"
    assert f"{ROWS - 1} x update public.orders" in digest.text
    events = [event for request in hook.requests() for event in request.events]
    assert [event["record_id"] for event in events] == [str(number) for number in range(ROWS + 1)]
    assert {event["payload"]["total"] for event in events} == {"12345.60", "100.01"}
    assert all(all(request.verified) for request in hook.requests())
