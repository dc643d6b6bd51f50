"""Tests of `handlers.kafka` with librdkafka's mock cluster."""

from __future__ import annotations

import ctypes
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError, Message, Producer
from pydantic import ValidationError

from cdc import DatabaseEvent, PermanentError
from handlers import kafka
from handlers.kafka import Kafka, KafkaOptions, NotDelivered
from tests.handlers.brokers import PATIENCE_SECONDS, TAKEN_SECONDS, KafkaMock, away, certificate, event, events
from tests.running import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaMock]:
    """One mock for all tests that do not kill it; each has a topic of its own."""
    with KafkaMock(tmp_path_factory.mktemp("kafka")) as running:
        yield running


def options(server: KafkaMock, topic: str = "orders", **more: Any) -> KafkaOptions:
    """Of a handler for that topic."""
    return KafkaOptions.model_validate(
        {"servers": [server.address], "topic": topic, "timeout_seconds": PATIENCE_SECONDS} | more
    )


@contextmanager
def opened(given: KafkaOptions) -> Iterator[Kafka]:
    """A handler, closed at the end of the block."""
    handler = Kafka(given)
    try:
        persistently(handler.open)
        yield handler
    finally:
        handler.close()


def delivered(handler: Kafka, batch: Sequence[DatabaseEvent]) -> None:
    """Give it the batch until it takes it."""
    persistently(lambda: handler.handle_batch(batch))


def persistently(call: Callable[[], None]) -> None:
    """Call until it returns, as the pool would: a busy machine may run into a short timeout."""
    deadline = time.monotonic() + TAKEN_SECONDS
    while True:
        try:
            return call()
        except NotDelivered:
            assert time.monotonic() < deadline


def headers(record: Message) -> dict[str, str]:
    """As text."""
    found = {}
    for name, value in dict(record.headers() or []).items():
        assert isinstance(value, bytes)
        found[name] = value.decode()
    return found


def ids(records: list[Message]) -> list[int]:
    """Of the events in them."""
    return [json.loads(record.value() or b"")["id"] for record in records]


def test_event_is_a_record_with_key_headers_and_json(server: KafkaMock) -> None:
    """What a consumer gets."""
    one = event(3, {"id": 3, "note": "ü"}, tags=["audit"])
    with opened(options(server, "shape.{schema}.{table}")) as handler:
        handler.handle_batch([one])
    (record,) = server.records(["shape.public.orders"])
    assert record.key() == b"public.orders/3"
    assert record.value() == one.to_json()
    assert headers(record)["cdc-position"] == "0/3E8:4"
    assert headers(record)["cdc-tags"] == "audit"


def test_events_of_a_record_are_in_order_in_one_partition(server: KafkaMock) -> None:
    """Seven records, and every event of each where the others are."""
    with opened(options(server, "ordered")) as handler:
        handler.handle_batch([event(number, record_id=str(number % 7)) for number in range(256)])
    records = server.records(["ordered"])
    assert len({record.partition() for record in records}) > 1
    for residue in range(7):
        mine = [record for record in records if record.key() == f"public.orders/{residue}".encode()]
        assert len({record.partition() for record in mine}) == 1
        assert ids(mine) == list(range(residue, 256, 7))


def test_event_delivered_twice_has_the_same_position(server: KafkaMock) -> None:
    """Two records: by the header a consumer knows them."""
    with opened(options(server, "twice")) as handler:
        handler.handle_batch(events(5))
        handler.handle_batch(events(5))
    records = server.records(["twice"])
    assert len(records) == 10
    assert len({headers(record)["cdc-position"] for record in records}) == 5


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_there(server: KafkaMock, compression: str) -> None:
    """The library is built with all of them."""
    with opened(options(server, f"compressed-{compression}", compression=compression)) as handler:
        handler.handle_batch([event(0, {"id": 0, "text": "x" * 10_000})])
    assert ids(server.records([f"compressed-{compression}"])) == [0]


def test_record_beyond_the_limit_is_permanent_and_nothing_is_sent(server: KafkaMock) -> None:
    """The key and headers count, too; the largest record that passes is taken by librdkafka."""
    with opened(options(server, "large", max_message_bytes=10_000)) as handler:
        for large in (event(1, {"text": "x" * 10_000}), event(1, record_id="x" * 5_000)):
            with pytest.raises(PermanentError, match="max_message_bytes is 10000"):
                handler.handle_batch([event(0), large])
        handler.handle_batch([event(2, {"id": 2, "text": "x" * 8_800})])
    assert ids(server.records(["large"])) == [2]


