"""What a measurement costs: in time, in memory, as a part of a training, and beside other packages.

    python benchmarks/measure.py                       (all sections; at most half an hour on two cores)
    python benchmarks/measure.py --quick               (small models, few rounds: two minutes; nothing is stored)
    python benchmarks/measure.py --against eddb71d     (also of a commit, or of another checkout)
    python benchmarks/measure.py --sections memory     (one section; the others stay as they are stored)

The unit of time is F: one forward of the evaluation batches, as the model runs it without gradients. All ways that are
compared run in turn in one process of one thread, with forwards before each of them; a figure is the median over rounds
of *time of the way / F of the round*, with the least and the greatest. Time is the process's own on a CPU, so that what
else runs on the machine counts little, and that of finished work on a GPU.

Memory is what an allocator handed out and didn't get back, at its peak, above what was held before: the sum over
torch's own record of every allocation on a CPU, `max_memory_allocated` on a GPU. On a CPU it is the same number in each
run, which resident memory isn't.

One process measures this source, and another the source of `--against`, a case in turn. The sections:

    models       six architectures, 32 tokens: this project beside a vhp loop and four packages, with the relative
                 error of dᵀHd against a float64 reference
    sequence     the same at 512 tokens, without the packages
    directions   growth with the number of directions
    parameters   growth with the number of parameters
    memory       peak memory of each way on one transformer
    probe        attaching, a measurement and an idle step of a probe at its defaults, in steps of the training
    overhead     two trainings in turn, one with a probe that has a limit
    own steps    the same on the demo's task, without full measurements, for trainings of three lengths, and at a tenth
                 of the limit

Results, with the environment, go to benchmarks/performance.json; `python benchmarks/tables.py` writes them into
docs/performance.md. The packages are those of benchmarks/requirements-peers.txt (`make performance` installs them in an
environment of their own); one that is missing, or can't run a model, is a row that says so.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
RESULTS = HERE / "performance.json"
OWN = ("measure", "measure, uᵀHu < 0", "full")
SECTIONS = ("models", "sequence", "directions", "parameters", "memory", "probe", "overhead", "own steps")
DEMO = "the demo's T5"
PEERS = ("vhp loop", "curvlinops", "PyHessian", "hessian-eigenthings", "BackPACK")
MARK = "result: "
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        section: the section of the results that its rows belong to.
        model: one of `models.MODELS`.
        width: its hidden size.
        length: tokens of an example.
        examples: in each of its two micro-batches.
        ways: what is compared.
        directions: how many; ``None``: six, and four for a full measurement.
        rounds: how often each way is timed.
        steps: of training, where a training is timed.
        limit: `max_overhead` of the probe.
    """

    section: str
    model: str
    width: int = 128
    length: int = 32
    examples: int = 4
    ways: tuple[str, ...] = ()
    directions: int | None = None
    rounds: int = 5
    steps: int = 0
    limit: float = 0.05

    def count(self, way: str) -> int:
        """How many directions this way is given."""
        return self.directions or (4 if way == "full" else 6)


def cases() -> list[Case]:
    """The full run."""
    six = ("T5", "GPT-2", "GPT-Neo", "BERT", "Llama", "ResNet")
    three = ("T5", "GPT-2", "BERT")
    growing = ("measure", "full", "vhp loop")
    return [
        *(Case("models", model, ways=(*OWN, *PEERS), rounds=3) for model in six),
        *(Case("sequence", m, length=512, examples=1, ways=(*OWN, "vhp loop"), rounds=2) for m in three),
        *(Case("directions", "GPT-2", ways=growing, directions=k, rounds=3) for k in (1, 2, 4, 8, 16, 32)),
        *(Case("parameters", "GPT-2", width=w, examples=2, ways=growing, rounds=3) for w in (32, 64, 128, 240)),
        *(Case("parameters", "GPT-2", width=w, examples=2, ways=growing, rounds=1) for w in (448, 768)),
        *(Case("memory", "GPT-2", width=640, ways=("measure", "full", "vhp loop"), directions=k) for k in (1, 4)),
        Case("memory", "GPT-2", width=640, ways=PEERS[1:], directions=4),
        *(Case("probe", model, rounds=3) for model in ("T5", "GPT-2", "ResNet")),
        Case("overhead", "GPT-2", width=32, steps=10_000),
        # The time of few steps varies most.
        *(Case("own steps", DEMO, steps=steps) for steps in (300, 300, 300, 1_000, 2_000)),
        *(Case("own steps", DEMO, steps=steps, limit=0.005) for steps in (1_000, 2_000)),
    ]


