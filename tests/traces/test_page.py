"""The page of a trace: what is in it, and what it does in a browser."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from policies import LatentDiff, MaxChildren, Policy
from runtime import Engine
from runtime.link import events as ev
from tests.traces.browser import CHROMIUM, DRIVER, browser
from tests.traces.test_pictures import HOSTILE, hostile, recorded_events
from tests.traces.toy_device import header
from traces import Trace, context_of, critical_threads, page, read, thread_tree, walk_threads
from traces.__main__ import main
from traces.web_page.content import content_of
from traces.web_page.writing import _digest

RUNNING = "</script><script>window.ran=1</script><img src=x onerror='window.ran=2'>"
in_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="needs Chromium and its driver (apt-get install chromium chromium-driver)",
)


async def record(path: Path) -> None:
    policy = Policy(depth=LatentDiff(0.1), spawn=MaxChildren(3))
    async with Engine.open("countdown", policy=policy, trace=path) as engine:
        for prompt in ("22 26 31 53 -> 27", "5 42 67 71 -> 62"):
            await engine.run(prompt)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.trace"
    anyio.run(record, path)
    return path


def data_in(html: str) -> dict[str, Any]:
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    found: dict[str, Any] = json.loads(data)
    return found


def test_the_page_has_every_thread_and_token(recorded: Path) -> None:
    output = recorded.with_name("run.trace.html")
    assert main(["page", str(recorded)]) == 0
    html = output.read_text()
    data, records = data_in(html), list(walk_threads(thread_tree(read(recorded).events)))
    assert len(html) < 200_000
    assert [thread["path"] for thread in data["threads"]] == [".".join(map(str, each.path)) for each in records]
    for thread, each in zip(data["threads"], records, strict=True):
        assert sum(len(piece["words"]) for piece in thread["pieces"]) == each.received + each.generated
        assert tuple(depth for piece in thread["pieces"] for depth in piece["depths"]) == context_of(each).depths
    root = data["threads"][0]
    assert "".join(data["words"][word] for word in root["pieces"][0]["words"]).strip() == "22 26 31 53 -> 27"
    critical = set.union(*(critical_threads(tree) for tree in thread_tree(read(recorded).events)))
    marked = {thread["path"] for thread in data["threads"] if thread.get("is_critical", False)}
    # In the first tree the root's own tokens outlast every child's; in the second it waits for one.
    assert marked == {".".join(map(str, path)) for path in critical} == {"0", "1", "1.1"}
    assert data["summarised"] == ""


def test_nothing_is_loaded_and_nothing_of_a_trace_can_run() -> None:
    trace = hostile()
    trace.events.append(ev.RunStarted(time=0.0, thread=(1,), prompt=RUNNING))
    html = page(trace, lambda tokens: RUNNING)
    assert html.count("<script") == 2
    assert "ran=1</script>" not in html
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", html)
    assert data_in(html)["threads"][0]["prompt"] == HOSTILE
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    (program,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert "default-src 'none'" in policy
    assert f"script-src '{_digest(program)}'" in policy


def test_large_runs_are_summarised_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(header=header(), events=recorded_events(), lost="truncated at byte 9")
    monkeypatch.setattr("traces.web_page.content.MOST_TOKENS", 4)
    content = content_of(trace, None)
    assert [thread.is_left_out for thread in content.threads] == [False, True]
    assert content.summarised == "Left out, to keep the page small: the text of 1 threads."
    assert content.lost == "truncated at byte 9"
    monkeypatch.setattr("traces.web_page.content.MOST_THREADS", 1)
    assert content_of(trace, None).summarised == "Left out, to keep the page small: 1 of 2 threads."


def test_a_thousand_threads_stay_under_two_megabytes() -> None:
    events: list[ev.AnyEvent] = []
    for number in range(1000):
        child = (0, number)
        events.append(ev.Spawned(time=0.1, thread=(0,), child=child, by_model=True, fork=False, tokens=(1,), reason=""))
        events.append(ev.ThreadOpened(time=0.2, thread=child, inherits=None, seed=0, depth=None))
        events.append(ev.Received(time=0.2, thread=child, position=0, tokens=tuple(range(60))))
        events.append(
            ev.GenerateStarted(time=0.3, thread=child, position=60, max_tokens=200, sampling=None, depth=None)
        )
        for at in range(60, 180):
            sampled = ev.Sampled(
                time=at / 100, tick=at, thread=child, position=at, token=at, depth=at % 30, logprob=-at / 99
            )
            events.append(sampled)
    html = page(Trace(header=header(), events=events), lambda tokens: f"word{tokens[0]} ")
    assert len(html) < 2_000_000
    assert len(data_in(html)["threads"]) == 1001


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser("--window-size=1280,900") as driver:
        yield driver


def keep_picture(driver: Any, name: str) -> None:
    """For looking at, where a place for pictures is named."""
    if directory := os.environ.get("BRAID_SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(directory) / f"{name}.png"))


def complaints(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver: Any) -> list[str]:
    """What was asked for over a network, besides the page itself."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("file:", "chrome:", "data:"))]


