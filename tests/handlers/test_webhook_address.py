"""Which addresses a webhook must not reach, however they are written."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from handlers.webhook_address import InternalAddress, PublicResolver, is_internal, literal

INTERNAL = [
    "127.0.0.1",
    "127.255.255.254",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "239.1.1.1",
    "255.255.255.255",
    "240.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:1:2:3:4:80ff:fffe",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_address_is_known(address: str) -> None:
    """Of every kind that is not for the public, and wrapped in an IPv6 address too."""
    assert is_internal(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_is_let_through(address: str) -> None:
    """Also one beside a private network, and one that is mapped."""
    assert not is_internal(ip_address(address))


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.0.0.1.", "0"])
def test_unusual_spelling_of_an_address_is_refused(host: str) -> None:
    """The system's resolver takes each of them for 127.0.0.1 or 0.0.0.0."""
    with pytest.raises(ValueError, match="four decimal numbers"):
        literal(host)


def test_names_are_no_addresses() -> None:
    """Also such as begin with a digit."""
    assert literal("example.com") is literal("3com.example") is literal("localhost") is None
    assert literal("[::1]") == ip_address("::1")


async def test_resolver_gives_only_what_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an inner and an outer address is reached at the outer one only."""

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", port)), (*kind, ("8.8.8.8", port)), (*kind, ("169.254.169.254", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    found = await PublicResolver().resolve("example.com", 443)

    assert [one["host"] for one in found] == ["8.8.8.8"]


async def test_resolver_refuses_a_name_that_is_only_inside() -> None:
    """By the system's own resolver."""
    with pytest.raises(InternalAddress, match="localhost"):
        await PublicResolver().resolve("localhost", 443, socket.AF_UNSPEC)
