"""Every page of the dashboard in a real browser: wide and narrow, light and dark, with and without
script, by keyboard alone; and what axe-core says of it.

With `--pictures FOLDER` the pictures of the docs are taken on the way.
"""

import json
import re
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from browsing import SCHEMES, SIZES, Watched, browsing, watching
from playwright.sync_api import Browser, Response, expect
from plots import LARGE, PLOTS
from scenes import MODEL, Scene, tell

from embatch.config import Secret, Settings
from embatch.dashboard.app import Dashboard
from embatch.dashboard.serve import serving
from embatch.dashboard.settings import DashboardSettings
from embatch.journal.store import Journal
from embatch.testing.cloud import CloudProcess

pytestmark = pytest.mark.timeout(300)

RUN, STUCK, CAPPED, ENDED = "c9d2047be86f", "e3390f6b7a25", "a04d11c3587e", "52b77d0e9f10"
TOKEN = "a-token-of-the-tests-0123456789"
MOST_BYTES = 300_000
LOOKS = 4
PAGES = {
    "runs": "/",
    "run": f"/runs/{RUN}",
    "run-stuck": f"/runs/{STUCK}",
    "run-over-budget": f"/runs/{CAPPED}",
    "run-ended": f"/runs/{ENDED}",
    "run-large": f"/runs/{LARGE.id}",
    "batch": f"/runs/{RUN}/batches/120",
    "batch-in-doubt": f"/runs/{STUCK}/batches/71",
    "workers": "/workers",
    "provider": "/provider?provider=gemini",
    "confirm": f"/runs/{CAPPED}/do/budget",
    "no-match": "/?q=nothing-is-called-so",
    "missing": "/nothing",
}
PICTURES = {
    ("desktop", "light"): (*PAGES, "empty", "login"),
    ("desktop", "dark"): ("runs", "run", "run-stuck", "batch-in-doubt"),
    ("phone", "light"): ("runs", "run", "batch-in-doubt"),
    ("phone", "dark"): ("run-large", "workers"),
}
"""What the docs show."""
GROUND = "getComputedStyle(document.body).backgroundColor"
LIVE = ("runs", "run", "run-stuck", "run-large", "batch", "workers")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Dashboards over a journal that is told, over an empty one, and one that asks for a token."""

    url: str
    empty: str
    locked: str
    scene: Scene

    def pages(self) -> dict[str, str]:
        """The address of every page, by name."""
        there = {name: self.url + path for name, path in PAGES.items()}
        return there | {"empty": f"{self.empty}/", "login": f"{self.locked}/login"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    scene = tell(folder / "journal.db", (LARGE, *PLOTS))
    # What the pages show of the place of the journal is that of a server, not of a test.
    shown = Settings(home=folder, journal="sqlite:////srv/embatch/journal.db")
    with ExitStack() as stack:
        cloud = stack.enter_context(CloudProcess(job_duration_s=3_600.0))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("GOOGLE_API_KEY", cloud.api_key)
        patch.setenv("GOOGLE_GEMINI_BASE_URL", cloud.gemini_url)
        _fill_provider(cloud, scene)
        urls = []
        for url, token in ((scene.url, None), (f"sqlite:///{folder}/empty.db", None)):
            urls.append(_served(stack, url, shown, token))
        locked = _served(stack, scene.url, shown, Secret(TOKEN))
        yield Site(url=urls[0], empty=urls[1], locked=locked, scene=scene)


def _served(stack: ExitStack, url: str, shown: Settings, token: Secret | None) -> str:
    journal = Journal.open(url)
    stack.callback(journal.close)
    settings = DashboardSettings(base=shown, token=token)
    return stack.enter_context(serving(Dashboard(settings, journal)))


def _fill_provider(cloud: CloudProcess, scene: Scene) -> None:
    """Jobs of the run, one that nobody waits for any more, and two of somebody else."""
    ours = [label for (run, _), label in scene.labels.items() if run == RUN][-3:]
    forgotten = f"embatch:{scene.journal_id}:{'5' * 12}:4:1:0a1b2c3d"
    foreign = f"embatch:{'0' * 8}:{'9' * 12}:12:1:44c1d2e3"
    for label in (forgotten, foreign, "nightly import", *ours):
        request = {"model": f"models/{MODEL}", "content": {"parts": [{"text": "a text"}]}}
        requests = [{"request": request, "metadata": {"key": str(at)}} for at in range(40)]
        batch = {"displayName": label, "inputConfig": {"requests": {"requests": requests}}}
        call = urllib.request.Request(
            f"{cloud.gemini_url}/v1beta/models/{MODEL}:asyncBatchEmbedContent",
            data=json.dumps({"batch": batch}).encode(),
            headers={"x-goog-api-key": cloud.api_key, "content-type": "application/json"},
        )
        with urllib.request.urlopen(call) as answer:
            assert answer.status == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest) -> Path | None:
    folder = request.config.getoption("--pictures")
    return None if folder is None else Path(folder)


@pytest.mark.parametrize("name", [*PAGES, "empty", "login"])
def test_every_page_can_be_read_by_everybody(
    site: Site, browser: Browser, pictures: Path | None, name: str
) -> None:
    """Wide and narrow, light and dark: nothing stands out of the page, axe-core finds nothing
    grave, and nobody else is asked."""
    with watching(browser) as watched:
        answer = watched.page.goto(site.pages()[name])
        assert answer is not None
        assert answer.status == (404 if name == "missing" else 200)
        if name in LIVE:
            expect(watched.page.locator("#pulse")).to_have_text("live")
        assert watched.page.locator("h1").count() == 1
        grounds = set()
        for size, scheme in product(SIZES, SCHEMES):
            watched.look(size=size, scheme=scheme)
            grounds.add(watched.page.evaluate(GROUND))
            assert watched.overflow() == [], size
            assert watched.axe() == [], (size, scheme)
            if pictures is not None and name in PICTURES[size, scheme]:
                _take(watched, pictures / f"dashboard-{name}-{size}-{scheme}.png", name)
        assert len(grounds) == len(SCHEMES)
        ours = (site.url, site.empty, site.locked)
        assert [url for url in watched.requests if not url.startswith(ours)] == []
        # A browser calls a page that is not there an error of its own.
        assert [said for said in watched.complaints if "/nothing: " not in said] == []


def _take(watched: Watched, path: Path, name: str) -> None:
    """A picture of the page down to its end, or to where a reader of the docs has seen enough."""
    page = watched.page
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    if name == "run-large" and "desktop" in path.name:
        page.locator("section[aria-labelledby=batches]").screenshot(path=path)
        return
    whole = page.evaluate("document.querySelector('.foot, main').getBoundingClientRect().bottom")
    width = page.viewport_size["width"] if page.viewport_size else 1280
    tallest = 1_100 if width > 600 else 1_700
    clip = {"x": 0, "y": 0, "width": width, "height": min(whole, tallest)}
    page.screenshot(path=path, full_page=True, clip=clip)  # type: ignore[arg-type]
    assert path.stat().st_size < 250_000, name


def test_no_page_is_heavy(site: Site, browser: Browser) -> None:
    """The page of 10,000 batches, with its style and its scripts, stays under 300 KB."""
    for name in ("runs", "run-large"):
        with watching(browser) as watched:
            answers: list[Response] = []
            watched.page.on("response", lambda answer, answers=answers: answers.append(answer))
            watched.page.goto(site.pages()[name], wait_until="load")
            urls = {answer.url for answer in answers if "/live?" not in answer.url + "?"}
            weights = {url: len(watched.page.request.get(url).body()) for url in urls}
            assert len(weights) >= 5
            assert sum(weights.values()) < MOST_BYTES, weights


def test_without_script_the_same_is_told(site: Site, browser: Browser) -> None:
    """Rows, states, figures, reasons and links of each page are those that script shows."""
    for name in ("runs", "run-stuck", "run-ended", "batch-in-doubt", "workers", "provider"):
        for _ in range(LOOKS):  # a pace falls and a time passes between two looks
            by_script, without = (
                _told(browser, site.pages()[name], script=it) for it in (True, False)
            )
            if by_script == without:
                break
        assert by_script == without, name
        assert len(without[0]) > 1, name


def _told(browser: Browser, url: str, *, script: bool) -> tuple[list[str], list[str]]:
    """The facts of a page, and its links."""
    facts = ".tiles dd, .legend, .pairs, .facts, .head h1, .reasons, .folds th, .folds td, .steps"
    with watching(browser, script=script) as watched:
        watched.page.goto(url)
        words = watched.page.locator(facts).all_inner_texts()
        links = watched.page.locator("main a").evaluate_all(
            "(all) => all.map((one) => one.getAttribute('href'))"
        )
    return [_timeless(text) for text in words], links


def _timeless(text: str) -> str:
    """Without the ages that grow, and without the button that only script can offer."""
    return re.sub(r"[\d.]+ (d|h|min|s)\b( \d+ (h|min|s)\b)?|just now|\s*Copy$", "…", text).strip(
        " …\n"
    )


def test_without_script_forms_work(site: Site, browser: Browser) -> None:
    """A filter, a search, and an action that is asked once and then done."""
    with watching(browser, script=False) as watched:
        page = watched.page
        page.goto(site.url)
        page.get_by_role("link", name="parked").click()
        expect(page.locator(".runs .name")).to_have_text(["legal-archive"])
        page.get_by_role("searchbox").fill("archive")
        page.get_by_role("button", name="Search").click()
        expect(page.locator(".runs .name")).to_have_text(["legal-archive"])
        page.get_by_role("link", name="legal-archive").click()
        page.get_by_role("link", name="Raise the budget").click()
        page.get_by_label("Budget").fill("14.50")
        page.get_by_role("button", name="Raise the budget").click()
        expect(page.locator(".said")).to_contain_text("$14.50")
        expect(page.locator(".tiles")).to_contain_text("of $14.50")


def test_the_keyboard_is_enough(site: Site, browser: Browser) -> None:
    """From the skip link over the grid to a batch, and back by its crumbs; focus shows."""
    with watching(browser) as watched:
        page = watched.page
        page.goto(site.pages()["run"])
        expect(page.locator("#pulse")).to_have_text("live")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        expect(page.locator(".skip")).to_be_in_viewport()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for _ in range(30):
            page.keyboard.press("Tab")
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", page.evaluate("document.activeElement.outerHTML")
            if page.evaluate("document.activeElement.id") == "grid":
                break
        told = page.locator("#grid-told")
        expect(told).to_have_text("batch 0: published")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        expect(told).to_have_text("batch 51: published")
        for _ in range(6):
            page.keyboard.press("ArrowRight")
        expect(told).to_have_text("batch 57: split")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("Batch 57")
        page.get_by_role("link", name="catalogue-2026").focus()
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_contain_text("catalogue-2026")


def test_the_theme_is_remembered(site: Site, browser: Browser) -> None:
    """Light and dark by choice, over what the system says, and on the next page too."""
    with watching(browser, scheme="light") as watched:
        page = watched.page
        page.goto(site.url)
        by_system = page.evaluate(GROUND)
        button = page.get_by_role("button", name="Theme")
        button.press("Enter")
        assert page.evaluate(GROUND) == by_system
        button.press("Enter")
        dark = page.evaluate(GROUND)
        assert dark != by_system
        page.goto(site.pages()["workers"])
        assert page.evaluate(GROUND) == dark
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()


def test_news_leave_what_a_reader_holds(site: Site, browser: Browser) -> None:
    """A change shows without reload; focus, an open list and the place on the page stay."""
    with watching(browser) as watched:
        page = watched.page
        page.goto(site.pages()["run-ended"])
        expect(page.locator("#pulse")).to_have_text("live")
        watched.mark()
        page.locator("#grid-list > summary").click()
        page.evaluate("window.scrollTo(0, 600)")
        _happen(site.scene, ENDED, "audit_passed")
        expect(page.locator(".lines").first).to_contain_text("an audit freed it")
        assert watched.unbroken()
        assert page.locator("#grid-list").get_attribute("open") is not None
        assert page.evaluate("document.activeElement.parentElement.id") == "grid-list"
        assert page.evaluate("window.scrollY") == 600


def _happen(scene: Scene, run: str, kind: str) -> None:
    with sqlite3.connect(scene.url.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "INSERT INTO events (run_id, batch_id, at, kind) SELECT run_id, id, ?, ? FROM batches"
            " WHERE run_id = ? LIMIT 1",
            (time.time(), kind, run),
        )
    connection.close()


def test_a_hidden_page_is_paused(site: Site, browser: Browser) -> None:
    """It closes its stream and asks for nothing; shown again, it is live and up to date."""
    hide = """(hidden) => {
        Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    with watching(browser) as watched:
        page = watched.page
        page.goto(site.pages()["run-ended"])
        expect(page.locator("#pulse")).to_have_text("live")
        page.evaluate(hide, True)
        expect(page.locator("#pulse")).to_have_text("paused")
        watched.requests.clear()
        _happen(site.scene, ENDED, "part_lost")
        page.wait_for_timeout(2_000)
        assert watched.requests == []
        page.evaluate(hide, False)
        expect(page.locator("#pulse")).to_have_text("live")
        expect(page.locator(".lines").first).to_contain_text("its part was lost")


def test_a_token_is_asked_for_once(site: Site, browser: Browser) -> None:
    """A wrong one is refused on the page, the right one leads to what was asked for."""
    with watching(browser) as watched:
        page = watched.page
        page.goto(f"{site.locked}/workers")
        page.get_by_label("Token").fill("not the token of this test")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not the token")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Workers")
        assert TOKEN not in page.url
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("h1")).to_have_text("Sign in")


def test_a_read_only_dashboard_offers_nothing(site: Site, browser: Browser) -> None:
    """No button acts, and the address of an action is refused in words."""
    journal = Journal.open(site.scene.url)
    settings = DashboardSettings(base=Settings(home=Path(), journal=""), read_only=True)
    with watching(browser) as watched, ExitStack() as stack:
        stack.callback(journal.close)
        url = stack.enter_context(serving(Dashboard(settings, journal)))
        watched.page.goto(f"{url}/runs/{CAPPED}")
        expect(watched.page.locator(".tools")).to_contain_text("read-only")
        assert watched.page.locator(".actions a").count() == 0
        answer = watched.page.goto(f"{url}/runs/{CAPPED}/do/cancel")
        assert answer is not None
        assert answer.status == 403
        expect(watched.page.locator("main")).to_contain_text("--read-only")
