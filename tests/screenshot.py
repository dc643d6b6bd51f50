"""Takes pictures of the status page of a real `cdc demo`, in Debian's Chromium: light, dark, and on a phone."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.browser import ARGUMENTS, CHROMIUM

SIZES = {"desktop": (1240, 1180), "phone": (375, 812)}


@contextmanager
def demo() -> Iterator[str]:
    """The demo at work: the address of its page."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "CDC_HTTP_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "cdc.cli", "demo", "--seconds", "0"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 60
        while not _answers(f"{address}readyz"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the demo does not come to its feet: .venv/bin/cdc demo")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def main() -> None:
    """Write the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, default=Path("docs/status-page.png"), help="of the light desktop page")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="all of both themes and sizes, into this folder")
    parser.add_argument("--seconds", type=float, default=200, help="of traffic before, which the charts show")
    options = parser.parse_args()
    shots = [("light", "desktop", options.file)]
    if options.all:
        options.all.mkdir(parents=True, exist_ok=True)
        shots = [(theme, size, options.all / f"{theme}-{size}.png") for theme in ("light", "dark") for size in SIZES]
    with demo() as address, sync_playwright() as playwright:
        time.sleep(options.seconds)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for theme, size, file in shots:
            width, height = SIZES[size]
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if theme == "dark" else "light"
            )
            page.goto(address)
            page.wait_for_selector('#live[data-live="yes"]')
            page.wait_for_timeout(1500)
            page.screenshot(path=file, full_page=True)
            page.close()
            print(file, file.stat().st_size)
        browser.close()


if __name__ == "__main__":
    main()
