"""The six pages that a person may get, in a headless Chromium: what they weigh, how soon they are drawn and follow.

    python benchmarks/pages.py                     (about five minutes on two cores)
    python benchmarks/pages.py --pages long empty --keep build/pages

Two are of trainings that are made here, one of them at a rate ten times too large; one is of a long run, one of a run
that has no record, one of a run whose names are hostile, and one is the stored reproduction. Each is made by `stepscope
report`, in a process of its own, and opened at two widths and in both color schemes. Whatever a page has is used: the
slider, the headers, the highlights, the copies, the keyboard. Results go to benchmarks/pages.json. An outside
request or a console error ends the command. A missed limit is reported at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import stepscope
from environment import environment
from stepscope.directions import Lion

HERE = Path(__file__).parent
RESULTS = Path(__file__).with_suffix(".json")
WIDTHS = (390, 1440)
TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library
RATE = 0.1
"""The best of this training, of five that are three times apart."""
STEPS = 600

MOST_BYTES = 2_000_000
FIRST_PAINT = 2.0
CPU = {"run": 2.0, "reproduction": 15.0}
"""Limits, in seconds: of what a person sees first, and of the processor that makes a page."""


def batch(seed: int, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the text: sixteen bytes, and the one that follows."""
    start = torch.randint(len(TEXT) - 16, (size, 1), generator=torch.Generator().manual_seed(seed))
    window = TEXT[start + torch.arange(17)]
    return window[:, :-1], window[:, -1]


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(rate: float, run: Path, steps: int = STEPS, max_overhead: float = 1.0) -> float:
    """Trains a small model of bytes, with warm-up and decay, a probe, and two other optimizers beside.

    Args:
        rate: the largest learning rate.
        run: the directory of the run.
        steps: how many.
        max_overhead: the part of its time that the probe may take.

    Returns:
        The loss of examples that are held out, at the end.
    """
    torch.manual_seed(0)
    layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    others = {"sgd": lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.9), "lion": Lion}
    probe = stepscope.Probe(
        model, optimizer, loss_fn, [batch(-1, 64), batch(-2, 64)], directions=others, steps=steps, run_dir=run,
        max_overhead=max_overhead, source="a file of Python's standard library", quiet=True,
    )  # fmt: skip
    with probe:
        for step in range(steps):
            optimizer.zero_grad()
            probe.loss_fn(model, batch(step)).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float(loss_fn(model, batch(-3, 4096)))


def _long(run: Path) -> None:
    from probed_runs import long_training, probed_run

    probed_run(run, *long_training())


def _empty(run: Path) -> None:
    from probed_runs import probed_run

    probed_run(run)


def _hostile(run: Path) -> None:
    from probed_runs import hostile_training

    hostile_training(run)


PAGES: dict[str, Callable[[Path], Any]] = {
    "healthy": lambda run: train(RATE, run),
    "rate × 10": lambda run: train(10 * RATE, run),
    "long": _long,
    "empty": _empty,
    "hostile names": _hostile,
    "reproduction": lambda run: shutil.copytree(HERE.parent / "docs" / "reproduction", run),
}
"""Each makes the directory that the page is of."""


def report(run: Path) -> tuple[Path, float]:
    """The page of a run, and the seconds of the processor that a process took for it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "stepscope", "report", str(run)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return run / "report.html", after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


# The third frame waits until the first is on the screen: what an action changes is drawn by then.
SCRIPT = """
const frame = () => new Promise(requestAnimationFrame);
new MutationObserver(() => { window.drawn ??= performance.now(); })
  .observe(document, { subtree: true, attributes: true, attributeFilter: ["data-charts"] });
