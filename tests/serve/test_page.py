"""The page at `/`, in a browser, while trees run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio.to_thread
import httpx2
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.runtime_loop.engines import TREE
from tests.runtime_loop.scripted import ScriptedDevice, SteppedDevice
from tests.runtime_loop.scripted_core import counting, scripts
from tests.runtime_loop.turns import turn
from tests.traces.browser import CHROMIUM, DRIVER, browser

from .serving import served, words_on

pytestmark = pytest.mark.anyio
T = TypeVar("T")


async def beside(function: Callable[[], T]) -> T:
    """Something that blocks, while the server goes on."""
    return await anyio.to_thread.run_sync(function)


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium")
async def test_trees_are_seen_as_they_run() -> None:
    device = SteppedDevice(scripts(TREE))
    window = browser()
    driver = await beside(window.__enter__)
    find = partial(driver.find_elements, By.CSS_SELECTOR)

    def shown(selector: str, count: int) -> list[str]:
        WebDriverWait(driver, 20).until(lambda _: len(find(selector)) >= count)
        return [element.text for element in find(f"{selector} > .outcome")]

    try:
        async with served(words_on(device)) as server, anyio.create_task_group() as group:
            group.start_soon(partial(server.completion, "1", max_tokens=100, tree=True))
            while len(device.core.threads) < 2:
                device.step()
                await turn()
            await beside(partial(driver.get, server.url))
            running = len(device.core.threads)
            assert await beside(partial(shown, ".running", running)) == [""] * running
            while device.core.threads:
                device.step()
                await turn()
            assert await beside(partial(shown, ".returned", 5)) == ["9 9", "7", "8", "7", "7"]
            logged = await beside(partial(driver.get_log, "browser"))
            assert [each for each in logged if "favicon" not in each["message"]] == []
            await beside(partial(driver.get, "about:blank"))
    finally:
        await beside(partial(window.__exit__, None, None, None))


async def test_who_watches_is_told_what_runs_and_what_comes() -> None:
    device = ScriptedDevice(counting)
    async with served(words_on(device), most_viewers=1) as server, httpx2.AsyncClient() as client:
        await server.completion("a", max_tokens=2)
        async with client.stream("GET", f"{server.url}/events") as events:
            lines = events.aiter_lines()
            assert '"type":"begin"' in (first := await anext(lines))
            assert '"type":"started"' in first
            assert '"type":"ended"' in first
            assert (await client.get(f"{server.url}/events")).status_code == 429
            await server.completion("b", max_tokens=2)
            assert await anext(lines) == ""
            assert '"text":"b"' in await anext(lines)


async def test_the_page_runs_nothing_but_its_own() -> None:
    async with served(words_on(ScriptedDevice(counting))) as server, httpx2.AsyncClient() as client:
        page = await client.get(server.url)
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        for name in ("live.js", "live.css"):
            assert name in page.text
            assert (await client.get(f"{server.url}/{name}")).status_code == 200
