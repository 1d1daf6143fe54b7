"""A real run in a real browser: it moves on screen, and clicks cancel it, resume it and try its
rows again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browsing import Watched, browsing, watching
from playwright.sync_api import Browser, Page, expect

from embatch.testing.cloud import CloudProcess, Fault

pytestmark = pytest.mark.timeout(300)

ROWS = 1_200
BATCH_ITEMS = 100
POISONED = 6
DEADLINE_S = 90.0
ADDRESS = ("--provider", "gemini", "--key", "id", "--dims", "128")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder to type in, a cloud, and a dashboard that runs as a process of its own."""

    folder: Path
    cloud: CloudProcess
    url: str

    def environ(self) -> dict[str, str]:
        """What leads to the cloud and the journal, and nothing else."""
        return environ_of(self.folder, self.cloud)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command, running."""
        return subprocess.Popen(
            [sys.executable, "-m", "embatch", *arguments],
            cwd=self.folder,
            env=self.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], code: int) -> dict[str, Any]:
        """Waits for a command's end; what it printed."""
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == code, err[-2_000:]
        found: dict[str, Any] = json.loads(out)
        return found

    def run(self) -> subprocess.Popen[str]:
        """The run, begun."""
        pace = ("--poll-interval", "0.2", "--no-probe", "--audit", "off")
        sizes = ("--max-batch-items", str(BATCH_ITEMS), "--name", "catalogue")
        return self.start("run", "texts.jsonl", "-o", "out", *ADDRESS, *sizes, *pace, "--json")


def environ_of(folder: Path, cloud: CloudProcess) -> dict[str, str]:
    """The variables of every process here."""
    return {
        "EMBATCH_HOME": str(folder / "home"),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "GOOGLE_API_KEY": cloud.api_key,
        "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
    }


@contextmanager
def dashboard(folder: Path, cloud: CloudProcess) -> Iterator[str]:
    """`embatch dashboard` on a free port; gives its address, and has it end by SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "embatch", "dashboard", "--port", "0", "--json"],
        cwd=folder,
        env=environ_of(folder, cloud),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    try:
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert "Traceback" not in err, err


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as opened:
        yield opened


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    lines = [
        json.dumps({"id": f"key-{row}", "text": f"text {row}{' poison' * (row < POISONED)}"})
        for row in range(ROWS)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    with (
        CloudProcess(state=tmp_path / "cloud", job_duration_s=1.5) as cloud,
        dashboard(tmp_path, cloud) as url,
    ):
        yield Place(folder=tmp_path, cloud=cloud, url=url)


def seen(read: Callable[[], str], done: Callable[[str], bool]) -> list[str]:
    """What a page shows, each different word once in its order, until `done`."""
    found: list[str] = []
    late = time.monotonic() + DEADLINE_S
    while not (found and done(found[-1])):
        assert time.monotonic() < late, found
        word = read()
        if not found or found[-1] != word:
            found.append(word)
        time.sleep(0.05)
    return found


def told(watched: Watched, selector: str) -> Callable[[], str]:
    """Reads the text of one place of the page."""
    return lambda: watched.page.locator(selector).first.inner_text()


def test_a_run_moves_on_screen(place: Place, browser: Browser) -> None:
    """From the first page without runs to the end of one: no page is loaded again meanwhile."""
    with watching(browser) as listed, watching(browser) as opened:
        listed.page.goto(place.url)
        expect(listed.page.locator("h2")).to_have_text("No runs yet")
        expect(listed.page.locator("#pulse")).to_have_text("live")
        listed.mark()
        running = place.run()
        expect(listed.page.locator(".runs .name")).to_have_text("catalogue")
        assert listed.unbroken()
        href = listed.page.locator(".runs .name").get_attribute("href")
        opened.page.goto(f"{place.url}{href}")
        expect(opened.page.locator("#pulse")).to_have_text("live")
        opened.mark()
        shares = seen(told(opened, ".tiles dd.big"), lambda word: word == "100 %")
        assert len(shares) >= 3, shares
        expect(opened.page.locator("h1 .state")).to_have_text("completed")
        expect(listed.page.locator(".runs .state")).to_have_text("completed")
        status = place.end(running, 0)
        expect(opened.page.locator(".tiles")).to_contain_text(f"{ROWS:,} of {ROWS:,} rows")
        expect(opened.page.locator("#grid-list")).to_contain_text("published")
        assert opened.unbroken()
        assert listed.unbroken()
        assert status["written"] == ROWS
        assert opened.complaints + listed.complaints == []
        assert place.cloud.api_key not in opened.page.content() + listed.page.content()


def test_failed_rows_are_tried_again_by_clicks(place: Place, browser: Browser) -> None:
    """The page names them by key and reason; after the click `resume` takes the steps."""
    place.cloud.add_fault(
        Fault("row_error", {}, args={"marker": "poison", "code": 3, "message": "It is refused."})
    )
    status = place.end(place.run(), 3)
    assert status["failed"] == POISONED
    place.cloud.clear_faults()
    with watching(browser) as watched:
        page = watched.page
        page.goto(f"{place.url}/runs/{status['id']}")
        expect(page.locator(".reasons")).to_contain_text("key-0")
        expect(page.locator(".reasons")).to_contain_text(f"{POISONED} rows")
        assert "text 0" not in page.content()
        page.get_by_role("link", name="Retry failed rows").click()
        page.get_by_role("main").get_by_role("button").click()
        expect(page.locator(".said")).to_be_visible()
        expect(page.locator("#pulse")).to_have_text("live")
        watched.mark()
        ended = _resumed(place, page)
        assert (ended["id"], ended["written"], ended["failed"]) == (status["id"], ROWS, 0)
        expect(page.locator(".reasons")).to_have_count(0)
        assert watched.unbroken()
        assert watched.complaints == []


def test_a_run_is_cancelled_and_resumed_by_clicks(place: Place, browser: Browser) -> None:
    """It is asked once; doing nothing leaves the run; the provider's jobs are stopped. Resumed, it
    goes on under the command that the page shows."""
    place.cloud.add_fault(Fault("job_stuck", {}))
    running = place.run()
    with watching(browser) as watched:
        page = watched.page
        page.goto(place.url)
        page.locator(".runs .name").click()
        expect(page.locator("#next")).to_be_visible()
        expect(page.locator(".legend").last).to_contain_text("submitted")
        page.get_by_role("link", name="Cancel").click()
        page.get_by_role("link", name="Do nothing").click()
        expect(page.locator("h1 .state")).to_have_text("running")
        page.get_by_role("link", name="Cancel").press("Enter")
        page.get_by_role("main").get_by_role("button").press("Enter")
        expect(page.locator("h1 .state")).to_have_text("cancelled")
        expect(page.locator(".lines").last).to_contain_text("asked to cancel the run")
        running.communicate(timeout=DEADLINE_S)
        assert running.returncode not in (0, None)
        place.cloud.clear_faults()
        page.get_by_role("link", name="Resume").click()
        page.get_by_role("main").get_by_role("button").click()
        expect(page.locator(".lines").last).to_contain_text("asked to go on with the run")
        ended = _resumed(place, page)
        assert (ended["written"], ended["failed"]) == (ROWS, 0)
        assert watched.complaints == []


def _resumed(place: Place, page: Page) -> dict[str, Any]:
    """Types the command that an open page shows; what it printed, once the page says so too."""
    command = page.locator(".why .command code").inner_text()
    ended = place.end(place.start(*command.split()[1:], "--json"), 0)
    expect(page.locator("h1 .state")).to_have_text("completed")
    return ended
