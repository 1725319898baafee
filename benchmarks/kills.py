"""Jobs that are killed at random and given again: whether they leave what one undisturbed process leaves.

    python benchmarks/kills.py                     (half an hour on two cores)
    python benchmarks/kills.py --engines xargs

Forty-two jobs of `stepscope reproduce` are done by one process, the reference, and by each engine, two at a time. There
processes are killed (SIGKILL): one that is at a job, or all of its process group; at any moment, while a model is
pretrained, or as soon as something was recorded. Between two runs of an engine some files get a torn last line, as a
machine that loses power leaves it. The same command is given until nothing is left. Then all files of all
runs are compared; only times may differ. Results go to benchmarks/kills.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from environment import environment

RESULTS = Path(__file__).with_suffix(".json")
ENGINES = ("processes", "xargs", "submitit", "ray")
KILLS = 20
MOMENTS = ("any", "pretraining", "recording")
GROUPS = 0.3
"""Of the kills, how many are of a whole process group."""
TORN = b'{"torn": '
_PATIENCE = 10.0
"""Seconds that a moment is waited for, at most."""


def command(engine: str, words: Sequence[str], out: Path) -> list[str]:
    """What does all jobs that are left, two at a time; `words` are those after ``stepscope``."""
    reproduce = [sys.executable, "-m", "stepscope", *words, "--out", str(out)]
    if engine == "xargs":
        return ["sh", "-c", f"{shlex.join(reproduce)} --list | xargs -P 2 -I{{}} sh -c {{}}"]
    return [*reproduce, "--jobs", "2", "--executor", "here" if engine == "processes" else engine]


def contents(out: Path) -> dict[str, str]:
    """The records and heads of all runs, without times."""
    files = [*out.glob("*/run.json"), *out.glob("*/measurements.jsonl")]
    times = re.compile(r'"(seconds|created)": ("[^"]*"|[\d.e-]+)')
    return {str(file.relative_to(out)): times.sub(r'"\1": 0', file.read_text()) for file in sorted(files)}


def left(words: Sequence[str], out: Path) -> int:
    """How many jobs are left."""
    listed = [sys.executable, "-m", "stepscope", *words, "--out", str(out), "--list"]
    return len(subprocess.run(listed, check=True, capture_output=True, text=True).stdout.splitlines())


class Killer:
    """Kills processes that are at jobs of an engine.

    Attributes:
        killed: how many kills there were, by moment and whom they hit.
        torn: how many files got a torn last line.
    """

    def __init__(self, out: Path, cache: Path, kills: int, seconds: float, draw: random.Random) -> None:
        self.out, self._cache, self._draw = out, cache, draw
        self._pause, self._patience = seconds / max(kills, 1), min(_PATIENCE, seconds / 2)
        self._kills, self.torn = kills, 0
        self.killed: Counter[str] = Counter()

    def watch(self, engine: subprocess.Popen[bytes]) -> None:
        """Kills now and then until the engine ends."""
        while engine.poll() is None:
            if self.killed.total() < self._kills:
                time.sleep(self._draw.uniform(0, 2 * self._pause))
                moment = self._draw.choice(MOMENTS)
                pid = self._at(moment, engine) if moment != "any" else None
                pid, moment = (pid, moment) if pid else (self._any(engine), "any")
                if pid:
                    self._kill(pid, moment)
            time.sleep(0.02)

    def _any(self, engine: subprocess.Popen[bytes]) -> int | None:
        found = list(self._running(engine))
        return self._draw.choice(found) if found else None

    def _at(self, moment: str, engine: subprocess.Popen[bytes]) -> int | None:
        """A process that pretrains, or has recorded something since this was called."""
        sizes, holders = self._sizes(), dict[Path, int]()
        end = time.monotonic() + self._patience
        while time.monotonic() < end and engine.poll() is None:
            grown = {file for file, size in self._sizes().items() if size > sizes.get(file, 0)}
            # Who had the file open before: by now it may be closed.
            if moment == "recording" and (pids := [pid for file, pid in holders.items() if file in grown]):
                return pids[0]
            holders = {file: pid for pid in self._running(engine) for file in _open_files(pid)}
            if moment == "pretraining":
                for file, pid in holders.items():
                    if file.is_relative_to(self._cache):
                        return pid
            time.sleep(0.01)
        return None

    def _sizes(self) -> dict[Path, int]:
        sizes = {}
        for file in self.out.glob("*/parts/*/measurements.jsonl"):
            with contextlib.suppress(OSError):
                sizes[file] = file.stat().st_size
        return sizes

    def _running(self, engine: subprocess.Popen[bytes]) -> Iterator[int]:
        """The processes that are at jobs: those of commands, and workers of the engine."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().split("\0")
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                job = words[0] == sys.executable and "--job" in words and str(self.out) in words
                if job or (parent == engine.pid and "spawn_main" in " ".join(words)):
                    yield int(process.name)

    def _kill(self, pid: int, moment: str) -> None:
        whole = self._draw.random() < GROUPS
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(pid)
            os.killpg(group, signal.SIGKILL) if whole else os.kill(pid, signal.SIGKILL)
            self.killed[f"{moment}, {'a group' if whole else 'a process'}"] += 1

    def tear(self) -> None:
        """Leaves a torn last line in half of the files that nobody writes to."""
        for file in self.out.glob("*/parts/*/measurements.jsonl"):
            if self._draw.random() < 0.5:
                with contextlib.suppress(filelock.Timeout), filelock.FileLock(file.parent / ".lock", blocking=False):
                    if not file.read_bytes().endswith(TORN):
                        file.write_bytes(file.read_bytes() + TORN)
                        self.torn += 1


