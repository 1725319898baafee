"""A page in a headless Chromium: opened until its charts are drawn, and used as a person would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)
_EMPTY = "[...document.querySelectorAll('.chart')].filter((chart) => !chart.querySelector('svg .mark-group path'))"


def chromium() -> str | None:
    """Where it is on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """The browser, until the end of the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS.split())
        yield browser
        browser.close()


def opened(browser: Browser, path: Path, *, script: str = "", **context: Any) -> tuple[Page, list[str]]:
    """The page once its charts are drawn, and everything that went wrong or went out.

    Args:
        browser: from [`launched`].
        path: of the page.
        script: what is run before the page's own scripts.
        context: the size of the window, the color scheme and so on.
    """
    tab = browser.new_context(**context).new_page()
    events: list[str] = []
    tab.on("console", lambda message: events.append(f"console: {message.text}"))
    tab.on("pageerror", lambda error: events.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.on("request", lambda r: None if r.url.startswith("file:") else events.append(f"request: {r.url[:80]}"))
    if script:
        tab.add_init_script(script)
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-charts], .empty", timeout=60_000)
    assert tab.evaluate(f"{_EMPTY}.map(({{ id }}) => id)") == [], "every chart shows something"
    return tab, events


_PARTS = {
    "highlight": "[data-direction]",
    "slider": ".slider:not([hidden]) input",
    "header": ".panel thead button",
    "csv": "[data-copy=csv]",
    "latex": "[data-copy=latex]",
}
"""What of a page can be used, and where it is."""


def parts(tab: Page) -> set[str]:
    """What the page has of all that can be used."""
    return {part for part, place in _PARTS.items() if tab.locator(place).count()}


def walk(tab: Page) -> None:
    """Uses a page by the keyboard alone: from its top Tab reaches each of its parts, which do what a click does."""
    left = parts(tab)
    while left:
        tab.keyboard.press("Tab")
        assert not tab.evaluate("document.activeElement === document.body"), f"past the end of the page: {left}"
        at = next((part for part in left if tab.evaluate(f"document.activeElement.matches({_PARTS[part]!r})")), None)
        if at is None:
            continue
        left.remove(at)
        before = tab.locator(".panel output").first.inner_text() if at == "slider" else ""
        tab.keyboard.press("ArrowLeft" if at == "slider" else "Enter")
        if at == "slider":
            assert tab.locator(".panel output").first.inner_text() != before
        elif at == "highlight":
            assert tab.locator("[aria-pressed=true]").count() == 1
        elif at == "header":
            assert tab.locator("[aria-sort=ascending]").count() == 1
        else:
            tab.wait_for_function("document.querySelector('.panel [role=status]').textContent !== ''")


def serious(tab: Page) -> list[str]:
    """What axe-core finds of serious and critical violations: contrast, names, roles, as far as a program can tell."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(tab).response["violations"]
    return [
        f"{violation['id']}: {node['html'][:120]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
