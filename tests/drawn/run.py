"""Trains drawn combinations of loss, model, optimizer, batch and loop with and without the probe.

``python tests/drawn/run.py --count 300 --seed 0`` prints a line for each and a count, and exits with 1 if a training
was disturbed, a direction was wrong, or something crashed.
"""

import argparse
import json
import platform
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

if not __package__:
    sys.path[0] = str(Path(__file__).parent.parent)

import stepscope
from drawn.draw import drawn
from drawn.optimizers import MISSING
from drawn.trial import Verdict, tried

PACKAGES = ("torch", "numpy", "transformers", "peft", "pytorch_optimizer", "schedulefree", "lion-pytorch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", action="append", default=[], help="combinations whose name has this (each of several)"
    )
    parser.add_argument("--list", action="store_true", help="say what would be drawn, and stop")
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes and what they were found with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _quiet_transformers()
    chosen = [c for c in drawn(options.count, options.seed) if all(part in str(c) for part in options.only)]
    if options.list:
        print(*chosen, sep="\n")
        return 0
    if MISSING:
        print(f"not installed, so not drawn: {', '.join(MISSING)}")
    verdicts: list[Verdict] = []
    for number, combination in enumerate(chosen, 1):
        verdicts.append(tried(combination))
        print(f"{number:4} {combination}\n     {verdicts[-1].line}", flush=True)
    counts = Counter(v.kind for v in verdicts)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) + f" of {len(verdicts)}")
    if options.out is not None:
        options.out.write_text(json.dumps(_record(options, verdicts, counts), indent=1))
    return int(any(v.bad for v in verdicts))


def _quiet_transformers() -> None:
    try:
        from transformers.utils import logging
    except ImportError:
        return
    logging.set_verbosity_error()


def _record(options: argparse.Namespace, verdicts: list[Verdict], counts: Counter[str]) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "count": options.count,
        "only": options.only,
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "stepscope": stepscope.__version__,
            "threads": torch.get_num_threads(),
            **{name: version for name in PACKAGES if (version := _version(name))},
        },
        "counts": counts,
        "outcomes": [
            {**vars(v.combination), "kind": v.kind, "line": v.line, "error": v.error, "seconds": round(v.seconds, 2)}
            for v in verdicts
        ],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
