"""The ways in which a decoder reads rows. What comes out must be the same: tests run each way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

import pytest

from cdc.errors import DecodeError
from cdc.messages import Decoded
from cdc.values import Loader, Loaders, TypeInfo
from cdc.wal2json import Decoder, SourceCatalog, Wal2JsonChange, plans

__all__ = ["WAYS", "FixedCatalog", "choose", "each_way", "make_decoder"]

WAYS = ("rows-later", "rows-at-once", "by-plan")

_chosen = {"way": WAYS[0]}


def choose(way: str, patch: pytest.MonkeyPatch) -> None:
    """For all decoders made from now on."""
    _chosen["way"] = way
    if way == "by-plan":
        patch.setattr(plans, "ROWS_BEFORE", 1)


@pytest.fixture(scope="module", autouse=True, params=WAYS)
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """How a row is read must not be seen: all of a module that imports this runs each way."""
    with pytest.MonkeyPatch.context() as patch:
        choose(request.param, patch)
        yield


class FixedCatalog:
    """A catalog without a database: a type that is not built in is what `resolve` says, or text."""

    def __init__(
        self,
        toastable: frozenset[str] = frozenset(),
        *,
        resolve: Callable[[int], TypeInfo | None] = lambda _: None,
        numbers_as_text: bool = False,
    ) -> None:
        self._loaders = Loaders(resolve, numbers_as_text=numbers_as_text)
        self._toastable = toastable

    @property
    def loaders(self) -> Mapping[int, Loader]:
        """See `cdc.wal2json.SourceCatalog`."""
        return self._loaders

    def toastable(self, schema: str, table: str) -> frozenset[str]:  # noqa: ARG002 - the protocol's
        """See `cdc.wal2json.SourceCatalog`."""
        return self._toastable


class Planning(Decoder):
    """Has seen and read all that it decodes twice before."""

    def decode_all(self, payloads: Sequence[bytes | memoryview]) -> tuple[list[Decoded], DecodeError | None]:
        """See `Decoder.decode_all`."""
        for _ in range(2):
            for message in super().decode_all(payloads)[0]:
                if isinstance(message, Wal2JsonChange):
                    with suppress(Exception):
                        message.payload()
        return super().decode_all(payloads)


def make_decoder(
    catalog: SourceCatalog | None = None, *, watch: Sequence[str] = (), codec: str | None = None
) -> Decoder:
    """A decoder that reads rows in the chosen way."""
    kind = Planning if _chosen["way"] == "by-plan" else Decoder
    reads_rows = _chosen["way"] != "rows-later"
    return kind(catalog or FixedCatalog(), watch=watch, codec=codec, reads_rows=reads_rows)
