"""What attaching, measuring and an idle step cost, against another version of the source.

    git worktree add ../before decc056
    python benchmarks/against.py ../before   (about ten minutes on two cores)

Each model is measured in processes of one thread, of the two versions in turn. A process gives the least time of
several attachments and measurements, and the median step with a probe that never measures over the one without. What
counts is the median ratio over pairs of processes. Results are added to benchmarks/against.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from environment import environment

RESULTS = Path(__file__).with_suffix(".json")
SOURCE = Path(__file__).parent.parent / "src"
NEVER = 10**9


def mlp() -> tuple[nn.Module, Any, list[Any]]:
    """Three layers: what costs is Python."""
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))
    batches = [(torch.randn(32, 32), torch.randint(0, 10, (32,))) for _ in range(4)]
    return model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches


def gpt2() -> tuple[nn.Module, Any, list[Any]]:
    """0.9 million parameters, 64 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=128, n_layer=4, n_head=4, n_positions=64))
    ids = [torch.randint(0, 512, (8, 64)) for _ in range(4)]
    return model, None, [{"input_ids": i, "labels": i} for i in ids]


def bert() -> tuple[nn.Module, Any, list[Any]]:
    """0.9 million parameters in many tensors, 32 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    batches = [{"input_ids": torch.randint(0, 512, (16, 32)), "labels": torch.randint(0, 2, (16,))} for _ in range(4)]
    return BertForSequenceClassification(config), None, batches


MODELS: dict[str, Callable[[], tuple[nn.Module, Any, list[Any]]]] = {"mlp": mlp, "gpt2": gpt2, "bert": bert}


def seconds(work: Callable[[], Any], times: int) -> list[float]:
    """How long it takes, each time."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def measured(name: str) -> dict[str, float]:
    """The times of one model by the version that is imported."""
    from stepscope import Probe

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, loss_fn, batches = MODELS[name]()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def backward() -> None:
        optimizer.zero_grad()
        loss = model(**batches[0]).loss if loss_fn is None else loss_fn(model, batches[0])
        loss.backward()

    def step() -> None:
        backward()
        optimizer.step()

    def attached() -> Probe:
        return Probe(model, optimizer, loss_fn, batches, every=NEVER, max_overhead=None, quiet=True)

    seconds(step, 4)
    attaching = min(seconds(lambda: attached().close(), 4))
    with attached():
        idle = statistics.median(seconds(step, 40))
    plain = statistics.median(seconds(step, 40))
    with attached() as probe:
        backward()
        measuring = min(seconds(lambda: probe.measure(gradients="training"), 4))
    return {"attach": attaching, "measure": measuring, "idle step": idle / plain}


def in_process(name: str, source: Path) -> dict[str, float]:
    """`measured`, in a process that imports the package from `source`."""
    environ = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{Path(__file__).parent}"}
    command = [sys.executable, __file__, "--only", name, str(source)]
    lines = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found: dict[str, float] = json.loads(lines[-1])
    return found


def compared(name: str, before: Path, pairs: int) -> dict[str, Any]:
    """The medians over pairs of processes: ratios of now to before, and the idle step of each."""
    runs = [(in_process(name, before), in_process(name, SOURCE)) for _ in range(pairs)]
    row: dict[str, Any] = {"model": name, "pairs": pairs}
    for what in ("attach", "measure"):
        row[what] = statistics.median(now[what] / then[what] for then, now in runs)
    row["idle step"] = statistics.median(now["idle step"] for _, now in runs)
    row["idle step before"] = statistics.median(then["idle step"] for then, _ in runs)
    return row


def main() -> None:
    """Compares, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the other version")
    parser.add_argument("--pairs", type=int, default=3, help="processes of each version, by model")
    parser.add_argument("--only", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measured(options.only)))
        return
    rows = []
    for name in MODELS:
        rows.append(compared(name, options.before.resolve() / "src", options.pairs))
        print(
            ", ".join(
                f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in rows[-1].items()
            )
        )
    revision = subprocess.run(
        ["git", "-C", str(options.before), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    stored.append({"before": revision.stdout.strip(), "rows": rows, "environment": environment()})
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
