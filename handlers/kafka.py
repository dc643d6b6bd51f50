"""The `kafka` handler: every event a record of a topic, settled when all in-sync replicas have it.

Owns the producer, which is idempotent, and the meaning of its errors. It runs in threads of the pool: librdkafka
sends and waits in threads of its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Annotated, Any, Literal, NamedTuple

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from pydantic import ByteSize, Field, SecretStr, model_validator

from cdc import DatabaseEvent, PermanentError, Position
from handlers.messages import Alphabet, Template, key_of, message_headers
from handlers.option_checks import matching, template
from handlers.tls import TlsOptions

__all__ = ["Kafka", "KafkaOptions", "NotDelivered"]

_log = structlog.get_logger(__name__)
_library = logging.getLogger(__name__)  # librdkafka's own words

# A topic's name has no character to spare for escaping but these; `_xHH` is rare enough in a table's name.
TOPIC = Alphabet(
    noun="topic",
    refused=re.compile(r"[^a-zA-Z0-9_-]"),
    refused_literal=re.compile(r"[^a-zA-Z0-9._-]|^\.{1,2}$"),
    limit=249,
    escape="_x{:02X}".format,
)
RECORD_OVERHEAD = 512  # bytes of a batch around one record, and of its own lengths; generous
REPORT_SECONDS = 2.0  # librdkafka looks for what has timed out once a second
CLOSE_SECONDS = 2.0  # a broker that hangs must not hold up the end of the service
_SERVER = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s/@,?#:]+):\d{1,5}")

# Without the first of these settled would not mean durable, or order be lost; the others are the options' own.
_OURS = frozenset(
    [
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "delivery.timeout.ms",
        "message.timeout.ms",
        "transactional.id",
        "bootstrap.servers",
        "metadata.broker.list",
        "security.protocol",
        "message.max.bytes",
        "compression.codec",
        "compression.type",
        "linger.ms",
        "queue.buffering.max.ms",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
    ]
)


class KafkaOptions(TlsOptions):
    """Options of `kafka`."""

    servers: tuple[Annotated[str, matching(_SERVER, "must be host:port")], ...] = Field(
        default=("127.0.0.1:9092",), min_length=1, description="Brokers to begin with, host:port; they name the others."
    )
    topic: Annotated[str, template(TOPIC)] = Field(
        default="walsignal.{schema}.{table}",
        description="Of a record, with `{schema}`, `{table}`, `{event_type}`, `{record_id}`, `{payload.COLUMN}`.",
    )
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(default="lz4", description="Of the records.")
    linger_ms: float = Field(
        default=5.0, ge=0, le=1000, description="How long a record waits for others, milliseconds."
    )
    max_message_bytes: ByteSize = Field(
        default=ByteSize(1_000_000), ge=1000, description="The largest record; the brokers and topics must allow it."
    )
    user: str | None = Field(default=None, description="SASL name to log in with.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="How name and password are shown to the broker."
    )
    librdkafka: dict[str, str | int | float | bool] = Field(
        default={},
        description="Further settings of librdkafka by their names; those that guarantee delivery are refused.",
    )
    timeout_seconds: float = Field(
        default=10.0, ge=1, description="For the delivery reports of a batch; keep it below the handler's timeout."
    )

    @model_validator(mode="after")
    def _leaves_the_guarantee(self) -> KafkaOptions:
        if (self.user is None) != (self.password is None):
            raise self.wrong_option(
                "user" if self.user is None else "password", "`user` and `password` need each other"
            )
        if taken := sorted(_OURS & self.librdkafka.keys()):
            raise self.wrong_option("librdkafka", f"{', '.join(taken)} is set by the handler; see its own options")
        return self

    def producer(self) -> dict[str, Any]:
        """The settings of librdkafka."""
        settings: dict[str, Any] = {
            "client.id": "walsignal",
            "partitioner": "murmur2_random",  # a key goes where Java's clients would send it
            # A broker that is back is found within this; the library's 10 s are for fleets of thousands of clients.
            "reconnect.backoff.max.ms": 1000,
            "log_level": 2,  # it would log every attempt to connect, several a second; the reason is in our errors
            **self.librdkafka,
            "bootstrap.servers": ",".join(self.servers),
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": int(self.timeout_seconds * 1000),
            "compression.type": self.compression,
            "topic.metadata.propagation.max.ms": int(self.timeout_seconds * 500),  # a missing topic is told of in time
            "linger.ms": min(self.linger_ms, self.timeout_seconds * 1000 / 2),
            "message.max.bytes": int(self.max_message_bytes),
            "security.protocol": ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT"),
        }
        if self.user is not None and self.password is not None:
            settings["sasl.mechanism"] = self.sasl_mechanism
            settings["sasl.username"] = self.user
            settings["sasl.password"] = self.password.get_secret_value()
        files = {
            "ssl.ca.location": self.tls_ca,
            "ssl.certificate.location": self.tls_certificate,
            "ssl.key.location": self.tls_key,
        }
        return settings | {name: str(path) for name, path in files.items() if path is not None}


class NotDelivered(Exception):
    """Kafka has not taken a record; another attempt may succeed."""


# Refused for good: no attempt will do better. All else may pass, or is mended by an operator.
_PERMANENT: Mapping[int, str] = {
    KafkaError.MSG_SIZE_TOO_LARGE: "the record is larger than the brokers or the topic allow (message.max.bytes)",
    KafkaError.RECORD_LIST_TOO_LARGE: "the record is larger than the topic's segments",
    KafkaError.INVALID_RECORD: "the broker has refused the record (a compacted topic needs a key, for example)",
    KafkaError.TOPIC_EXCEPTION: "the topic's name is not allowed",
}
_HINTS: Mapping[int, str] = {
    KafkaError._MSG_TIMED_OUT: "no report in time: are the brokers there, and enough replicas in sync?",
    KafkaError._ALL_BROKERS_DOWN: "no broker answers at the addresses of `servers`",
    KafkaError._TRANSPORT: "no broker answers at the addresses of `servers`",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "there is no such topic: make it, or let the brokers (auto.create.topics.enable)",
    KafkaError._UNKNOWN_TOPIC: "there is no such topic: make it, or let the brokers (auto.create.topics.enable)",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the user may not write to the topic",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the user may not produce idempotently (IdempotentWrite)",
    KafkaError._AUTHENTICATION: "the brokers refuse `user` and `password`",
    KafkaError.NOT_ENOUGH_REPLICAS: "too few replicas are in sync (min.insync.replicas)",
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: "too few replicas are in sync (min.insync.replicas)",
}


class _Record(NamedTuple):
    topic: str
    key: bytes
    headers: dict[str, str]
    body: bytes

    def size(self) -> int:
        headers = sum(len(name) + len(value.encode()) for name, value in self.headers.items())
        return len(self.key) + headers + len(self.body) + RECORD_OVERHEAD


class Kafka:
    """Produce each event; settled when its delivery report has come: all in-sync replicas have it.

    The producer is idempotent: its own retries neither double nor reorder. What is delivered to the handler again
    is a second record, with the same `cdc-position` header. All events of a record have the same key, so they are
    in order, in one partition.

    Errors: `PermanentError` for a record that is refused for good or whose topic cannot be made; everything else
    (`NotDelivered`) may pass and is worth another attempt.
    """

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._topic = Template(options.topic, TOPIC)
        self._batch = Lock()  # an attempt that was given up may still be waiting when its retry comes
        self._latest: dict[Position, object] = {}  # of the calls that wait or work: the newest for each first event
        self._producer: Producer | None = None
        self._last_error: KafkaError | None = None

    def open(self) -> None:
        """Make the producer, and see that a broker answers; NotDelivered."""
        with self._batch:
            try:
                self._ready().list_topics(timeout=self._options.timeout_seconds)
            except KafkaException as error:
                raise self._error_of(error.args[0]) from error

    def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Produce the events in order; returns when the reports of all have come."""
        records = [self._record(event) for event in events]
        first, attempt = events[0].position, object()
        self._latest[first] = attempt
        try:
            with self._batch:
                if self._latest.get(first) is not attempt:
                    raise NotDelivered("Kafka: given up while it waited, and a later attempt is there")
                self._produce(records)
        finally:
            if self._latest.get(first) is attempt:
                del self._latest[first]

    def close(self) -> None:
        """Let the producer go; a second call does nothing."""
        with self._batch:
            self._drop()

    def _record(self, event: DatabaseEvent) -> _Record:
        record = _Record(self._topic.of(event), key_of(event), message_headers(event), event.to_json())
        limit = int(self._options.max_message_bytes)
        if record.size() > limit:  # before anything is sent: the others of the batch are then produced once
            raise PermanentError(f"{record.size()} bytes of record, and max_message_bytes is {limit}")
        return record

    def _ready(self) -> Producer:
        if self._producer is None:
            self._last_error = None
            settings = self._options.producer()
            try:
                self._producer = Producer({**settings, "error_cb": self._on_error}, logger=_library)
            except KafkaException as error:
                raise NotDelivered(f"librdkafka refuses the options: {error.args[0].str()}") from None
        return self._producer

    def _produce(self, records: Sequence[_Record]) -> None:
        """Hand all over, then wait for all reports: while it waits, the thread serves them."""
        producer = self._ready()
        refused: list[KafkaError] = []

        def report(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                refused.append(error)

        failure: Exception | None = None
        try:
            for record in records:
                producer.produce(
                    record.topic, record.body, record.key, headers=dict(record.headers), on_delivery=report
                )
        except KafkaException as error:
            refused.append(error.args[0])
        except BufferError as error:  # the producer's queue, which is shared with nobody, has a bound of its own
            failure = error
        left = 0
        try:
            left = producer.flush(self._options.timeout_seconds + REPORT_SECONDS)
        except KafkaException as error:  # a fatal one, whenever it came
            refused.append(error.args[0])
        if left:  # librdkafka is late; before `_drop`, which has each of them reported as purged
            refused.append(KafkaError(KafkaError._MSG_TIMED_OUT))
        if left or any(error.fatal() for error in refused):
            self._drop()  # it takes nothing more, or might send later what the retry sends again
        if refused:
            raise self._error_of(refused[0])
        if failure is not None:
            raise failure

    def _on_error(self, error: KafkaError) -> None:
        """Of the whole client; librdkafka goes on trying. Called while a thread serves reports."""
        self._last_error = error
        _log.debug("kafka_error", error=error.name())

    def _error_of(self, error: KafkaError) -> Exception:
        code = error.code()
        if code in _PERMANENT:
            return PermanentError(f"Kafka: {_PERMANENT[code]} ({error.name()})")
        cause = error
        if code == KafkaError._MSG_TIMED_OUT and self._last_error is not None:
            cause = self._last_error  # why there was no report: a login that was refused, for example
        hint = _HINTS.get(cause.code(), cause.str())
        return NotDelivered(f"Kafka: {hint} ({error.name()})")

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaException):  # what made it unusable
                producer.purge()
                producer.flush(CLOSE_SECONDS)
