"""Tables as files: CSV for spreadsheets and programs, LaTeX for a paper."""

from __future__ import annotations

import csv
import functools
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stepscope.runs import write_atomically

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: what it shows.
        headers: of the columns; the first column names the rows.
        rows: as many cells as headers.
        note: how to read it.
        name: of its files, without the suffix.
        on_page: whether a page shows it, or only links to its files.
        marks: ``{(name of a row, header): CSS classes}`` of the cells that stand out on a page.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    name: str = ""
    on_page: bool = True
    marks: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @functools.cached_property
    def wordy(self) -> tuple[bool, ...]:
        """Of each column, whether most of its cells are words: those stand on the left, numbers on the right.

        Example:
            >>> Table("", ("name", "loss", "verdict"), (("a b", "diverged", "faster"), ("c", "1", "slower")), "").wordy
            (True, False, True)
        """
        columns = [[row[place] for row in self.rows] for place in range(len(self.headers))]
        words = [sum(re.search(r"[^\W\d_]{3}", cell) is not None for cell in cells) for cells in columns]
        return tuple(not place or 2 * count > len(self.rows) for place, count in enumerate(words))


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    # In LaTeX's oldest font encoding, its default, these are other characters.
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    # At the beginning of a row they would be arguments of the `\\` before it.
    "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≥": r"$\geq$", "≤": r"$\leq$", "∞": r"$\infty$",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "↓": r"$\downarrow$", "→": r"$\rightarrow$", "≈": r"$\approx$",
    "α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\varepsilon$", "η": r"$\eta$", "τ": r"$\tau$", "ρ": r"$\rho$",
    "ℓ": r"$\ell$", "∇": r"$\nabla$", "√": r"$\surd$", "‖": r"$\Vert$", "ᵀ": r"$^{\top}$",
    "…": r"\ldots{}", "–": r"\textendash{}", "—": r"\textemdash{}", "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}", "‘": r"\textquoteleft{}", "’": r"\textquoteright{}", "§": r"\S{}", "\u202f": r"\,",
    "\xa0": "~",
}  # fmt: skip
_RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def tex(text: str) -> str:
    r"""Text as LaTeX that prints it, whatever is in it.

    Letters of other alphabets are left as they are: those beyond Latin need LuaLaTeX or XeLaTeX and a font that has
    them. What can't be printed becomes a question mark.

    Example:
        >>> tex("50% of_all ± 1.2×10⁻⁵")
        '50\\% of\\_all $\\pm$ 1.2$\\times$10$^{-5}$'
    """
    signed = re.sub(r"(?<![\w.)\]])-(?=\d)|(?<=\de)-(?=\d)", "−", text)
    return re.sub(r"⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+|⁻|--+|.", _in_tex, signed, flags=re.DOTALL)


def _in_tex(match: re.Match[str]) -> str:
    characters = match[0]
    if characters[0] in "⁻⁰¹²³⁴⁵⁶⁷⁸⁹":
        return f"$^{{{characters.translate(_RAISED)}}}$"
    if characters.startswith("--"):
        return "-{}" * (len(characters) - 1) + "-"  # several would join to a dash
    return _TEX.get(characters, characters if characters.isprintable() else "?")


def latex(table: Table) -> str:
    r"""A table as a `tabular` with the rules of the package booktabs, to be put into a `table` of a paper.

    Example:
        >>> print(latex(Table("Losses", ("optimizer", "loss"), (("sgd clip 10%", "−0.5"),), "Means.")))
        % Losses
        % Means.
        % Needs \usepackage{booktabs,textcomp} and, with pdfLaTeX, \usepackage[T1]{fontenc}.
        \begin{tabular}{lr}
        \toprule
        optimizer & loss \\
        \midrule
        sgd clip 10\% & $-$0.5 \\
        \bottomrule
        \end{tabular}
        <BLANKLINE>
    """
    lines = [
        f"% {tex(table.title)}",
        f"% {tex(table.note)}",
        r"% Needs \usepackage{booktabs,textcomp} and, with pdfLaTeX, \usepackage[T1]{fontenc}.",
        rf"\begin{{tabular}}{{{''.join('l' if wordy else 'r' for wordy in table.wordy)}}}",
        r"\toprule",
        _tex_row(table.headers),
        r"\midrule",
        *map(_tex_row, table.rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _tex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def write_csv(path: str | os.PathLike[str], headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Path:
    """Writes rows as CSV in UTF-8; None is an empty cell.

    Raises:
        UsageError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # with its default, \r\n, any end of line in a cell is quoted
    writer.writerow(headers)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="replace"))
    return Path(path)


def write_tables(tables: Mapping[str, Table], directory: str | os.PathLike[str]) -> list[Path]:
    """Writes each table twice: ``NAME.csv`` with its cells as they are shown, and ``NAME.tex``.

    Args:
        tables: ``{NAME: table}``; names are file names.
        directory: created if missing.

    Returns:
        The files.

    Raises:
        UsageError: a file cannot be written.
    """
    written = []
    for name, table in tables.items():
        written.append(write_csv(Path(directory) / f"{name}.csv", table.headers, table.rows))
        target = Path(directory) / f"{name}.tex"
        write_atomically(target, latex(table).encode(errors="replace"))
        written.append(target)
    return written
