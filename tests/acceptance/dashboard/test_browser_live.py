"""An open page in a real browser: runs are set going and forgotten, and the dashboard goes away,
comes back, or fails."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browsing import browsing, watching
from playwright.sync_api import Browser, Page, Route, expect

from dashboards import enter, fill
from embatch.config import Settings
from embatch.dashboard.app import Dashboard
from embatch.dashboard.serve import serving
from embatch.dashboard.settings import DashboardSettings
from embatch.journal.store import Journal
from embatch.types.state import RunState

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


@pytest.mark.parametrize(
    ("run_id", "label", "said", "state"),
    [
        ("r-budget", "Raise the budget", "asked to raise the budget to $0.01", RunState.RUNNING),
        ("r-failed", "Resume", "asked to go on with the run", RunState.PLANNING),
    ],
)
def test_a_stopped_run_is_set_going_by_clicks(
    tmp_path: Path, browser: Browser, run_id: str, label: str, said: str, state: RunState
) -> None:
    """From its page over the question and back; a reload does not show the notice again."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db")
    fill(journal)
    settings = DashboardSettings(base=Settings(home=tmp_path, journal=""))
    with watching(browser) as watched, ExitStack() as stack:
        stack.callback(journal.close)
        url = stack.enter_context(serving(Dashboard(settings, journal)))
        page = watched.page
        page.goto(f"{url}/runs/{run_id}")
        page.get_by_role("link", name=label).click()
        if run_id == "r-budget":
            page.get_by_label("Budget").fill("0.01")
        page.get_by_role("main").get_by_role("button").click()
        expect(page.locator(".said")).to_be_visible()
        expect(page.locator("h1 .state")).to_have_text(state.value)
        expect(page.locator(".lines").last).to_contain_text(said)
        assert page.url == f"{url}/runs/{run_id}"
        expect(page.locator("#pulse")).to_have_text("live")
        journal.add_event(run_id, "parked", now=time.time())
        expect(page.locator(".lines").last).to_contain_text("waits for the quota of the day")
        expect(page.locator(".said")).to_be_visible()
        page.reload()
        expect(page.locator(".said")).to_have_count(0)
        assert watched.complaints == []
        assert journal.get_run(run_id).state is state


def test_a_dashboard_that_comes_back_is_found(tmp_path: Path, browser: Browser) -> None:
    """The page says that it reconnects, and is live again when the dashboard is."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db")
    settings = DashboardSettings(base=Settings(home=tmp_path, journal=""))
    with watching(browser) as watched, ExitStack() as stack:
        stack.callback(journal.close)
        with serving(Dashboard(settings, journal)) as url:
            watched.page.goto(url)
            expect(watched.page.locator("#pulse")).to_have_text("live")
        expect(watched.page.locator("#pulse")).to_have_text("reconnecting")
        port = int(url.rpartition(":")[2])
        stack.enter_context(serving(Dashboard(settings, journal), port=port))
        expect(watched.page.locator("#pulse")).to_have_text("live")


def test_a_run_that_is_forgotten_is_said_to_be_gone(tmp_path: Path, browser: Browser) -> None:
    """On its open page, which asks no more."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db")
    enter(journal, "r-gone", batches=1)
    settings = DashboardSettings(base=Settings(home=tmp_path, journal=""))
    with ExitStack() as stack:
        stack.callback(journal.close)
        url = stack.enter_context(serving(Dashboard(settings, journal)))
        page = stack.enter_context(browser.new_context()).new_page()
        page.goto(f"{url}/runs/r-gone")
        expect(page.locator("#pulse")).to_have_text("live")
        journal.delete_run("r-gone")
        expect(page.locator("h1")).to_have_text("There is nothing here", timeout=20_000)
        expect(page.locator("#pulse")).to_be_hidden()


HASTEN = """(() => {
    const wait = window.setTimeout;
    Math.random = () => 0.5;
    window.waits = [];
    window.setTimeout = (act, ms, ...rest) => {
        if (act.name === "connect") waits.push(ms);
        return wait(act, Math.min(ms, 20), ...rest);
    };
})()"""
"""Has a page wait no longer than an instant, and note how long it would have."""


def test_pages_that_fail_are_asked_for_ever_more_rarely(tmp_path: Path, browser: Browser) -> None:
    """An open stream alone does not make the page live; a page that comes again does."""
    journal = Journal.open(f"sqlite:///{tmp_path}/journal.db")
    settings = DashboardSettings(base=Settings(home=tmp_path, journal=""))
    with ExitStack() as stack:
        stack.callback(journal.close)
        url = stack.enter_context(serving(Dashboard(settings, journal)))
        page = stack.enter_context(browser.new_context()).new_page()
        page.add_init_script(HASTEN)
        page.goto(url)
        expect(page.locator("#pulse")).to_have_text("live")
        asked: list[str] = []

        def fail(route: Route) -> None:
            asked.append(route.request.url)
            route.fulfill(status=503, body="not now")

        page.route(f"{url}/", fail)
        enter(journal, "r-new", batches=1)
        waits = _waited(page, 7)
        assert waits[:7] == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
        assert len(asked) >= 7
        expect(page.locator("#pulse")).to_have_text("reconnecting")
        page.unroute(f"{url}/")
        expect(page.locator("#pulse")).to_have_text("live")
        expect(page.locator("#run-r-new")).to_be_visible()
        before = len(_waited(page, 0))
        page.route(f"{url}/", fail)
        enter(journal, "r-newer", batches=1)
        assert _waited(page, before + 1)[before] == 1_000


def _waited(page: Page, least: int) -> list[float]:
    """The waits of a hastened page, once there are so many."""
    while len(waits := page.evaluate("waits")) < least:
        page.wait_for_timeout(20)
    return [float(wait) for wait in waits]
