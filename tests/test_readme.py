"""The README's code runs as it stands there."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import stepscope

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)


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
    exec(BLOCKS[0], names)
    assert capsys.readouterr().out.count("Measurement(") == len(loader)
    exec(BLOCKS[1].replace("every=100, max_overhead=0.05", "every=1, max_overhead=None"), names)
    assert len(names["probe"].records) == 4 * len(loader)
    assert (tmp_path / "report.html").exists()
    exec(BLOCKS[2], names)
    assert set(names["directions"]) == {"sgd", "adam"}
    exec(BLOCKS[3], names)