def _open_files(pid: int) -> list[Path]:
    found = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(link.readlink())
    return found


def reference(words: Sequence[str], out: Path) -> float:
    """Does all jobs by one process; gives the seconds that it took."""
    started = time.monotonic()
    call = [sys.executable, "-m", "stepscope", *words, "--out", str(out), "--jobs", "1"]
    subprocess.run(call, check=True, capture_output=True)
    return time.monotonic() - started


def disturbed(engine: str, words: Sequence[str], out: Path, killer: Killer) -> dict[str, Any]:
    """Does the jobs by an engine whose processes are killed, and says what there was of each."""
    jobs, rounds = left(words, out), 0
    count = jobs
    while count:
        rounds += 1
        with out.with_suffix(f".{rounds}.log").open("wb") as log:
            run = subprocess.Popen(command(engine, words, out), stdout=log, stderr=log, start_new_session=True)
            killer.watch(run)
        killer.tear()
        count = left(words, out)
    done = subprocess.run(command("processes", words, out), check=False, capture_output=True, text=True)  # gathers
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr}")
    return {"engine": engine, "jobs": jobs, "kills": dict(sorted(killer.killed.items())), "torn": killer.torn,
            "rounds": rounds}  # fmt: skip


def compared(wanted: dict[str, str], found: dict[str, str]) -> dict[str, Any]:
    """What differs of two reproductions."""
    before, after = (Counter(line for text in each.values() for line in text.splitlines() if line.startswith('{"'))
                     for each in (wanted, found))  # fmt: skip
    return {
        "records": after.total(),
        "lost": (before - after).total(),
        "twice": sum(count - 1 for count in after.values()),
        "others": len(set(after) - set(before)),
        "differing": sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)),
    }


def trial(
    engines: Sequence[str], words: Sequence[str], folder: Path, kills: int, seed: int, spread: float = 0.25
) -> Iterator[dict[str, Any]]:
    """The reference, and then each engine: a row for each.

    The pauses before kills take this part of the reference's time together, on average, and a moment is waited for half
    as long at most: where the jobs are over sooner, nothing would be killed.
    """
    os.environ["STEPSCOPE_CACHE"] = str(folder / "cache")
    seconds = reference(words, folder / "reference")
    wanted = contents(folder / "reference")
    for engine in engines:
        cache, out = folder / f"cache-{engine}", folder / engine
        os.environ["STEPSCOPE_CACHE"] = str(cache)
        killer = Killer(out, cache / "pretrained", kills, spread * seconds, random.Random(seed))
        yield disturbed(engine, words, out, killer) | compared(wanted, contents(out))


def store(row: dict[str, Any]) -> None:
    """Puts what was found of an engine in place of what is stored of it."""
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = sorted([*(one for one in rows if one["engine"] != row["engine"]), row], key=_place)
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1) + "\n")


def _place(row: dict[str, Any]) -> int:
    return ENGINES.index(row["engine"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from made_data import data_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        sources = [f"{kind}={data_of(kind, folder / 'data')}" for kind in ("translation", "code", "images")]
        words = ["reproduce", "--scale", "smoke", "--only", "A", "C", "D", "--seeds", "3", "--tasks", "code", "images"]
        words += [word for source in sources for word in ("--source", source)]
        for row in trial(options.engines, words, folder, options.kills, options.seed):
            print(row, flush=True)
            store(row)


if __name__ == "__main__":
    main()
