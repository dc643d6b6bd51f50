"""The remote engine of `search_index`: OpenSearch, by its bulk interface and external versions.

Owns the number that a position is there, and what each answer of the server means; must not know events beyond a
change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as Unreachable
from opensearchpy.exceptions import ConnectionTimeout, TransportError

from cdc import CallbackError, PermanentError, Position, RetryLater, to_json
from handlers.name_template import NameTemplate
from handlers.search_changes import Change, Clear, Document

__all__ = ["RemoteEngine", "Target", "version"]

MAX_BULK_BYTES = 1024 * 1024  # what is more than this, aiohttp writes while nothing else on the event loop goes on
BUSY_SECONDS = 2.0  # until a server that says 429 is asked again; it does not say when
ORDINAL_BITS = 16
LSN_BITS = 63 - ORDINAL_BITS  # of the LSN without its lowest three: the ends of WAL records are multiples of 8
VERSION_FIELD = "cdc_version"


@dataclass(frozen=True, slots=True)
class Target:
    """Which server, how to log in, and what documents are called there."""

    hosts: Sequence[str]
    index: NameTemplate
    document_id: NameTemplate
    login: tuple[str, str] | None = None
    ca_file: str | None = None
    verify_certificates: bool = True
    answer_seconds: float = 10.0


def version(position: Position) -> int:
    """The position as a number of 63 bits that never falls from one change of a row to the next.

    It rises with every change, but for those past the 65,535th of one transaction, which share the last number:
    the server takes an equal version, so that of those the last to arrive stays. PermanentError past 1 PiB of WAL.
    """
    lsn = int(position.commit_lsn) >> 3
    if lsn >> LSN_BITS:
        raise PermanentError("past 1 PiB of WAL a position fits no version of the search engine")
    return lsn << ORDINAL_BITS | min(position.ordinal, (1 << ORDINAL_BITS) - 1)


class RemoteEngine:
    """Writes to an OpenSearch cluster; the client pools connections, and connects again after an outage."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._client: Any = None

    async def open(self) -> None:
        """See whether the server is there; opensearch-py's errors."""
        if self._client is not None:
            return
        for name in ("opensearch", "opensearchpy.trace"):  # below this they write every request, and with it the rows
            logging.getLogger(name).setLevel(logging.WARNING)
        target = self._target
        options: dict[str, Any] = {"ca_certs": target.ca_file} if target.ca_file else {}
        client = AsyncOpenSearch(
            hosts=list(target.hosts),
            http_auth=target.login,
            verify_certs=target.verify_certificates,
            ssl_show_warn=False,
            timeout=target.answer_seconds,
            max_retries=0,  # whoever delivers tries again, and waits in between
            **options,
        )
        try:
            await client.info()
        except BaseException:
            await client.close()
            raise
        self._client = client

    async def apply(self, batch: Sequence[Change]) -> None:
        """Put and take out documents; returns when the server has answered for each.

        PermanentError, RetryLater, or opensearch-py's errors for what may pass.
        """
        if self._client is None:
            raise CallbackError("the connection to the search engine is not open")
        documents: list[Document] = []
        for change in batch:
            if isinstance(change, Clear):
                await self._put(documents)
                documents = []
                await self._clear(change)
            else:
                documents.append(change)
        await self._put(documents)

    async def close(self) -> None:
        """Let the connections go; a second call does nothing."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _put(self, documents: Sequence[Document]) -> None:
        for body, count in self._bodies(documents):
            try:
                answer = await self._client.bulk(body=body)
            except TransportError as error:
                raise mapped(error) from None  # the server's reason may quote the row
            if len(answer["items"]) != count:
                raise CallbackError(f"the search engine has answered for {len(answer['items'])} of {count} documents")
            if answer.get("errors"):
                _raise_worst(answer["items"])

    def _bodies(self, documents: Sequence[Document]) -> Iterator[tuple[bytes, int]]:
        lines: list[bytes] = []
        count = size = 0
        for document in documents:
            pair = self._lines(document)
            length = sum(map(len, pair))
            if count and size + length > MAX_BULK_BYTES:
                yield b"\n".join([*lines, b""]), count
                lines, count, size = [], 0, 0
            lines += pair
            count += 1
            size += length
        if count:
            yield b"\n".join([*lines, b""]), count

    def _lines(self, document: Document) -> list[bytes]:
        number = version(document.position)
        head = {
            "_index": self._target.index.of(document.event),
            "_id": self._target.document_id.of(document.event, None, document.record_id),
            "version": number,
            "version_type": "external_gte",
        }
        if document.row is None:
            return [to_json({"delete": head})]
        return [to_json({"index": head}), to_json({**document.row, VERSION_FIELD: number})]

    async def _clear(self, change: Clear) -> None:
        """Delete what is older by its field: a document's version cannot be searched for."""
        if not any(field.name == "table_name" for field in self._target.index.fields):
            raise PermanentError(
                f"{change.event.kind.table}: in an index of several tables it is not known what TRUNCATE has emptied",
                hint="write {table_name} into the option `index`, or leave truncate out of `event_types`",
            )
        index = self._target.index.of(change.event)
        query = {"query": {"range": {VERSION_FIELD: {"lt": version(change.position)}}}}
        try:
            await self._client.indices.refresh(index=index, params={"ignore_unavailable": "true"})
            answer = await self._client.delete_by_query(
                index=index,
                body=query,
                params={"conflicts": "proceed", "refresh": "true", "ignore_unavailable": "true"},
            )
        except TransportError as error:
            raise mapped(error) from None  # the server's reason may quote the row
        if answer.get("timed_out") or answer.get("failures"):
            raise CallbackError(f"the search engine could not empty the index {index}")


def mapped(error: TransportError) -> Exception:
    """The error to raise for a request that failed as a whole: as it is when it may pass.

    A wrong login (401, 403) may: an operator mends it.
    """
    if isinstance(error, Unreachable | ConnectionTimeout) or not isinstance(error.status_code, int):
        return error
    return _meaning(error.status_code, "") or error


def _meaning(status: int, kind: str) -> Exception | None:
    """The one table: what a status, of a request or of one document in it, means for the event."""
    told = f"{status} {kind}".strip()
    if status == 429:
        return RetryLater(f"the search engine is busy ({told})", seconds=BUSY_SECONDS)
    if status in (401, 403, 408) or status >= 500:
        return CallbackError(f"the search engine cannot take it now ({told})")
    if status >= 400:
        return PermanentError(f"the search engine refuses it for good ({told})", hint="see the mapping of the index")
    return None


def _raise_worst(items: Sequence[Mapping[str, Any]]) -> None:
    """The error of a batch: busy before away before refused, as all of it is sent again.

    409 is a newer version that is there, and a missing document needs no deletion: both are as wanted.
    Only the kind of an error is told: its reason may quote the row.
    """
    found: list[Exception] = []
    for item in items:
        ((operation, result),) = item.items()
        status = result.get("status", 500)
        if status == 409 or (operation == "delete" and status == 404):
            continue
        error = _meaning(status, str((result.get("error") or {}).get("type", "")))
        if error is not None:
            found.append(error)
    found.sort(key=lambda error: (not isinstance(error, RetryLater), isinstance(error, PermanentError)))
    if found:
        raise found[0]
