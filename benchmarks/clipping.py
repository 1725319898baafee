"""How fast the threshold of a clip is found, beside the other ways to find it.

    python benchmarks/clipping.py                               (some minutes)
    python benchmarks/clipping.py --sizes 1000000 10000000      (seconds)

A gradient of N coordinates in 200 tensors of unlike sizes, 10% to be clipped. Each way is timed in turn, several
rounds, and the median of its processor time is given as a multiple of one read of the data (`torch.sum` of each
tensor). Extra memory (on Linux) is the growth of the peak resident memory of a fresh process, as a part of the
gradient, at 10% and 50% clipped. A training step is one of a transformer of 19 million parameters with fused AdamW on
1,024 tokens: with neither, with the clip of a fraction, and with `clip_grad_norm_`, in turn. Results are
stored in benchmarks/clipping.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from environment import environment
from stepscope.clipping.clip_at_fraction import clamp_, clip_grad_fraction_, fraction_threshold

FRACTION = 0.1
RESULTS = Path(__file__).with_suffix(".json")
SLOW = ("concatenate and sort", "concatenate and kthvalue", "concatenate and topk")


def gradient(size: int) -> list[Tensor]:
    """Tensors as a network has them: a few large, many small."""
    shares = torch.tensor([0.97**i for i in range(200)], dtype=torch.float64)
    sizes = (shares / shares.sum() * size).long().clamp(min=1).tolist()
    sizes[0] += size - sum(sizes)
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) * (i + 1) ** -0.5 for i, n in enumerate(sizes)]


def ways(tensors: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """What is compared."""
    size = sum(t.numel() for t in tensors)
    k = int(FRACTION * size)
    parameters = [nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.grad = tensor
    adam = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def concatenated() -> Tensor:
        return torch.cat([t.abs().reshape(-1) for t in tensors])

    def partition() -> float:
        magnitudes = concatenated().numpy()
        magnitudes.partition(size - k - 1)
        return float(magnitudes[size - k - 1])

    return {
        "one read": lambda: [t.sum() for t in tensors],
        "this threshold": lambda: fraction_threshold(tensors, FRACTION),
        "the clamp after it": lambda: clamp_(tensors, 1e9),
        "one fused Adam step": adam.step,
        "concatenate and numpy partition": partition,
        "concatenate and kthvalue": lambda: concatenated().kthvalue(size - k).values,
        "concatenate and topk": lambda: concatenated().topk(k + 1).values[-1],
        "concatenate and sort": lambda: concatenated().sort(descending=True).values[k],
    }


def timed(size: int, rounds: int) -> dict[str, float]:
    """Median seconds of each way."""
    found: dict[str, list[float]] = {}
    compared = ways(gradient(size))
    for number in range(rounds + 1):
        for name, way in compared.items():
            if name in SLOW and number > 1 + rounds // 4:
                continue  # these take minutes
            started = time.process_time()
            way()
            if number:  # the first round warms up
                found.setdefault(name, []).append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def extra_memory(size: int, fraction: float) -> float:
    """Growth of the peak resident memory as a part of the gradient, in a process of its own."""
    code = f"""
import torch
from pathlib import Path
from stepscope.clipping import fraction_threshold, order_statistics
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
torch.set_num_threads(1)
gradient = torch.empty({size}).normal_()
most, order_statistics._SMALL = order_statistics._SMALL, 1000  # all code is loaded first, with hardly any data
fraction_threshold([gradient[:20_000]], {fraction})
order_statistics._SMALL = most
Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now; a child begins with its parent's
before = peak()
fraction_threshold([gradient], {fraction})
print((peak() - before) * 1024 / gradient.nbytes)
"""
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def step_overhead(rounds: int) -> dict[str, float]:
    """What a clip adds to a training step, as a part of it: medians of the differences within a round."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(512, 8, 2048, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    clips: dict[str, Callable[[], Any]] = {
        "neither": lambda: None,
        "fraction": lambda: clip_grad_fraction_(parameters, FRACTION),
        "norm": lambda: nn.utils.clip_grad_norm_(parameters, 1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in clips}
    clip_seconds: dict[str, list[float]] = {name: [] for name in clips}
    for number in range(rounds + 1):
        for name, clip in clips.items():
            batch = torch.randn(8, 128, 512)
            started = time.process_time()
            optimizer.zero_grad()
            (model(batch) - batch).square().mean().backward()
            before = time.process_time()
            clip()
            after = time.process_time()
            optimizer.step()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
                clip_seconds[name].append(after - before)
    step = statistics.median(seconds["neither"])
    overheads = {}
    for name in ("fraction", "norm"):
        pairs = zip(seconds[name], seconds["neither"], strict=True)
        overheads[f"{name}, of pairs"] = statistics.median(clipped - plain for clipped, plain in pairs) / step
        overheads[name] = statistics.median(clip_seconds[name]) / step
    return {"seconds": step, "parameters": sum(p.numel() for p in parameters), **overheads}


def main() -> None:
    """Times, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 6 * 10**7])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {"environment": environment(), "fraction": FRACTION, "sizes": {}}
    results["step"] = step = step_overhead(arguments.rounds + 2)
    print(f"a training step: {step['seconds']:.2f} s", *(f"{k} {v:.2%}" for k, v in list(step.items())[2:]), sep=", ")
    for size in arguments.sizes:
        seconds = timed(size, arguments.rounds)
        reads = {name: value / seconds["one read"] for name, value in seconds.items()}
        ours = seconds["this threshold"]
        found = {
            "reads": reads,
            "times faster than concatenate and sort": seconds["concatenate and sort"] / ours,
            "fused Adam steps": (ours + seconds["the clamp after it"]) / seconds["one fused Adam step"],
            "extra memory": {f"{fraction:g}": extra_memory(size, fraction) for fraction in (0.1, 0.5)},
        }
        results["sizes"][f"{size:g}"] = found
        print(f"\n{size:,} coordinates")
        for name, value in sorted(reads.items(), key=lambda item: item[1]):
            print(f"  {name:34} {value:9.1f} reads")
        faster = found["times faster than concatenate and sort"]
        print(f"  {faster:.0f} times faster than concatenate and sort;", end=" ")
        print(f"threshold and clamp cost {found['fused Adam steps']:.2f} fused Adam steps;", end=" ")
        memory = ", ".join(f"{part:.1%} at {fraction}" for fraction, part in found["extra memory"].items())
        print(f"extra memory {memory}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
