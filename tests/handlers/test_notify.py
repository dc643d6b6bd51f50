"""The `notify` handler with a real mail server and a real HTTP endpoint, each a process that can be killed."""

from __future__ import annotations

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from cdc import DatabaseEvent, Lsn, PermanentError, Position
from cdc.config import SignalConfig
from handlers import notify_journal
from handlers.notify import Notify, NotifyOptions
from handlers.notify_channels import Channel, Unsent
from handlers.notify_journal import Journal, Window
from tests.handlers.endpoint import Endpoint
from tests.handlers.mail_server import MailServer
from tests.handlers.servers import Servers
from tests.running import ROOT, wait_until

COMMITTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LONG = 3600  # a window that does not end during the test


def made_events(count: int, first: int = 1, **values: Any) -> list[DatabaseEvent]:
    """Updates of one transaction at 0/100."""
    return [
        DatabaseEvent.of(
            "update",
            "orders",
            {"id": number, "name": f"name-{number}", **values},
            id=number,
            record_id=str(number),
            timestamp=COMMITTED,
            position=Position(Lsn(0x100), number),
        )
        for number in range(first, first + count)
    ]


@pytest.fixture
def mail(servers: Servers) -> MailServer:
    """A running mail server that has had no mails."""
    shared = servers.of(MailServer)
    shared.forget()
    return shared


@pytest.fixture
def hook(servers: Servers) -> Endpoint:
    """A running endpoint that has had no requests."""
    shared = servers.of(Endpoint)
    shared.forget()
    return shared


def settings(folder: Path, channels: dict[str, str], rules: Sequence[dict[str, Any]] = ({},)) -> dict[str, Any]:
    """Options with a rule per dictionary, which go to all channels unless they say where."""
    base = {"channels": list(channels), "title": "order {record_id}", "window_seconds": LONG}
    made = [{"name": f"rule{number}"} | base | rule for number, rule in enumerate(rules)]
    return {"channels": channels, "rules": made, "journal": folder / "notify.db"}


@contextmanager
def notify(folder: Path, channels: dict[str, str], *rules: dict[str, Any]) -> Iterator[Notify]:
    """An open handler."""
    handler = Notify(NotifyOptions.model_validate(settings(folder, channels, rules or ({},))))
    handler.open()
    try:
        yield handler
    finally:
        handler.close()


def told(mail: MailServer) -> int:
    """Of how many events the mails tell, digests included."""
    words = [subject.split() for subject in mail.subjects()]
    return sum(int(subject[1]) if "more" in subject else 1 for subject in words)


def test_event_becomes_a_mail(mail: MailServer, tmp_path: Path) -> None:
    """Title and body as the templates say; a line break of the database is none in the subject."""
    rule = {"title": "{payload[name]} changed", "body": "Order {record_id}\nis now {payload[name]}, ü"}
    with notify(tmp_path, {"ops": mail.url()}, rule) as handler:
        handler.handle_batch(made_events(1, name="Ann\nBcc: all@example.com"))

    (taken,) = mail.mails()
    assert taken.to == ["ops@example.com"]
    assert taken.subject == "Ann Bcc: all@example.com changed"
    assert taken.text == "Order 1\nis now Ann\nBcc: all@example.com, ü"


def test_event_becomes_a_request(hook: Endpoint, tmp_path: Path) -> None:
    """By Apprise's own JSON channel, one of its many."""
    with notify(tmp_path, {"hook": f"json://{hook.address}/"}, {"severity": "warning"}) as handler:
        handler.handle_batch(made_events(1))

    (request,) = hook.requests()
    assert request.events[0]["title"] == "order 1"
    assert request.events[0]["type"] == "warning"


def test_only_what_a_rule_wants_is_sent(mail: MailServer, tmp_path: Path) -> None:
    """By a condition, here."""
    rule = {"when": [{"column": "id", "op": "in", "value": [2, 4]}]}
    with notify(tmp_path, {"ops": mail.url()}, rule) as handler:
        handler.handle_batch(made_events(5))

    assert mail.subjects() == ["order 2", "order 4"]


