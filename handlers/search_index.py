"""The `search_index` handler: rows as documents of a search index, embedded or remote, none set back to an older row.

Owns the options and the choice of the engine; the engines are `handlers.search_embedded` and
`handlers.search_remote`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from tantivy import SchemaBuilder

from cdc import DatabaseEvent, HandlerOptions
from handlers.name_template import NameTemplate
from handlers.search_changes import Engine, changes
from handlers.search_embedded import OWN_FIELDS, EmbeddedEngine, FieldKind
from handlers.search_remote import RemoteEngine, Target

__all__ = ["SearchIndex", "SearchIndexOptions"]


class SearchIndexOptions(HandlerOptions):
    """Options of the `search_index` handler."""

    engine: Literal["tantivy", "opensearch"] = Field(
        default="tantivy", description='`"tantivy"`: an index in a folder of this machine. `"opensearch"`: a server.'
    )
    fields: dict[str, FieldKind] = Field(
        default={},
        validate_default=True,
        description="Column → how it is indexed: `text` (words), `keyword` (as a whole), `integer`, `number`,"
        " `boolean`, `time`, `stored` (only given back, as JSON). tantivy needs it; to OpenSearch it is a choice of"
        " columns (none: all), and the index's own mapping counts.",
    )
    folder: Path | None = Field(
        default=None, validate_default=True, description="tantivy: where the index lies; made when it is missing."
    )
    tombstone_seconds: float = Field(
        default=7 * 86400.0,
        gt=0,
        description="tantivy: how long a deleted document's position is kept, so that nothing older comes back.",
    )
    hosts: list[str] = Field(
        default=[], validate_default=True, description="opensearch: URLs of the servers, such as `https://search:9200`."
    )
    index: str = Field(
        default="{table_name}",
        description="opensearch: name of the index: a text with `{schema}` and `{table_name}` in it. Lower case.",
    )
    document_id: str = Field(
        default="{record_id}",
        description="opensearch: a document's id: a text with `{record_id}`, `{schema}`, `{table_name}`.",
    )
    username: str | None = Field(default=None, description="opensearch: name to log in with.")
    password: SecretStr | None = Field(default=None, description="opensearch: its password.")
    ca_file: Path | None = Field(
        default=None, description="opensearch: certificates to trust; without it the system's."
    )
    verify_certificates: bool = Field(default=True, description="opensearch: whether the server must prove who it is.")
    answer_seconds: float = Field(
        default=10.0, gt=0, description="opensearch: after so long without an answer the batch is tried again."
    )

    @field_validator("fields")
    @classmethod
    def _are_indexable(cls, value: dict[str, FieldKind], info: ValidationInfo) -> dict[str, FieldKind]:
        if info.data.get("engine") == "tantivy" and not value:
            raise ValueError('engine = "tantivy" needs `fields` with at least one column')
        for name in value if info.data.get("engine") == "tantivy" else ():
            if name in OWN_FIELDS:
                raise ValueError(f"{name} is a field of every document")
            if not SchemaBuilder.is_valid_field_name(name):
                raise ValueError(f"the index takes no field of the name {name!r}")
        return value

    @field_validator("folder")
    @classmethod
    def _is_given(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if info.data.get("engine") == "tantivy" and value is None:
            raise ValueError('engine = "tantivy" needs `folder`')
        return value

    @field_validator("hosts")
    @classmethod
    def _are_urls(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("engine") == "opensearch" and not value:
            raise ValueError('engine = "opensearch" needs `hosts`')
        if not all(host.startswith(("http://", "https://")) and "@" not in host for host in value):
            raise ValueError("must be URLs such as https://search:9200, without name and password")
        return value

    @field_validator("index", "document_id")
    @classmethod
    def _is_template(cls, value: str) -> str:
        template = NameTemplate(value)
        if template.columns:
            raise ValueError("takes no columns: after a change of one the old document would not be found")
        return value

    @field_validator("index")
    @classmethod
    def _is_without_id(cls, value: str) -> str:
        if any(field.name in ("record_id", "event_type") for field in NameTemplate(value).fields):
            raise ValueError("takes {schema} and {table_name} only")
        return value

    @field_validator("document_id")
    @classmethod
    def _is_of_one_record(cls, value: str) -> str:
        names = [field.name for field in NameTemplate(value).fields]
        if "record_id" not in names or "event_type" in names:
            raise ValueError("needs {record_id}, and takes no {event_type}")
        return value


class SearchIndex:
    """Put each row into the index under its record id, and take it out with the row.

    Settled when the embedded index has committed, or the server has answered for each document of the batch.
    """

    def __init__(self, options: SearchIndexOptions) -> None:
        self._columns = frozenset(options.fields)
        self._engine: Engine = _engine(options)

    async def open(self) -> None:
        """Open the index; CallbackError when its fields differ or others write to it, the client's when it is away."""
        await self._engine.open()

    async def handle_batch(self, events: Sequence[DatabaseEvent]) -> None:
        """Bring the documents of the events' rows up to date."""
        await self._engine.apply([change for event in events for change in changes(event, self._columns)])

    async def close(self) -> None:
        """Let the index go; a second call does nothing."""
        await self._engine.close()


def _engine(options: SearchIndexOptions) -> Engine:
    if options.engine == "tantivy" and options.folder is not None:
        return EmbeddedEngine(options.folder, options.fields, options.tombstone_seconds)
    password = "" if options.password is None else options.password.get_secret_value()
    return RemoteEngine(
        Target(
            hosts=options.hosts,
            index=NameTemplate(options.index),
            document_id=NameTemplate(options.document_id),
            login=None if options.username is None else (options.username, password),
            ca_file=None if options.ca_file is None else str(options.ca_file),
            verify_certificates=options.verify_certificates,
            answer_seconds=options.answer_seconds,
        )
    )
