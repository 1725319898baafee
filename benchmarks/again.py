"""The whole reproduction once more, from nothing: how long it takes, and whether its verdicts stand.

    python benchmarks/again.py   (an hour and a half on two cores that do nothing else)

`stepscope reproduce` is run in an empty directory with an empty cache. Its time and its claims go to
benchmarks/again.json; `benchmarks/tables.py` sets them beside those of docs/reproduction.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from environment import environment
from measure import commit

RESULTS = Path(__file__).with_suffix(".json")
OUT = Path("runs", "reproduce-cpu")


def again(folder: Path) -> dict[str, Any]:
    """What came of it, in this folder."""
    source, started = commit(), time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "stepscope", "reproduce"],
        cwd=folder, env=os.environ | {"STEPSCOPE_CACHE": str(folder / "cache")}, check=True,
    )  # fmt: skip
    seconds, spent = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "commit": source,
        "seconds": round(seconds),
        "processor_seconds": round(spent.ru_utime),
        "claims": json.loads((folder / OUT / "claims.json").read_text()),
        "environment": environment(),
    }


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stored = again(Path(folder))
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    print(f"{stored['seconds']} s, {stored['processor_seconds']} s of processors: {RESULTS}")


if __name__ == "__main__":
    main()