def test_event_that_comes_twice_is_sent_once(mail: MailServer, tmp_path: Path) -> None:
    """In one call, in a later one, and after a restart; at another commit time it is another event."""
    events = made_events(2)
    with notify(tmp_path, {"ops": mail.url()}) as handler:
        handler.handle_batch([*events, *events])
        handler.handle_batch(events)
    with notify(tmp_path, {"ops": mail.url()}) as handler:
        handler.handle_batch(events)
        other = DatabaseEvent.of("update", "orders", record_id="1", position=events[0].position)
        handler.handle_batch([other])

    assert mail.subjects() == ["order 1", "order 2", "order 1"]


def test_events_emitted_by_hand_are_never_taken_for_each_other(mail: MailServer, tmp_path: Path) -> None:
    """They have no position."""
    events = [DatabaseEvent.of("create", "notes", record_id=text, timestamp=COMMITTED) for text in "ab"]
    with notify(tmp_path, {"ops": mail.url()}) as handler:
        handler.handle_batch(events)

    assert mail.subjects() == ["order a", "order b"]


def test_bulk_update_is_a_few_mails_and_one_digest(mail: MailServer, tmp_path: Path) -> None:
    """10,000 rows: as many mails as the limit says, then one that counts the others and shows some."""
    rule = {"limit": 3, "samples": 2, "digest_title": "{rule}: {count} more"}
    with notify(tmp_path, {"ops": mail.url()}, rule) as handler:
        events = made_events(10_000)
        for start in range(0, len(events), 256):
            handler.handle_batch(events[start : start + 256])
        handler.handle_batch(events[5000:5256])  # again: counted once
        assert mail.subjects() == ["order 1", "order 2", "order 3"]

    assert mail.subjects()[3:] == ["rule0: 9997 more"]
    text = mail.mails()[-1].text
    assert "9997 x update public.orders" in text
    assert "- order 4\n- order 5\n- and 9995 more" in text
    assert "2026-01-02T03:04:05+00:00" in text


def test_digest_is_sent_when_the_window_ends_though_nothing_more_comes(mail: MailServer, tmp_path: Path) -> None:
    """By the handler's own clock; the next window is counted anew, and each event is told of once."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 1, "window_seconds": 1}) as handler:
        handler.handle_batch(made_events(5))
        wait_until(lambda: told(mail) >= 5)
        first = mail.subjects()
        handler.handle_batch(made_events(5, first=11))
        wait_until(lambda: told(mail) >= 10)

    # Where a mail takes long, the window ends meanwhile, and more events have messages of their own.
    assert first[0] == "order 1"
    assert first[-1] in {f"rule0: {count} more events" for count in range(1, 5)}
    assert mail.subjects()[-1] in {f"rule0: {count} more events" for count in range(1, 6)}
    assert told(mail) == 10


def test_limit_of_zero_is_digests_only(mail: MailServer, tmp_path: Path) -> None:
    """For the weekly report of a busy table, so to say."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 0, "window_seconds": 0.2}) as handler:
        handler.handle_batch(made_events(2))
        wait_until(lambda: bool(mail.mails()))

    assert mail.subjects() == ["rule0: 2 more events"]


