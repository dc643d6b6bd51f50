"""Who may ask: names of hosts, pages of other sites, addresses, and the file with the token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from cdc.errors import CdcError
from cdc.http import HttpServer
from cdc.http.access import TokenFile, is_served
from cdc.service import Service
from tests.waiting import make_config

TOKEN = "0123456789abcdef-rest"


@pytest.mark.parametrize(
    ("header", "served"),
    [
        ("localhost:9464", True),
        ("127.0.0.1:9464", True),
        ("127.9.9.9", True),
        ("[::1]:9464", True),
        ("LOCALHOST", True),
        ("cdc.localhost", True),
        (None, True),
        ("rebound.example", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("192.0.2.7:9464", False),
        ("", False),
        ("[broken", False),
    ],
)
def test_on_loopback_only_names_of_this_machine_are_served(header: str | None, served: bool) -> None:
    """A name of somebody else's, though it leads here, is a rebound one."""
    assert is_served(header, bound="127.0.0.1", allowed=()) is served


def test_hosts_that_are_allowed_are_served_and_then_no_others() -> None:
    """A proxy's name is allowed by the configuration; on a reachable address any name is, unless some are told."""
    assert is_served("cdc.example:443", bound="127.0.0.1", allowed=["CDC.example"])
    assert is_served("anything", bound="0.0.0.0", allowed=())
    assert not is_served("anything", bound="0.0.0.0", allowed=["cdc.example"])
    assert is_served("cdc.example", bound="0.0.0.0", allowed=["cdc.example"])


async def test_a_rebound_name_gets_nothing(tmp_path: Path) -> None:
    """Neither the page nor metrics nor health: 421, and the hint names the setting."""
    server = HttpServer(Service(make_config("postgresql:///none", tmp_path)))
    async with server, aiohttp.ClientSession() as client:
        for path in ("/", "/metrics", "/healthz", "/status", "/events"):
            headers = {"Host": "rebound.example"}
            async with client.get(f"http://127.0.0.1:{server.port}{path}", headers=headers) as response:
                assert response.status == 421
                assert "http.allowed_hosts" in await response.text()


@pytest.mark.parametrize(
    ("settings", "warned", "words"),
    [
        ({}, False, ""),
        ({"host": "localhost"}, False, ""),
        ({"host": "0.0.0.0"}, True, "names of tables"),
        ({"host": "0.0.0.0", "token_file": "token"}, True, "token crosses the network in the clear"),
    ],
)
async def test_listening_beyond_this_machine_is_warned_of(
    tmp_path: Path, settings: dict[str, Any], warned: bool, words: str
) -> None:
    """The default is loopback, and says nothing; with a token it says what that means over plain HTTP."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    if "token_file" in settings:
        settings = settings | {"token_file": str(tmp_path / "token")}
    with capture_logs() as logs:
        async with HttpServer(Service(make_config("postgresql:///none", tmp_path, http=settings))):
            pass
    notes = [entry["note"] for entry in logs if entry["event"] == "http_beyond_loopback"]

    assert bool(notes) is warned
    assert all(words in note for note in notes)
    assert TOKEN not in str(logs)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (TOKEN, 0o644, "others"),
        (TOKEN, 0o602, "others"),
        (TOKEN, 0o620, "others"),
        ("short-token", 0o600, "holds no token"),
        ("two words of a long token", 0o600, "holds no token"),
        ("", 0o600, "holds no token"),
        ("é" * 20, 0o600, "holds no token"),
    ],
)
def test_a_token_file_that_is_open_or_short_is_refused(tmp_path: Path, content: str, mode: int, words: str) -> None:
    """Whoever could read it, or guess it, would be the operator; the error holds nothing of it."""
    file = tmp_path / "token"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(CdcError, match=words) as caught:
        TokenFile(file).read()

    assert not content or content not in str(caught.value)


def test_a_token_file_that_is_missing_or_no_file_is_refused(tmp_path: Path) -> None:
    """The error says what to do, and no path."""
    for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "is no file")):
        with pytest.raises(CdcError, match=words):
            TokenFile(path).read()


def test_a_token_may_be_readable_by_its_group_and_end_in_a_newline(tmp_path: Path) -> None:
    """As mounted secrets are."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o440)

    assert TokenFile(file).read() == TOKEN
