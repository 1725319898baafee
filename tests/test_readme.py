"""The README's code runs as it stands there, and the links of the pages lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stepscope
from stepscope.runs import StepRecord

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CHANGED = re.search(r"```diff\n(.*?)```", README, re.DOTALL)[1]
BLOCKS = [
    "".join(line[1:] for line in CHANGED.splitlines(keepends=True) if line[0] != "-"),
    *re.findall(r"```python\n(.*?)```", README, re.DOTALL),
]


def test_the_code_of_the_readme_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters())
    loader = [(torch.randn(6, 4), torch.randint(0, 3, (6,))) for _ in range(2)]
    names = {
        "stepscope": stepscope,
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loader": loader,
        "eval_batches": loader,
        "loss_fn": lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]),
    }
    assert len(BLOCKS) == 4
    exec(BLOCKS[0].replace("run_dir", "every=1, max_overhead=None, run_dir"), names)
    probe = names["probe"]
    assert len(probe.records) == 4 * len(loader)
    assert len(probe.step_records) == len(loader)
    assert capsys.readouterr().out == f"{probe.findings()}\n"
    probe.close()
    assert (tmp_path / "runs/probe/measurements.jsonl").exists()
    exec(BLOCKS[1], names)
    assert [len(line.split()) for line in capsys.readouterr().out.splitlines()] == [4] * len(loader)
    exec(BLOCKS[2], names)
    assert set(names["directions"]) == {"sgd", "adam"}
    exec(BLOCKS[3], names)


def test_the_findings_that_are_shown_are_as_printed():
    shown = re.search(r"```\n(The learning rate.*?)```", README, re.DOTALL)[1]
    terms = {"trajectory": "Adam", "seed": 0, "steps": 100, "lr": (1.0,), "batch_slope": -0.5}
    steps = [StepRecord(**terms, step=n, batch_loss=2 - n / 100, batch_change=-0.1 - n / 2000) for n in range(5, 25)]
    assert re.match(".*".join(map(re.escape, shown.split("…"))), f"{stepscope.findings(steps)}\n")


PAGES = sorted(str(path.relative_to(ROOT)) for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Links to files, and the files that are named in code."""
    text = (ROOT / page).read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all(((ROOT / page).parent / link).exists() for link in links), links
    named = re.findall(r"`((?:examples|benchmarks|docs|tests)/[\w./]+\.\w+)`", text)
    assert all((ROOT / name).exists() for name in named), named


def test_the_table_of_places_names_what_exists():
    """Where to change what, in docs/architecture.md."""
    rows = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.startswith("| ")]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", "".join(rows))
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "src/stepscope" / name).exists()] == []


def test_what_the_published_code_does_otherwise_is_named():
    """The names of `--with`, in docs/reproduction.md."""
    from stepscope.paper.experiments.command_lines import RELEASED

    page = (ROOT / "docs/reproduction.md").read_text()
    table = page[page.index("`--with NAME`") : page.index("## The scales for a GPU")]
    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == RELEASED


def test_the_figures_are_those_that_were_stored(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import tables

    for stored in tables.PAGES:
        assert tables.filled(stored.read_text()) == stored.read_text(), stored.name
    assert tables.CONFIDENCE.read_text() == tables.confidence()
    assert (ROOT / "docs" / "convergence.md").read_text().count("<!-- end -->") == 2
    page = (ROOT / "docs" / "performance.md").read_text()
    stored = json.loads((ROOT / "benchmarks" / "performance.json").read_text())
    assert [name for name in stored if f"<!-- performance {name} -->\n|" not in page] == []
    assert "sort (the paper's way)" in page
    for row in json.loads((ROOT / "benchmarks" / "scale.json").read_text())["rows"]:
        assert row["counted"] == pytest.approx(row["foretold"], rel=0.05)
    for row in stored.get("overhead", {"rows": []})["rows"]:
        assert row["overhead"] <= row["limit"]
        assert row["same_last_loss"]
        assert row["measured_at"]
