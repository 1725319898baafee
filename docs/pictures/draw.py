"""Makes the pictures of the documentation: pages of small trainings, as a browser shows them.

    python docs/pictures/draw.py   (a minute or two; needs chromium and the development requirements)

The training is that of benchmarks/pages.py, longer. Nothing is kept of it but the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / folder) for folder in ("benchmarks", "tests")]

from browsers import launched, opened  # noqa: E402
from pages import report, train  # noqa: E402

PICTURES = {"page": (1.0, 1440, 1560)}
"""By its name: the learning rate, and the width and height in pixels."""


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        for name, (rate, width, height) in PICTURES.items():
            run = Path(folder) / name
            train(rate, run, steps=3000, max_overhead=0.2)
            page, _ = report(run)
            tab, _ = opened(browser, page, viewport={"width": width, "height": height})
            tab.screenshot(path=HERE / f"{name}.png")
            print(HERE / f"{name}.png")


if __name__ == "__main__":
    main()
