"""Makes the pictures of the documentation: pages of small trainings, as a browser shows them.

    python docs/pictures/draw.py   (a minute or two; needs chromium and the development requirements)

The training is that of examples/learning_rate.py, longer and with a schedule. Nothing is kept of it but the pictures.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from torch import nn

import stepscope
from stepscope.directions import Lion

HERE = Path(__file__).parent
TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library
STEPS = 3000
PICTURES = {"page": (1.0, 1440, 1560)}
"""By its name: the learning rate, and the width and height in pixels."""


def batch(seed: int, size: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the text: sixteen bytes, and the one that follows."""
    start = torch.randint(len(TEXT) - 16, (size, 1), generator=torch.Generator().manual_seed(seed))
    window = TEXT[start + torch.arange(17)]
    return window[:, :-1], window[:, -1]


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean cross entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(rate: float, folder: Path) -> Path:
    """A training with warm-up and decay, and its page."""
    torch.manual_seed(0)
    layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS, pct_start=0.1)
    others = {"sgd": lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.9), "lion": Lion}
    probe = stepscope.Probe(
        model, optimizer, loss_fn, [batch(-1, 64), batch(-2, 64)], directions=others, steps=STEPS, max_overhead=0.2,
        run_dir=folder / "run", source="a file of Python's standard library", quiet=True,
    )  # fmt: skip
    with probe:
        for step in range(STEPS):
            optimizer.zero_grad()
            probe.loss_fn(model, batch(step)).backward()
            optimizer.step()
            schedule.step()
        return probe.report(folder / "page.html")


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, (rate, width, height) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(train(rate, Path(folder) / name).as_uri())
            page.wait_for_selector("svg, canvas")
            page.wait_for_timeout(500)
            page.screenshot(path=HERE / f"{name}.png")
            print(HERE / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
