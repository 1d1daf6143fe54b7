"""A real browser for the dashboard's tests: the system's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = Path(__file__).parents[3] / "build/browser/node_modules/axe-core/axe.min.js"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
SCHEMES = ("light", "dark")
DEADLINE_MS = 30_000
GRAVE = ("serious", "critical")


def chromium() -> str:
    """Where the browser is; names what is missing, and how to get it."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    raise FileNotFoundError(f"none of {', '.join(BROWSERS)} is there: run `make test`, or install")


@contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium without a window, with a fresh profile."""
    expect.set_options(timeout=DEADLINE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass(kw_only=True)
class Watched:
    """A page, and whatever it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def axe(self) -> list[str]:
        """The grave violations that axe-core finds on the page as it is now."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text())
        found: list[dict[str, Any]] = self.page.evaluate(
            "async () => (await axe.run(document, {resultTypes: ['violations']})).violations"
        )
        return [
            f"{one['id']} ({one['impact']}): {node['target']} {node['failureSummary']}"
            for one in found
            if one["impact"] in GRAVE
            for node in one["nodes"]
        ]

    def look(self, *, size: str, scheme: Any) -> None:
        """Has the page shown in another size and scheme, without loading it again."""
        width, height = SIZES[size]
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def overflow(self) -> list[str]:
        """Whatever stands out of the page to the right."""
        found: list[str] = self.page.evaluate(
            """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll('main *')]
              .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
              .map((one) => one.outerHTML.slice(0, 160))"""
        )
        return found

    def mark(self) -> None:
        """Leaves a mark that a reload would wipe away."""
        self.page.evaluate("window.unbroken = true")

    def unbroken(self) -> bool:
        """The page was not loaded again since it was marked."""
        return bool(self.page.evaluate("window.unbroken === true"))


@contextmanager
def watching(
    browser: Browser, *, size: str = "desktop", scheme: Any = "light", script: bool = True
) -> Iterator[Watched]:
    """A page in a context of its own; it may ask nobody but this machine."""
    width, height = SIZES[size]
    context: BrowserContext = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=script,
    )
    context.set_default_timeout(DEADLINE_MS)
    page = context.new_page()
    watched = Watched(page=page)

    def heard(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            watched.complaints.append(f"{page.url}: {message.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: watched.complaints.append(f"{page.url}: {error}"))
    page.on("request", lambda request: watched.requests.append(request.url))
    yield watched
    context.close()
