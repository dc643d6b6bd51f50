"""The status page in a real Chromium, of a real service: what it shows, how it stays alive, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from cdc.demo.processes import free_port
from tests.browser import ARGUMENTS, CHROMIUM
from tests.conftest import Database
from tests.waiting import make_config, running

WAIT_MS = 30_000
PHONE = {"width": 375, "height": 740}
HOSTILE = "<script>document.title='broken'</script>"


class Watched:
    """A page, with all that its console says and all that it asks for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self._note("error", str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    async def text(self, selector: str) -> str:
        """As the reader sees it."""
        return await self.page.inner_text(selector)

    async def shows(self, selector: str, text: str) -> None:
        """Wait until it does."""
        await expect(self.page.locator(selector)).to_contain_text(text, timeout=WAIT_MS)


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser of the test's own; it ends with the block."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


async def opened(browser: Browser, url: str, **settings: object) -> Watched:
    """The page, once it is live."""
    watched = Watched(await browser.new_page(**settings))  # type: ignore[arg-type]
    await watched.page.goto(url)
    await expect(watched.page.locator("#live")).to_have_attribute("data-live", "yes", timeout=WAIT_MS)
    return watched


async def width_beyond(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(await page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


async def contrasts(page: Page) -> dict[str, float]:
    """The contrast of text against what is behind it, of one element for each way that text looks here."""
    found: dict[str, float] = await page.evaluate(
        """() => {
          const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
          const parse = (text) => text.match(/[\\d.]+/g).map(Number);
          const over = ([r, g, b, a = 1], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
          const ground = (node) => {
            if (!node) return [255, 255, 255];
            const own = parse(getComputedStyle(node).backgroundColor);
            return own.length < 4 ? own : over(own, ground(node.parentElement));
          };
          const result = {};
          const kinds = "h1, h2, p, dt, dd, th, td, .pill, .kind, small, a, li, .why, button, label";
          for (const node of document.querySelectorAll(kinds)) {
            if (!node.textContent.trim() || !node.getClientRects().length) continue;
            const style = getComputedStyle(node), behind = ground(node);
            const one = light(over(parse(style.color), behind)), two = light(behind);
            result[`${node.tagName} ${node.className} ${style.color}`] =
              (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
          }
          return result;
        }"""
    )
    return found


async def test_the_page_shows_what_was_delivered_and_goes_on_by_itself(database: Database, tmp_path: Path) -> None:
    """Figures equal what the callbacks had, change without a reload, and names and rows never become markup.

    The console stays silent, nothing is asked of anybody else, and a callback that fails is seen at once.
    """
    table = HOSTILE
    database.execute(f'CREATE TABLE "{table}" (id int PRIMARY KEY, t text); CREATE TABLE b (id int PRIMARY KEY)')
    config = make_config(database.dsn, tmp_path, {"good": "receive", "bad": {"callback": "fail", "tables": ["*.b"]}})
    async with running(config) as run, browsing() as browser:
        watched = await opened(browser, run.url("/"))
        database.execute(f"INSERT INTO \"{table}\" SELECT i, 'row-value' FROM generate_series(1, 40) i")
        await watched.shows("#callbacks tr:nth-child(1) td.ok", "40")
        await watched.shows("#totals", "40 in all")
        await watched.shows("#busy", table)
        await watched.shows("#recent", table)
        database.execute(f'DELETE FROM "{table}" WHERE id <= 2')
        await watched.shows("#callbacks tr:nth-child(1) td.ok", "42")
        await watched.shows("#recent tr:nth-child(1)", "delete")
        first = await watched.text("#recent tr:nth-child(1)")
        assert str(run.callbacks.seen[-1].position) in first

        await expect(watched.page.locator("#reasons")).to_be_hidden(timeout=WAIT_MS)
        database.execute("INSERT INTO b SELECT generate_series(1, 3)")
        await watched.shows("#callbacks tr:nth-child(2) td.state", "removed")
        await watched.shows("#callbacks tr:nth-child(2) td.failed", "3")
        await watched.shows("#callbacks tr:nth-child(2) td.error", "ValueError")
        await watched.shows("#reasons", "handler 'bad' is removed")
        await watched.shows("#phase", "not ready")
        await watched.shows("#letters", "3 dead letters wait")

        source = await watched.page.content()
        title = await watched.page.title()
        scripts = await watched.page.locator("script").count()
        origin = run.url("/")

    assert title.startswith("(!)")
    assert scripts == 1
    assert "&lt;script&gt;" in source
    assert "row-value" not in source
    assert "secret-value" not in source
    assert watched.complaints == []
    assert {url[: len(origin)] for url in watched.requests} == {origin}
    assert {url[len(origin) :] for url in watched.requests} == {"", "events", "icon.svg", "page.css", "page.js"}


async def test_the_page_offers_orders_to_those_who_type_the_token(database: Database, tmp_path: Path) -> None:
    """Without one there is no button, a wrong one is told so, the right one pauses, resumes, and asks before removal.

    The token stays in the page's memory: nothing of it is stored.
    """
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    file.chmod(0o600)
    config = make_config(database.dsn, tmp_path, http={"token_file": str(file)})
    async with running(config) as run, browsing() as browser:
        watched = await opened(browser, run.url("/"))
        page = watched.page
        await watched.shows("#callbacks td.state", "active")
        assert await page.locator("button").count() == 0
        token = page.get_by_label("Token, to pause, resume or remove")
        await token.fill("another-wrong-token")
        await page.get_by_role("button", name="pause audit").click(timeout=WAIT_MS)
        await watched.shows("#told", "the token is missing or another one")
        await watched.shows("#callbacks td.state", "active")
        await token.fill("0123456789abcdef")
        await page.get_by_role("button", name="pause audit").click(timeout=WAIT_MS)
        await watched.shows("#callbacks td.state", "paused")
        await page.get_by_role("button", name="resume audit").click(timeout=WAIT_MS)
        await watched.shows("#callbacks td.state", "active")
        remove = page.get_by_role("button", name="remove audit")
        await remove.click(timeout=WAIT_MS)
        await expect(remove).to_have_text("remove: sure?", timeout=WAIT_MS)
        await remove.click(timeout=WAIT_MS)
        await watched.shows("#callbacks td.state", "removed")
        stored = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        for theme in ("light", "dark"):
            await page.emulate_media(color_scheme=theme)
            assert min((await contrasts(page)).values()) >= 4.5
        await page.set_viewport_size({"width": 375, "height": 740})
        beyond = await width_beyond(page)

    assert stored == '[{},{},""]'
    assert beyond <= 0
    assert all("401" in text for text in watched.complaints)
    assert not any("0123456789abcdef" in url for url in watched.requests)


async def test_the_page_fits_a_phone_in_light_and_in_dark(database: Database, tmp_path: Path) -> None:
    """No scrolling sideways at 375 pixels even with long names, each theme has its own ground, and text stands out."""
    name = "a" * 60
    database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    handlers = {"receive-" + "x" * 50: "receive", "fails": "fail"}
    async with running(make_config(database.dsn, tmp_path, handlers)) as run, browsing() as browser:
        database.execute(f"INSERT INTO {name} SELECT generate_series(1, 30)")
        grounds = {}
        for theme in ("light", "dark"):
            for size in (PHONE, {"width": 1240, "height": 900}):
                watched = await opened(browser, run.url("/"), viewport=size, color_scheme=theme)
                await watched.shows("#recent", name)
                await watched.shows("#reasons", "removed")
                assert await width_beyond(watched.page) <= 0, (theme, size)
                weak = {what: ratio for what, ratio in (await contrasts(watched.page)).items() if ratio < 4.5}
                assert weak == {}, theme
                grounds[theme] = await watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
                await watched.page.close()

    assert grounds["light"] != grounds["dark"]


async def test_the_page_comes_back_by_itself_when_the_service_does(database: Database, tmp_path: Path) -> None:
    """It says that the service is gone, and is live again when another one has the port."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    # Not the kernel's choice: that one may be an outgoing connection's by the time we are back.
    config = make_config(database.dsn, tmp_path, http={"port": free_port()})
    async with browsing() as browser:
        async with running(config) as run:
            watched = await opened(browser, run.url("/"))
        await watched.shows("#live", "trying again")
        async with running(config):
            await expect(watched.page.locator("#live")).to_have_attribute("data-live", "yes", timeout=WAIT_MS)
            await watched.shows("#phase", "streaming, ready")
            database.execute("INSERT INTO a VALUES (1)")
            await watched.shows("#totals", "1 in all")
