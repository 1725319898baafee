"""Tables as files: nothing in a name breaks a LaTeX document or a CSV file, and nothing is lost."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stepscope import UsageError
from stepscope.report import Table, print_tables, write_tables
from stepscope.report.tables import latex, tex, write_csv

NASTY = r"\&%$#_{}~^[]*<>|`'" + '"-−±×†‡…≥⁻⁵¹–\n\x1b\u2028 a1'
HOSTILE = [
    r"\input{/etc/passwd}", r"\\[red]", "*", "[3cm]x", "a & b", "100%", "$x^2$", "{", "}", "--><svg>", "~", "#1_2",
    "a\nb\u2028\x1b[31mc", "-0.5 − 1.2×10⁻⁵ ± 3 †",
]  # fmt: skip

# What LaTeX knows of our text: commands, and pieces of mathematics. Read backwards they are the characters again.
COMMANDS = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"', r"\textasciigrave{}": "`",
    r"\textendash{}": "–", r"\ldots{}": "…", r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_",
    r"\{": "{", r"\}": "}", "{[}": "[", "{]}": "]", "{*}": "*", "$-$": "−", r"$\pm$": "±", r"$\times$": "×",
    r"$\dagger$": "†", r"$\ddagger$": "‡", r"$\geq$": "≥", "-{}": "-",
}  # fmt: skip
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
TOKEN = re.compile("|".join([r"\$\^\{([-\d]+)\}\$", *map(re.escape, sorted(COMMANDS, key=len, reverse=True)), "."]))


def read(text):
    """The characters that LaTeX would print; fails on any special character that isn't part of what we know."""
    characters = []
    for found in TOKEN.finditer(text):
        if found[1]:
            characters.append(found[1].translate(RAISED))
        elif found[0] in COMMANDS:
            characters.append(COMMANDS[found[0]])
        else:
            assert found[0] not in '\\&%$#_{}~^[]*<>|`"', f"{found[0]!r} is not escaped in {text!r}"
            characters.append(found[0])
    return "".join(characters)


def seen(text):
    """What of a text can be seen: unprintable characters are question marks, a minus is a minus."""
    text = re.sub(r"(?<![\w.)\]])-(?=\d)|(?<=\de)-(?=\d)", "−", text)
    return "".join(character if character.isprintable() else "?" for character in text)


@given(st.text(st.sampled_from(NASTY), max_size=30) | st.text(max_size=10))
@example("--")
@example(r"\$&")
@example("{[}")
def test_every_special_character_is_escaped_and_can_be_read_back(text):
    # Symbols that NASTY doesn't have (ε, “, …) have commands of their own, which `read` doesn't know.
    text = "".join(character for character in text if character in NASTY or character.isalnum())
    text = text.translate(dict.fromkeys(map(ord, "αβεητρℓᵀ²³⁰⁴⁶⁷⁸⁹")))
    assert read(tex(text)) == seen(text)
    assert "--" not in tex(text), "LaTeX would print a dash"


def test_every_minus_of_a_cell_is_one():
    """Also behind a bracket, an ellipsis or an e; a hyphen within a word, or between numbers, is none."""
    assert tex("-0.161 [-0.276, -0.0471]").count("$-$") == 3
    assert tex("-0.02…-0.3").count("$-$") == 2
    assert tex("-7.4e-15").count("$-$") == 2
    assert tex("trajectory-2 gpt-4 1-2").count("$-$") == 0


@given(st.lists(st.text(st.sampled_from(NASTY), max_size=12), min_size=3, max_size=3))
def test_a_row_keeps_its_cells_on_one_line(cells):
    """A `&`, a `%` or an end of line in a name would move the cells; a `[` or `*` would be eaten by the row before."""
    lines = latex(Table("t", ("a", "b", "c"), (tuple(cells), ("x", "y", "z")), "n")).splitlines()
    assert len(lines) == 11
    row = lines[7]
    assert row.endswith(r" \\")
    assert len(re.split(r"(?<!\\)&", row)) == 3
    assert not re.match(r"\s*[\[*]", row)


def test_titles_and_notes_stay_comments():
    text = latex(Table("one\n\\end{document}", ("a",), (("x",),), "two\r\\evil\u2028"))
    lines = [line for line in text.splitlines() if "document" in line or "evil" in line]
    assert len(lines) == 2
    assert all(line.startswith("% ") for line in lines)


def test_columns_of_words_stand_on_the_left():
    table = Table("t", ("name", "loss", "verdict"), (("sgd", "diverged", "faster"), ("x", "1.0", "slower")), "")
    assert r"\begin{tabular}{lrl}" in latex(table)
    table = Table("t", ("name", "loss"), (("sgd", "diverged"), ("x", "1.0"), ("y", "2.0")), "")
    assert r"\begin{tabular}{lr}" in latex(table)


@pytest.mark.skipif(not (shutil.which("pdflatex") or shutil.which("tectonic")), reason="no LaTeX is installed")
def test_a_table_of_hostile_names_compiles(tmp_path):
    rows = tuple((name, name, "1.0") for name in HOSTILE)
    body = latex(Table("t", ("a", "b", "c"), rows, "n"))
    preamble = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,textcomp}\begin{document}"
    (tmp_path / "x.tex").write_text(f"{preamble}\n{body}\\end{{document}}\n")
    command = ["pdflatex", "-halt-on-error", "x.tex"] if shutil.which("pdflatex") else ["tectonic", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=2))
@example(['a"b,c\nd', "\r"])
@settings(max_examples=25)  # each is a file that is flushed to the disk
def test_csv_gives_back_what_was_written(tmp_path_factory, cells):
    path = write_csv(tmp_path_factory.mktemp("csv") / "t.csv", ("a", "b"), [tuple(cells), (1.5, None)])
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b"], cells, ["1.5", ""]]


def test_tables_are_written_twice(tmp_path):
    table = Table("Losses", ("optimizer", "loss"), (("sgd clip 10%", "−0.5 ± 0.1"),), "Means.")
    written = write_tables({"losses": table, "other": table}, tmp_path / "tables")
    assert [path.name for path in written] == ["losses.csv", "losses.tex", "other.csv", "other.tex"]
    assert written[0].read_text() == "optimizer,loss\nsgd clip 10%,−0.5 ± 0.1\n"
    assert r"sgd clip 10\% & $-$0.5 $\pm$ 0.1 \\" in written[1].read_text()


def test_a_lone_surrogate_is_written_as_a_question_mark(tmp_path):
    written = write_tables({"t": Table("\ud800", ("\ud800",), (("\ud800",),), "")}, tmp_path)
    assert [path.read_bytes().count(b"?") for path in written] == [2, 3]


def test_a_table_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "t.tex").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        write_tables({"t": Table("t", ("a",), (("x",),), "")}, tmp_path)


def test_a_word_without_room_breaks_no_other(capsys):
    """In a terminal of 80 columns, which doesn't hold all words of the row whole."""
    row = ("C11", "Coordinates of a matrix are correlated", "not measured", "holds", "z" * 60)
    console = pytest.importorskip("rich.console").Console(width=80)
    print_tables([Table("", ("claim", "statement", "pretrained", "random", "statistic"), (row,), "")], console)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("claim", "correlated", "measured", "holds", "pretrained", "zzzzzzzzzzzz"))
    assert printed.count("z") == 60
