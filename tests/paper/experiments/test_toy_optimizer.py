"""An optimizer is one row: with it alone it is measured, trained, and stands in the tables and on the page."""

import re

import pytest
import torch

from made_data import data_of
from stepscope.cli import main
from stepscope.paper.experiments.compared_optimizers import RULES, Rule, contenders, demonstrated, measured_directions
from stepscope.paper.experiments.run_files import read

pytest.importorskip("altair")


class Backwards(torch.optim.Optimizer):
    """Ascends."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=group["lr"])


@pytest.fixture
def toy(monkeypatch):
    rule = Rule(lambda parameters, lr: Backwards(parameters, lr), lr=1e-2, first_lr=1e-2, original="sgd")
    monkeypatch.setitem(RULES, "toy", rule)
    for name in set(RULES) - {"sgd", "toy"}:  # the others take time, and are tested elsewhere
        monkeypatch.delitem(RULES, name)


def test_a_row_is_all_that_an_optimizer_needs(toy, tmp_path, capsys):
    assert "toy" in measured_directions()
    assert "toy" in demonstrated()
    assert all("toy" in contenders(settings) for settings in ("text", "code", "ours"))
    source, out = data_of("translation", tmp_path), tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["run", "trajectory", "--scale", "smoke", "--source", str(source), "--out", str(out)])
    assert stop.value.code == 0
    assert "\n toy " in capsys.readouterr().out
    _, records = read(out)
    toys = [record for record in records if record.direction == "toy"]
    assert len(toys) == 4
    assert all(record.slope > 0 for record in toys), "it ascends"
    page = (out / "report.html").read_text()
    assert "toy" in re.search(r'id="panels">(.*?)</script>', page, re.DOTALL)[1]
