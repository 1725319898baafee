"""No word is broken by a terminal of 80 columns, and nothing is folded where no terminal is."""

from __future__ import annotations

import pytest

from stepscope.cli.arguments import parser
from stepscope.cli.folding import folded, folded_to_terminal

LONG = "  Evidence: a step lowered the loss of its own batch by 0.956 of what its gradient predicts (80% interval)"


def test_what_follows_hangs_under_its_column():
    lines = folded(LONG, 40).split("\n")
    assert len(lines) > 2
    assert all(len(line) <= 40 for line in lines)
    assert {line[:12] for line in lines[1:]} == {" " * 12}
    assert " ".join(" ".join(lines).split()) == " ".join(LONG.split())
    assert folded("  a command of many words         what it does, at length", 30).split("\n")[1].startswith("      ")


def test_a_word_is_never_broken():
    path = "/a-very-long/path-of-many-words/" * 5
    assert path in folded(f"Open this page: {path}", 40).split()


def test_what_is_no_terminal_gets_its_lines_whole(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert folded_to_terminal(f"{LONG}\n{LONG}") == f"{LONG}\n{LONG}"
    monkeypatch.setenv("COLUMNS", "80")
    assert all(len(line) <= 80 for line in folded_to_terminal(LONG).split("\n"))


@pytest.mark.parametrize("command", ["demo", "report", "findings", "summary", "figures", "compare", "reproduce", "run"])
def test_help_has_lines_of_eighty_letters_and_its_examples_whole(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    printed = capsys.readouterr().out
    assert [line for line in printed.split("\n") if len(line) > 80] == []
    assert command == "run" or f"  stepscope {command}" in printed
