"""Made-up data for each task, in files as a user would give them.

python tests/made_data.py FOLDER     writes all, and prints the arguments that ``stepscope reproduce`` takes
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

WORDS = [("red", "rouge"), ("big", "grand"), ("old", "vieux"), ("new", "neuf"), ("small", "petit"), ("deep", "profond")]


def data_of(kind, folder):
    """A file of made-up data, enough for several batches."""
    if kind == "translation":
        lines = [f"the {a} house has {n} dogs\tla maison {b} a {n} chiens" for a, b in WORDS for n in range(20)]
        return write(folder / "pairs.tsv", "\n".join(lines))
    if kind == "code":
        return write(folder / "x.py", "".join(f"def add_{n}(a, b):\n    return a + {n} * b\n\n" for n in range(60)))
    if kind == "sentiment":
        lines = [f"{('bad', 'good')[n % 2]}\ta {a} film with {n} scenes" for a, _ in WORDS for n in range(20)]
        return write(folder / "texts.tsv", "\n".join(lines))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 255, (240, 1, 12, 12), generator=generator, dtype=torch.uint8)
    save_file({"images": pixels, "labels": torch.arange(240) % 5}, folder / "images.safetensors")
    return str(folder / "images.safetensors")


def write(path, text):
    path.write_text(text)
    return str(path)


if __name__ == "__main__":
    for kind in ("translation", "code", "sentiment", "images"):
        print(f"--source {kind}={data_of(kind, Path(sys.argv[1]))}")