@in_browser
def test_clicking_through_a_page(recorded: Path, tmp_path: Path, driver: Any) -> None:
    path = tmp_path / "page.html"
    assert main(["page", str(recorded), "-o", str(path)]) == 0
    driver.get(path.as_uri())
    find = driver.find_element
    keep_picture(driver, "page")
    assert find("id", "name").text == "Thread 0"
    assert find("id", "text").text.strip().startswith("22 26 31 53 -> 27")
    # A fold, a child, its link back.
    find("css selector", "#item-4 .fold").click()
    assert find("id", "item-4").get_attribute("aria-expanded") == "true"
    find("css selector", "#item-5 > .row").click()
    assert find("id", "name").text == "Thread 1.0"
    assert driver.current_url.endswith("#thread-1.0")
    find("css selector", "#links a").click()
    assert find("id", "name").text == "Thread 1"
    # Keys.
    tree = find("css selector", "[role=treeitem][tabindex='0']")
    tree.send_keys("\ue015")  # down
    assert find("id", "name").text == "Thread 1.0"
    driver.switch_to.active_element.send_keys("\ue012")  # left, to its parent
    driver.switch_to.active_element.send_keys("\ue012")  # left, to fold it
    assert find("id", "item-4").get_attribute("aria-expanded") == "false"
    driver.switch_to.active_element.send_keys("\ue011")  # home
    assert find("id", "name").text == "Thread 0"
    # Colours.
    background = "return getComputedStyle(document.querySelectorAll('.sampled .token')[3]).backgroundColor"
    by_depth = driver.execute_script(background)
    find("css selector", "input[value=none]").click()
    assert driver.execute_script(background) == "rgba(0, 0, 0, 0)" != by_depth
    # The critical path, in the tree as in the timeline.
    on_path = driver.execute_script("return document.querySelectorAll('.row.on-path').length")
    assert on_path == driver.execute_script("return document.querySelectorAll('rect.critical').length") == 1
    # The timeline.
    driver.execute_script("document.querySelector('rect[data-thread=\"2\"]').dispatchEvent(new MouseEvent('click'))")
    assert find("id", "name").text == "Thread 0.1"
    # Search.
    find("id", "search").send_keys("5 42 67")
    assert find("id", "found").text.endswith(
        f"of {len(driver.find_elements('css selector', '[role=treeitem]'))} threads"
    )
    assert find("id", "name").text == "Thread 1"
    # A link from elsewhere.
    driver.get(f"{path.as_uri()}#thread-0.2")
    assert find("id", "name").text == "Thread 0.2"
    # Twice as large, nothing is cut off at the side.
    driver.execute_script("document.body.style.zoom = 2")
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth + 1")
    keep_picture(driver, "page-zoomed")
    assert complaints(driver) == []
    assert requested(driver) == []


@in_browser
def test_hostile_texts_are_texts(tmp_path: Path, driver: Any) -> None:
    path, trace = tmp_path / "hostile.html", hostile()
    events = [
        *recorded_events(),
        ev.RunStarted(time=0.0, thread=(1,), prompt=RUNNING),
        ev.ThreadEnded(time=0.1, thread=(1,), outcome=RUNNING, message=(), text=RUNNING, error=RUNNING),
    ]
    path.write_text(page(Trace(header=trace.header, events=events, lost=RUNNING), lambda tokens: RUNNING))
    driver.get(f"{path.as_uri()}#thread-1")
    assert RUNNING in driver.find_element("id", "facts").text
    assert RUNNING in driver.find_element("id", "notice").text
    driver.get(f"{path.as_uri()}#thread-0")
    driver.find_element("id", "search").send_keys("onerror")
    assert driver.execute_script("return window.ran") is None
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert complaints(driver) == []


@in_browser
def test_dark_pages_are_dark(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(read(recorded)))
    with browser("--force-dark-mode", "--window-size=500,900") as driver:
        driver.get(path.as_uri())
        keep_picture(driver, "page-dark-narrow")
        colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth + 1")
