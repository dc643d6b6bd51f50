"""The page's files, as they lie in the package: small, and read once."""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

from cdc.http.access import PAGE_HEADERS

__all__ = ["PageFiles"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class PageFiles:
    """Paths and what is answered there."""

    def __init__(self) -> None:
        folder = files("cdc.http") / "static"
        self._answers = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    @property
    def paths(self) -> list[str]:
        """All of them."""
        return list(self._answers)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """One of the files."""
        body, kind = self._answers[request.path]
        return web.Response(body=body, headers={"Content-Type": kind} | PAGE_HEADERS)