window.settled = async (act) => {
  let changed = performance.now(), shown = 0;
  const start = changed;
  const observer = new MutationObserver(() => { changed = performance.now(); });
  observer.observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
  act();
  do {
    for (let each = 0; each < 3; each++) await frame();
    if (shown <= changed) shown = performance.now();
  } while (performance.now() - changed < 300);
  observer.disconnect();
  return (shown - start) / 1000;
};
"""
MOVE = """settled(() => {
  const slider = document.querySelector(".slider input");
  slider.value -= 1;
  slider.dispatchEvent(new Event("input"));
})"""
CLICK = "settled(() => document.querySelector({!r}).click())"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
CLICKED = {"header": ".panel thead th:nth-child(2) button", "highlight": "[data-direction]"}


def used(browser: Any, page: Path, width: int, keep: Path | None) -> dict[str, Any]:
    """Opens a page and uses all that it has: seconds of each thing, None of what it doesn't have.

    Args:
        browser: a Chromium.
        page: the file.
        width: of the window, in pixels.
        keep: where pictures of it go.
    """
    from browsers import opened, parts, serious, walk

    window = {"viewport": {"width": width, "height": 900}, "permissions": ["clipboard-read", "clipboard-write"]}
    tab, events = opened(browser, page, script=SCRIPT, color_scheme="light", **window)
    has, has_charts = parts(tab), tab.locator("html[data-charts]").count() > 0
    row = {
        "width": width,
        "charts": tab.locator(".chart svg.marks").count(),
        "first_paint": tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"),
        "drawn": tab.evaluate("window.drawn / 1000") if has_charts else None,
        **dict.fromkeys(("slider", "slider_most", "header", "highlight", "dark")),
    }
    tab.wait_for_timeout(500)
    if keep:
        tab.screenshot(path=keep / f"{page.stem} {width} light.png", full_page=True, timeout=0)
    if "slider" in has:
        tab.locator(".slider input").first.scroll_into_view_if_needed()
        moves = [
            tab.evaluate(MOVE) for _ in range(min(10, int(tab.locator(".slider input").first.get_attribute("max"))))
        ]
        row |= {"slider": median(moves), "slider_most": max(moves)}
    for part, place in CLICKED.items():
        if part in has:
            tab.locator(place).first.scroll_into_view_if_needed()
            row[part] = tab.evaluate(CLICK.format(place))
    if "latex" in has:
        tab.locator("[data-copy=latex]").first.click()
        tab.wait_for_function("document.querySelector('.panel [role=status]').textContent === 'Copied.'")
        assert "\\begin{tabular}" in tab.evaluate("navigator.clipboard.readText()")
    found, light = serious(tab), tab.evaluate(BACKGROUND)
    tab.evaluate("window.drawn = null, window.begun = performance.now()")
    tab.emulate_media(color_scheme="dark")
    if has_charts:
        tab.wait_for_function("window.drawn !== null", timeout=60_000)
        row["dark"] = tab.evaluate("(window.drawn - window.begun) / 1000")
    assert tab.evaluate(BACKGROUND) != light, "it is dark"
    found += serious(tab)
    if keep:
        tab.screenshot(path=keep / f"{page.stem} {width} dark.png", full_page=True, timeout=0)
        tab.emulate_media(media="print", color_scheme="light")
        tab.pdf(path=keep / f"{page.stem} {width}.pdf")
        tab.emulate_media(media="screen", color_scheme="light")
    assert tab.evaluate("document.documentElement.scrollWidth") == width, "it is as wide as the window"
    tab.reload()
    tab.wait_for_selector("html[data-charts], .empty", timeout=60_000)
    walk(tab)
    tab.context.close()
    assert found == [], found
    assert events == [], events
    return row


def measured(browser: Any, name: str, folder: Path, keep: Path | None) -> list[dict[str, Any]]:
    """What is found of one of the pages: a row for each width."""
    run = folder / name
    result = PAGES[name](run)
    page, first = report(run)
    content = page.read_bytes()
    page, again = report(run)
    assert page.read_bytes() == content, "the same records give the same page"
    facts = {"page": name, "held_out": result if isinstance(result, float) else None, "bytes": len(content),
             "cpu": min(first, again), "cpu_first": first,
             "load": os.getloadavg()[0]}  # fmt: skip
    shown = page.rename(folder / f"{name}.html")
    if keep:
        shutil.copy(shown, keep)
    return [facts | used(browser, shown, width, keep) for width in WIDTHS]


def missed(row: dict[str, Any]) -> list[str]:
    """The limits that a page doesn't keep; a busy machine misses those of time by itself."""
    is_run = row["page"] != "reproduction"
    limits = {"first_paint": FIRST_PAINT, "cpu": CPU["run" if is_run else "reproduction"]}
    limits |= {"bytes": MOST_BYTES} if is_run else {}
    return [
        f"{row['page']}: {name} {row[name]:g}, at most {most:g}" for name, most in limits.items() if row[name] > most
    ]


def store(found: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Puts what was found of a page in place of what is stored of it."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [*(row for row in rows if row["page"] != found[0]["page"]), *found]
    rows.sort(key=lambda row: ([*PAGES].index(row["page"]), row["width"]))
    RESULTS.write_text(json.dumps({"rows": rows, "environment": about}, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=PAGES, help="those that are measured; all")
    parser.add_argument("--keep", type=Path, help="a folder for the pages and for pictures of them")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    from browsers import launched

    torch.set_num_threads(1)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, launched() as browser:
        os.environ["STEPSCOPE_CACHE"] = str(Path(name) / "cache")
        about = environment() | {"chromium": browser.version}
        rows = []
        for page in options.pages:
            rows += (found := measured(browser, page, Path(name), options.keep))
            print(*map(json.dumps, found), sep="\n", flush=True)
            store(found, about)
    sys.exit("\n".join(line for row in rows for line in missed(row)) or None)


if __name__ == "__main__":
    main()