def test_handler_goes_on_when_the_broker_is_back(tmp_path: Path) -> None:
    """A cluster that does not know the producer any more, even; nothing is sent out of turn."""
    with KafkaMock(tmp_path) as broker, opened(options(broker, timeout_seconds=2)) as handler:
        delivered(handler, events(10))
        broker.kill()
        with pytest.raises(NotDelivered, match=r"no (broker answers|report in time)"):
            handler.handle_batch(events(20))
        broker.start()
        delivered(handler, [event(number, record_id="1") for number in range(30)])
        assert ids(broker.records(["orders"]))[-30:] == list(range(30))


def test_frozen_broker_times_out(tmp_path: Path) -> None:
    """The error says what to look at; afterwards the handler goes on."""
    with KafkaMock(tmp_path) as broker, opened(options(broker, timeout_seconds=1)) as handler:
        delivered(handler, events(1))
        broker.freeze()
        with pytest.raises(NotDelivered, match=r"no (broker answers|report in time)"):
            handler.handle_batch(events(10))
        broker.thaw()
        delivered(handler, [event(20)])
        assert 20 in ids(broker.records(["orders"]))


def test_library_that_is_late_with_its_report_is_not_what_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for what has timed out once a second, or later: not that the records are purged, but why."""
    with KafkaMock(tmp_path) as broker, opened(options(broker)) as handler:
        delivered(handler, events(1))
        broker.freeze()
        monkeypatch.setattr(kafka, "REPORT_SECONDS", 0.1 - PATIENCE_SECONDS)
        with pytest.raises(NotDelivered, match=r"no (broker answers|report in time)"):
            handler.handle_batch(events(10))
        monkeypatch.undo()
        broker.thaw()
        delivered(handler, [event(20)])
        assert 20 in ids(broker.records(["orders"]))


def test_attempt_that_was_given_up_does_not_overtake_its_retry(tmp_path: Path) -> None:
    """The pool cannot stop a thread: the second call waits until the first has its reports."""
    with KafkaMock(tmp_path) as broker, opened(options(broker, timeout_seconds=20)) as handler:
        handler.handle_batch([event(0, record_id="1")])
        broker.freeze()
        first = threading.Thread(target=handler.handle_batch, args=([event(1, record_id="1")],))
        first.start()
        wait_until(handler._batch.locked)
        second = threading.Thread(target=handler.handle_batch, args=([event(2, record_id="1")],))
        second.start()
        broker.thaw()
        first.join(30)
        second.join(30)
        assert ids(broker.records(["orders"])) == [0, 1, 2]


def test_attempt_that_was_given_up_while_it_waited_is_not_produced(tmp_path: Path) -> None:
    """Of three attempts with one event the first is on its way, the second steps back for the third."""
    with KafkaMock(tmp_path) as broker, opened(options(broker, timeout_seconds=20)) as handler:
        handler.handle_batch([event(0)])
        broker.freeze()
        with ThreadPoolExecutor(3) as threads:
            attempts = [threads.submit(handler.handle_batch, [event(1)])]
            wait_until(handler._batch.locked)
            for _ in range(2):
                known = dict(handler._latest)
                attempts.append(threads.submit(handler.handle_batch, [event(1)]))
                wait_until(lambda known=known: handler._latest != known)  # type: ignore[misc]
            broker.thaw()
            errors = [attempt.exception(60) for attempt in attempts]
        assert [type(error) for error in errors] == [type(None), NotDelivered, type(None)]
        assert sorted(ids(broker.records(["orders"]))) == [0, 1, 1]
        assert not handler._latest


def test_producer_with_a_fatal_error_is_made_anew(server: KafkaMock) -> None:
    """The error may pass: the next attempt has a producer that knows nothing of it."""
    with opened(options(server, "fatal")) as handler:
        handler.handle_batch([event(0)])
        first = handler._producer
        assert first is not None
        raise_fatal(first)
        with pytest.raises(NotDelivered, match="FATAL"):
            handler.handle_batch([event(1)])
        handler.handle_batch([event(1)])
        assert handler._producer is not first
    assert sorted(ids(server.records(["fatal"]))) == [0, 1]


def raise_fatal(producer: Producer) -> None:
    """By librdkafka's own means for tests; its handle follows the head of the Python object."""
    folder = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(folder.glob("librdkafka-*"))))
    handle = ctypes.c_void_p.from_address(id(producer) + object.__basicsize__)
    code = KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER
    assert library.rd_kafka_test_fatal_error(handle, ctypes.c_int(code), b"test") == 0