def test_what_waits_for_a_digest_outlives_a_kill(mail: MailServer, tmp_path: Path) -> None:
    """Settled is on the disk: the process is killed right after `handle_batch` has returned."""
    options = NotifyOptions.model_validate(settings(tmp_path, {"ops": mail.url()}, [{"limit": 1}]))
    code = (
        "import os, signal, sys\n"
        "from tests.handlers.test_notify import *\n"
        "from pathlib import Path\n"
        "options = settings(Path(sys.argv[1]), {'ops': sys.argv[2]}, [{'limit': 1}])\n"
        "handler = Notify(NotifyOptions.model_validate(options))\n"
        "handler.open()\n"
        "handler.handle_batch(made_events(50))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path), mail.url()], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert mail.subjects() == ["order 1"]

    handler = Notify(options)
    handler.open()
    handler.handle_batch(made_events(50))  # they come again, and are known
    handler.close()

    assert mail.subjects() == ["order 1", "rule0: 49 more events"]


def test_mail_server_that_is_away_is_tried_again(mail: MailServer, tmp_path: Path) -> None:
    """The call fails; when the server is back, the handler goes on without a restart and sends what is missing."""
    with notify(tmp_path, {"ops": mail.url()}) as handler:
        handler.handle_batch(made_events(1))
        mail.kill()
        with pytest.raises(Unsent, match="ops cannot be reached: Connection refused"):
            handler.handle_batch(made_events(3))
        mail.start()
        handler.handle_batch(made_events(3))

    assert mail.subjects() == ["order 1", "order 2", "order 3"]


def test_digest_that_cannot_be_sent_holds_up_what_comes_after_it(mail: MailServer, tmp_path: Path) -> None:
    """No more is settled into a digest that is due and does not get through; then it is sent, with nothing lost."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 0, "window_seconds": 0.2}) as handler:
        mail.kill()
        handler.handle_batch(made_events(3))
        wait_until(lambda: time.time() >= (handler._routes[0]._window_ends()))
        with pytest.raises(Unsent):
            handler.handle_batch(made_events(1, first=11))
        mail.start()
        wait_until(lambda: "rule0: 3 more events" in mail.subjects())


def test_close_keeps_a_digest_that_cannot_be_sent(mail: MailServer, tmp_path: Path) -> None:
    """It is sent at the next stop or when its window ends, whichever comes first."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 1}) as handler:
        handler.handle_batch(made_events(3))
        mail.kill()
    mail.start()
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 1}):
        assert mail.subjects() == ["order 1"]

    assert mail.subjects() == ["order 1", "rule0: 2 more events"]


def test_window_is_kept_over_a_restart(mail: MailServer, tmp_path: Path) -> None:
    """A service that is restarted again and again does not send the limit each time."""
    for number in (1, 2):
        with notify(tmp_path, {"ops": mail.url()}, {"limit": 1}) as handler:
            handler.handle_batch(made_events(1, first=number))
            assert mail.subjects() == ["order 1"]


def test_clock_that_is_put_back_does_not_stretch_the_window(mail: MailServer, tmp_path: Path) -> None:
    """A window that has begun in an hour, by the journal, ends like any other."""
    journal = Journal(tmp_path / "notify.db")
    journal.open()
    number, _ = journal.route("rule0/ops")
    journal.sent(number, Window(time.time() + 3600, 5), made_events(1)[0])
    journal.close()
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 1, "window_seconds": 0.3}) as handler:
        handler.handle_batch(made_events(2))
        wait_until(lambda: bool(mail.mails()))

    assert mail.subjects() == ["rule0: 1 more events"]


def test_channel_that_is_away_does_not_keep_the_others_waiting(mail: MailServer, tmp_path: Path) -> None:
    """The call fails, and is made again; the channel that works has each message once, at once."""
    channels = {"away": "json://127.0.0.1:9/", "ops": mail.url()}
    with notify(tmp_path, channels) as handler:
        for _ in range(2):
            with pytest.raises(Unsent, match="channel away"):
                handler.handle_batch(made_events(2))

    assert mail.subjects() == ["order 1", "order 2"]


def test_attempt_that_was_given_up_is_not_sent_twice(mail: MailServer, tmp_path: Path) -> None:
    """It may still be sending when its retry comes, which waits for it and finds what was sent."""
    with notify(tmp_path, {"ops": mail.url()}) as handler:
        mail.freeze()
        attempts = [threading.Thread(target=handler.handle_batch, args=[made_events(1)]) for _ in range(2)]
        for attempt in attempts:
            attempt.start()
        attempts[0].join(0.3)
        assert attempts[0].is_alive()
        mail.thaw()
        for attempt in attempts:
            attempt.join()

    assert mail.subjects() == ["order 1"]


