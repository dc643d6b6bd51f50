"""Where a webhook may be sent: which addresses are inside, and a resolver that never gives one of those.

Owns the judgement of an address and the filter between name and connection: aiohttp connects to what the
resolver returns and asks no second time, so that a name cannot change between the check and the connection.
It must not know requests, events or options.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

__all__ = ["InternalAddress", "PublicResolver", "is_internal", "literal"]

# Addresses that carry an IPv4 address, which is what is reached in the end.
_NAT64 = IPv6Network("64:ff9b::/96")
_V4_COMPATIBLE = IPv6Network("::/96")


class InternalAddress(OSError):
    """The name stands for internal addresses only; `host` is the name."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} has no address outside of internal networks")
        self.host = host


class PublicResolver(AbstractResolver):
    """The system's resolver without the internal addresses it finds; InternalAddress when nothing is left."""

    def __init__(self) -> None:
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """What `host` stands for, as aiohttp wants it; OSError when it is not found."""
        found = await self._resolver.resolve(host, port, family)
        outside = [one for one in found if not is_internal(ip_address(one["host"]))]
        if not outside:
            raise InternalAddress(host)
        return outside

    async def close(self) -> None:
        """See aiohttp."""
        await self._resolver.close()


def literal(host: str) -> IPv4Address | IPv6Address | None:
    """The address that `host` is, None if it is a name.

    ValueError for the other spellings of an IPv4 address that the system's resolver takes (``127.1``,
    ``2130706433``, ``0x7f000001``, ``0177.0.0.1``): nobody needs them but to get past a filter.
    """
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        socket.inet_aton(host.rstrip("."))
    except OSError:
        return None
    raise ValueError("an IPv4 address is written as four decimal numbers, such as 203.0.113.7")


def is_internal(address: IPv4Address | IPv6Address) -> bool:
    """Whether it lies in no public network: private, loopback, link-local, multicast, reserved, unspecified, shared.

    An IPv6 address that stands for an IPv4 one (mapped, compatible, 6to4, Teredo, NAT64) is judged by both.
    """
    if isinstance(address, IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_internal(inner)
        if address.is_site_local:
            return True
    return not address.is_global or address.is_multicast or address.is_reserved


def _inner(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    plain = IPv6Address(int(address))  # without a scope, which no network has
    if plain in _NAT64 or (plain in _V4_COMPATIBLE and int(plain) > 1):
        return IPv4Address(int(plain) & 0xFFFFFFFF)
    return None