def test_close_is_harmless_at_any_time(server: KafkaMock) -> None:
    """Without open, twice, and before it is used again."""
    handler = Kafka(options(server, "closed"))
    handler.close()
    handler.open()
    handler.close()
    handler.close()
    handler.handle_batch([event(0)])
    handler.close()


def test_close_of_a_handler_whose_broker_is_away_does_not_wait_for_it() -> None:
    """The service's end is not held up."""
    handler = Kafka(KafkaOptions.model_validate({"servers": [away()], "timeout_seconds": 1}))
    with pytest.raises(NotDelivered):
        handler.handle_batch(events(3))
    began = time.monotonic()
    handler.close()
    assert time.monotonic() - began < 30


def test_broker_that_is_away_is_told_at_open() -> None:
    """With what to look at."""
    handler = Kafka(KafkaOptions.model_validate({"servers": [away()], "timeout_seconds": 1}))
    with pytest.raises(NotDelivered, match="no broker answers at the addresses of `servers`"):
        handler.open()
    handler.close()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (KafkaError.MSG_SIZE_TOO_LARGE, PermanentError, "larger than the brokers"),
        (KafkaError.INVALID_RECORD, PermanentError, "refused the record"),
        (KafkaError.TOPIC_EXCEPTION, PermanentError, "topic's name"),
        (KafkaError._MSG_TIMED_OUT, NotDelivered, "no report in time"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, NotDelivered, "there is no such topic"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, NotDelivered, "may not write"),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, NotDelivered, "IdempotentWrite"),
        (KafkaError.NOT_ENOUGH_REPLICAS, NotDelivered, "too few replicas"),
        (KafkaError.LEADER_NOT_AVAILABLE, NotDelivered, "LEADER_NOT_AVAILABLE"),
    ],
)
def test_error_is_permanent_or_may_pass(code: int, kind: type[Exception], text: str) -> None:
    """The one table; what it does not name may pass."""
    error = Kafka(KafkaOptions.model_validate({}))._error_of(KafkaError(code))
    assert type(error) is kind
    assert text in str(error)


def test_no_report_is_explained_by_what_the_brokers_have_said() -> None:
    """A login that is refused shows in the records only as a report that does not come."""
    handler = Kafka(KafkaOptions.model_validate({}))
    handler._on_error(KafkaError(KafkaError._AUTHENTICATION))
    assert "refuse `user` and `password`" in str(handler._error_of(KafkaError(KafkaError._MSG_TIMED_OUT)))


def test_options_are_settings_of_librdkafka(tmp_path: Path) -> None:
    """Login and encryption, which the mock does not have; librdkafka takes them."""
    file, key = certificate(tmp_path)
    given = {"user": "cdc", "password": "hunter2", "tls": True, "tls_ca": file, "tls_certificate": file, "tls_key": key}
    made = KafkaOptions.model_validate({"servers": ["a:1", "b:2"], "librdkafka": {"batch.size": 1000}} | given)
    settings = made.producer()
    assert settings["bootstrap.servers"] == "a:1,b:2"
    assert (settings["security.protocol"], settings["sasl.mechanism"]) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (settings["enable.idempotence"], settings["acks"], settings["batch.size"]) == (True, "all", 1000)
    assert Producer({**settings, "log_level": 0}) is not None
    assert "hunter2" not in repr(made)


def test_setting_that_librdkafka_does_not_know_is_told() -> None:
    """When the producer is made; no other setting is shown."""
    handler = Kafka(
        KafkaOptions.model_validate({"librdkafka": {"no.such.setting": 1}, "user": "a", "password": "hunter2"})
    )
    with pytest.raises(NotDelivered, match=r"no\.such\.setting") as caught:
        handler.open()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"servers": ["host"]}, "must be host:port"),
        ({"servers": []}, "at least 1"),
        ({"topic": "a/b"}, "is not allowed"),
        ({"topic": "{nothing}"}, "is unknown"),
        ({"compression": "rar"}, "'none'"),
        ({"user": "cdc"}, "need each other"),
        ({"password": "hunter2"}, "need each other"),
        ({"librdkafka": {"acks": 0, "enable.idempotence": False}}, "acks, enable.idempotence is set by the handler"),
        ({"tls_ca": "ca.pem"}, "need tls = true"),
        ({"timeout_seconds": 0}, "greater than or equal to 1"),
        ({"acks": 1}, "Extra inputs"),
    ],
)
def test_wrong_option_is_refused(given: dict[str, Any], problem: str) -> None:
    """At the start, and no value is shown."""
    with pytest.raises(ValidationError, match=problem) as caught:
        KafkaOptions.model_validate(given)
    assert "hunter2" not in str(caught.value)
