"""`search_index` under the contract: an index in a folder, and one in the double of an OpenSearch server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import aiohttp
import tantivy

from cdc import Lsn, Position
from handlers.search_remote import ORDINAL_BITS, VERSION_FIELD
from tests.handlers.contract import Clause, Subject
from tests.handlers.opensearch import OpenSearchDouble

NO_SERVER = "it writes files and talks to no server; its own tests kill the process and fill the disk"


class EmbeddedSubject(Subject[None]):
    """Effects are the documents."""

    name = "search_index"
    variant = "tantivy"
    exempt: ClassVar = dict.fromkeys(
        (Clause.DURABLE, Clause.DOWN, Clause.BACK, Clause.SLOW, Clause.CANCELLED), NO_SERVER
    )
    wrong_options: ClassVar = {"engine": "x", "fields": {"name": "words"}, "tombstone_seconds": 0}

    def make_server(self) -> None:
        return None

    def options(self) -> dict[str, Any]:
        return {"folder": "index", "fields": {"id": "integer", "name": "text"}}

    async def effects(self) -> Sequence[str]:
        searcher = tantivy.Index.open(str(self.folder / "index")).searcher()
        hits = searcher.search(tantivy.Query.all_query(), limit=10_000).hits
        found: list[Any] = [searcher.doc(address) for _, address in hits]
        return [str(Position(Lsn(one.get_first("_lsn")), one.get_first("_ordinal"))) for one in found]


class RemoteSubject(Subject[OpenSearchDouble]):
    """Effects are the documents, with the position in their version."""

    name = "search_index"
    variant = "opensearch"
    wrong_options: ClassVar = {"hosts": ["secret-value"], "index": "{name}", "document_id": "x", "answer_seconds": 0}

    def make_server(self) -> OpenSearchDouble:
        return self.servers.of(OpenSearchDouble)

    def options(self) -> dict[str, Any]:
        index = f"{self.token}-{{table_name}}"
        return {"engine": "opensearch", "hosts": [self.server.url], "index": index, "answer_seconds": 10}

    async def effects(self) -> Sequence[str]:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.server.url}/{self.token}-items/_all") as answer,
        ):
            versions = [document[VERSION_FIELD] for document in await answer.json()]
        mask = (1 << ORDINAL_BITS) - 1
        return [str(Position(Lsn((number >> ORDINAL_BITS) << 3), number & mask)) for number in versions]