@pytest.mark.parametrize(("recipient", "error"), [("refused", PermanentError), ("later", Unsent)])
def test_answer_of_the_mail_server_decides(
    mail: MailServer, tmp_path: Path, recipient: str, error: type[Exception]
) -> None:
    """550 is for good, 451 for now."""
    with (
        notify(tmp_path, {"ops": mail.url(f"{recipient}@example.com")}) as handler,
        pytest.raises(error, match=r"channel ops answered (550|451)"),
    ):
        handler.handle_batch(made_events(1))


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, PermanentError), (404, PermanentError), (401, Unsent), (429, Unsent), (500, Unsent), (503, Unsent)],
)
def test_answer_of_a_service_decides(hook: Endpoint, tmp_path: Path, status: int, error: type[Exception]) -> None:
    """What credentials or patience may mend is tried again."""
    with (
        notify(tmp_path, {"hook": f"json://{hook.address}/answer/{status}"}) as handler,
        pytest.raises(error, match=f"channel hook answered {status}"),
    ):
        handler.handle_batch(made_events(1))


def test_event_that_does_not_fit_the_template_fails_for_good(mail: MailServer, tmp_path: Path) -> None:
    """In a batch the others before it are sent, and it is named when it comes alone."""
    events = [*made_events(1, extra=1), *made_events(1, first=2)]
    with (
        notify(tmp_path, {"ops": mail.url()}, {"title": "{record_id} {payload[extra]}"}) as handler,
        pytest.raises(PermanentError, match=r"payload\[extra\]"),
    ):
        handler.handle_batch(events)

    assert mail.subjects() == ["1 1"]


@pytest.mark.parametrize("user", ["", "secret-user:secret-word@"])
def test_nothing_secret_is_logged_or_raised(
    mail: MailServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], user: str
) -> None:
    """The library's own log would tell recipients, hosts, answers and texts: it is not passed on.

    Caught at the root logger, where the service takes its log: pytest's own fixture listens to loggers that do not
    pass theirs on.
    """
    url = mail.url("refused@example.com").replace("mailto://", f"mailto://{user}")
    records = _Records(logging.DEBUG)
    logging.getLogger().addHandler(records)
    try:
        options = NotifyOptions.model_validate(settings(tmp_path, {"ops": url}))
        handler = Notify(options)
        handler.open()
        with pytest.raises((Unsent, PermanentError)) as caught:
            handler.handle_batch(made_events(1, name="secret-value"))
        handler.close()
    finally:
        logging.getLogger().removeHandler(records)

    told = f"{records.text} {caught.value!r} {options!r} {''.join(capfd.readouterr())}"
    assert "secret-" not in told
    assert "refused@" not in told


class _Records(logging.Handler):
    """What is logged, as one text."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        self.text += f"{record.getMessage()}\n"


def test_journal_has_one_owner(mail: MailServer, tmp_path: Path) -> None:
    """A second handler on the same file would not see what the first has sent."""
    with notify(tmp_path, {"ops": mail.url()}):
        other = Notify(NotifyOptions.model_validate(settings(tmp_path, {"ops": mail.url()})))
        with pytest.raises(RuntimeError, match="another handler uses the journal"):
            other.open()
    other.open()
    other.close()


def test_journal_is_for_its_owner_only(mail: MailServer, tmp_path: Path) -> None:
    """It holds titles, and those hold values."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 0}) as handler:
        handler.handle_batch(made_events(1))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("notify.db*")}

    assert modes["notify.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_journal_remembers_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were delivered last."""
    monkeypatch.setattr(notify_journal, "REMEMBERED", 1000)
    journal = Journal(tmp_path / "notify.db")
    journal.open()
    number, window = journal.route("a/b")
    journal.hold(number, window, made_events(1010), [])
    again = journal.fresh(number, made_events(20))
    journal.close()

    assert [event.id for event in again] == list(range(1, 11))


def test_full_disk_settles_nothing_and_the_journal_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """The events are given again, and counted once."""
    journal = Journal(tmp_path / "notify.db")
    journal.open()
    number, window = journal.route("a/b")
    (pages,) = journal._db.execute("PRAGMA page_count").fetchone()
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.hold(number, window, made_events(5000), ["a sample"])
    assert journal.held(number) == ([], [])

    journal._db.execute("PRAGMA max_page_count = 100000")
    journal.hold(number, window, journal.fresh(number, made_events(5000)), ["a sample"])
    assert [one.number for one in journal.held(number)[0]] == [5000]
    journal.close()


def test_events_of_a_rule_that_is_gone_are_told_of(mail: MailServer, tmp_path: Path) -> None:
    """They wait in the journal for the rule to come back."""
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 0}) as handler:
        handler.handle_batch(made_events(3))
        mail.kill()
    mail.start()
    with capture_logs() as logged, notify(tmp_path, {"ops": mail.url()}, {"name": "renamed"}):
        pass
    assert [(one["event"], one["events"], one["route"]) for one in logged] == [("digest_orphaned", 3, "rule0/ops")]
    with notify(tmp_path, {"ops": mail.url()}, {"limit": 0}):
        pass

    assert mail.subjects() == ["rule0: 3 more events"]


