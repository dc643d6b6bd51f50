"""Who may ask: names of hosts that are ours, pages that are not, and the token of those who may change something.

Must not know what is asked for.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from cdc.errors import CdcError

__all__ = ["HEADERS", "MIN_TOKEN", "PAGE_HEADERS", "TokenFile", "is_foreign_page", "is_loopback", "is_served"]

HEADERS = {
    "Server": "walsignal",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""For the page alone: its own two files and its own stream of events, and no way from text to markup."""

MIN_TOKEN = 16
"""Characters: at 64 connections at once, what is shorter could be guessed."""
MAX_TOKEN_FILE = 4096


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_served(header: str | None, *, bound: str, allowed: Sequence[str]) -> bool:
    """Whether a request with this Host is for us.

    On loopback, a name that is none of this machine's comes from a page whose owner has let its own name lead here (DNS
    rebinding), to read what is not his. A program that sends no Host is no browser.
    """
    if header is None or (not allowed and not is_loopback(bound)):
        return True
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return is_loopback(host) or host in {bound.lower(), *(name.lower() for name in allowed)}


def is_foreign_page(request: web.BaseRequest) -> bool:
    """Whether a browser says that another site's page sends this."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("Host")


class TokenFile:
    """The secret that changes over HTTP need. Read anew each time, so that a new one counts at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def accepts(self, request: web.BaseRequest) -> bool:
        """Whether the request carries the token; CdcError when the file cannot be used: then nobody does."""
        token = self.read()
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        # As bytes: compare_digest refuses text that is not ASCII, which anybody may send.
        matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
        return matches and scheme.lower() == "bearer"

    def read(self) -> str:
        """The token; CdcError, without any of it, when the file is missing, too open, or holds too little."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _unusable(
                f"cannot be read: {error.strerror}", "write a token of 16 characters or more to it"
            ) from None
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _unusable("is no file", "name the file itself")
            if mode & (stat.S_IRWXO | stat.S_IWGRP):
                raise _unusable("can be read or changed by others", "chmod 600 it; 640 for a group that may read it")
            content = os.read(descriptor, MAX_TOKEN_FILE)
        finally:
            os.close(descriptor)
        token = content.decode("ascii", "replace").strip()
        if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise _unusable(
                f"holds no token: one word of {MIN_TOKEN} ASCII characters or more",
                "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        return token


def _unusable(what: str, hint: str) -> CdcError:
    return CdcError(f"http.token_file {what}", hint=hint)