def quick_cases() -> list[Case]:
    """A short run of every section on small models; the figures are rough."""
    shorter = []
    for case in cases():
        if case.section == "parameters" and case.width > 128:
            continue
        if case.section in ("directions", "memory") and (case.directions or 0) > 4:
            continue
        if case.section in ("sequence", "probe") and case.model not in ("GPT-2", "ResNet"):
            continue
        if case.section == "own steps" and case.steps > 300:
            continue
        width = min(case.width, 64 if case.section != "parameters" else 128)
        shorter.append(replace(case, width=width, rounds=1, steps=min(case.steps, 400), limit=10 * case.limit))
    return shorter


class Worker:
    """A process of one thread that imports the package from `source` and measures one case after another."""

    def __init__(self, source: Path) -> None:
        environ = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        command = [sys.executable, "-W", "ignore", str(HERE / "costs.py")]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True, bufsize=1)

    def measure(self, case: Case) -> dict[str, Any]:
        """The rows of a case, and their environment."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and nothing will be read
            self._process.stdin.write(json.dumps(asdict(case)) + "\n")
        for line in self._process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        raise SystemExit(f"the process that measured {case} failed")

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def without_peers(case: Case) -> Case | None:
    """The part of a case that depends on this project's source; ``None`` where nothing does."""
    ways = tuple(way for way in case.ways if way not in PEERS[1:])
    return replace(case, ways=ways) if ways or not case.ways else None


@contextmanager
def sources_of(tree: str | None) -> Iterator[Path | None]:
    """The folder ``src`` of a commit, or of another checkout."""
    if tree is None:
        yield None
    elif Path(tree).is_dir():
        yield (Path(tree) / "src").resolve()
    else:
        archive = subprocess.run(["git", "archive", tree, "src"], cwd=HERE.parent, check=True, capture_output=True)
        with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
            yield Path(folder) / "src"


def commit() -> str:
    """The last commit that changed the source that is measured, marked where it isn't what is measured."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments, "--", "."], cwd=SOURCE, capture_output=True, text=True).stdout.strip()

    return git("log", "-1", "--format=%h") + (" with changes" if git("status", "--porcelain") else "")


def section_results(chosen: list[Case], now: Worker, before: Worker | None) -> Iterator[dict[str, Any]]:
    """The rows of a section, growing: each case by this source and by the other."""
    section: dict[str, Any] = {"rows": [], "before": []}
    for case in chosen:
        section |= (result := now.measure(case)) | {"rows": section["rows"] + result["rows"]}
        print("\n".join(map(described, result["rows"])), flush=True)
        again = without_peers(case)
        if before and again:
            rows = before.measure(again)["rows"]
            section["before"] += rows
            print("\n".join(f"  before: {described(row)}" for row in rows), flush=True)
        yield section


def described(row: Row) -> str:
    """A row in a line."""
    start = f"{row['section']}: {row['model']}, {row['parameters'] / 1e6:.2g}M, {row['length']} tokens"
    if "way" in row:
        start += f", {row['way']}, K = {row['directions']}"
    if "reason" in row:
        return f"{start}: {row['reason']}"
    if "median" in row:
        error = f", error {row['error']:.1e}" if "error" in row else ""
        return f"{start}: {row['median']:.2f} F ({row['least']:.2f} to {row['greatest']:.2f}) a direction{error}"
    if "times" in row:
        return f"{start}: {row['times']:.2f} times forward and backward"
    if "overhead" in row:
        same = "is the same" if row["same_last_loss"] else "DIFFERS"
        counts = f"{len(row['measured_at'])} measurements, {row['on_own_batches']} of steps, {row['edges']} of edges"
        return f"{start}: {row['overhead']:+.2%} at {row['limit']:.1%}, {counts}, the training {same}"
    parts = ", ".join(f"{name} {row[name]['median']:.3g}" for name in ("attach", "measure", "idle"))
    return f"{start}: in training steps {parts}"


def main() -> None:
    """Measures, prints and stores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models and few rounds; nothing is stored")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="which ones (all)")
    parser.add_argument(
        "--against", metavar="TREE", help="a commit, or the folder of a checkout: measured too, a case in turn"
    )
    options = parser.parse_args()
    chosen = quick_cases() if options.quick else cases()
    with sources_of(options.against) as other, ExitStack() as workers:
        now = Worker(SOURCE)
        workers.callback(now.close)
        source = commit()  # of what is measured: others may come while it is
        before = Worker(other) if other else None
        if before:
            workers.callback(before.close)
        for name in options.sections:
            for results in section_results([case for case in chosen if case.section == name], now, before):
                if not options.quick:
                    store(name, results | {"commit": source, "against": options.against})


def store(section: str, results: dict[str, Any]) -> None:
    """Replaces one section of the stored results; after each case, so that an interrupted run keeps what it has."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    ordered = {name: (stored | {section: results}).get(name) for name in SECTIONS}
    kept = {name: section for name, section in ordered.items() if section}
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