def test_close_is_harmless_twice_and_without_open(mail: MailServer, tmp_path: Path) -> None:
    """And a closed handler sends nothing."""
    handler = Notify(NotifyOptions.model_validate(settings(tmp_path, {"ops": mail.url()})))
    handler.close()
    handler.open()
    handler.open()
    handler.close()
    handler.close()
    with pytest.raises(RuntimeError, match="not open"):
        handler.handle_batch(made_events(1))

    assert not any(thread.name == "notify-digests" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"channels": {}}, "channels"),
        ({"channels": {"ops": "secret-nonsense"}}, "channels"),
        ({"channels": {"ops": "slack://secret-bad"}}, "channels"),
        ({"rules": []}, "rules"),
        ({"rules": [{"name": "a", "channels": ["nobody"]}]}, "rules"),
        ({"rules": [{"name": "a", "channels": []}]}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"]}] * 2}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"], "tables": ["orders"]}]}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"], "body": "{payload.x}"}]}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"], "digest_title": "{table}"}]}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"], "limit": -1}]}, "rules"),
        ({"rules": [{"name": "a", "channels": ["ops"], "max": 1}]}, "rules"),
        ({"retries": 3}, "retries"),
    ],
)
def test_wrong_option_is_named(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    """At the start, all at once, and without the URL."""
    good = settings(tmp_path, {"ops": "json://127.0.0.1/"})
    with pytest.raises(ValidationError) as caught:
        NotifyOptions.model_validate(good | changes)

    assert {problem["loc"][0] for problem in caught.value.errors(include_input=False)} == {key}
    assert "secret-" not in str(caught.value)


def test_mail_is_not_slowed_down_by_the_library(mail: MailServer) -> None:
    """It would wait 5.5 s after each; limits are the rules' business."""
    channel = Channel("ops", mail.url())
    started = time.monotonic()
    for number in range(5):
        channel.send(f"mail {number}", "text", "info")

    assert time.monotonic() - started < 20
    assert len(mail.mails()) == 5


def test_ten_messages_fit_into_the_default_timeout_at_any_service() -> None:
    """What a service is known to want is kept (Slack's 1.2 s); where the library knows nothing it is a second."""
    paces = {
        url: Channel("c", url)._apprise[0].request_rate_per_sec
        for url in ("ntfys://topic", "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#ops", "json://localhost")
    }
    assert list(paces.values()) == [1.0, 1.2, 0]
    assert 10 * max(paces.values()) < SignalConfig().callback_timeout_seconds


def test_library_log_of_a_frozen_endpoint_says_timeout(hook: Endpoint) -> None:
    """The reason reaches the operator, in our words."""
    hook.freeze()
    channel = Channel("hook", f"json://{hook.address}/?rto=0.3")
    with pytest.raises(Unsent, match="channel hook has not answered in time"):
        channel.send("a", "b", "info")
    hook.thaw()
