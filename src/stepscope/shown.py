"""How numbers, names and small tables are shown where nothing else is installed: in Python, a terminal, a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

NOTHING = "–"
"""What stands where nothing was measured."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_number(value: float | None) -> str:
    """A number for reading: three significant digits, a true minus sign, powers of ten written out.

    Example:
        >>> format_number(-0.0000123), format_number(41.26), format_number(None)
        ('−1.23×10⁻⁵', '41.3', '–')
    """
    if value is None:
        return NOTHING
    mantissa, _, exponent = f"{value:#.3g}".partition("e")
    mantissa = mantissa.removesuffix(".")
    power = f"×10{str(int(exponent)).translate(_SUPERSCRIPTS)}" if exponent else ""
    return mantissa.replace("-", "−") + power


def printable(name: str) -> str:
    """A user's name without what a terminal would act on."""
    return "".join(character if character.isprintable() else "\ufffd" for character in name)


def shortened(text: str, most: int = 200) -> str:
    """A text, or its beginning where a user gave a thing ten thousand letters.

    Example:
        >>> shortened("a model", 5), shortened("Net", 5)
        ('a mo…', 'Net')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def brief(thing: object, names: Iterable[str]) -> str:
    """An object with some of its attributes, numbers to four digits, those that are ``None`` left out.

    Example:
        >>> brief(3 + 4.00001j, ["real", "imag"])
        'complex(real=3, imag=4)'
    """
    values = {name: getattr(thing, name) for name in names}
    told = ", ".join(f"{name}={_rounded(value)}" for name, value in values.items() if value is not None)
    return f"{type(thing).__name__}({told})"


def _rounded(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_rounded, value))})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in characters: the first column on the left, numbers on the right.

    Example:
        >>> print(text_table(("direction", "sharpness"), [("adam", "0.09"), ("sgd", "1.00")]))
        direction  sharpness
        adam            0.09
        sgd             1.00
    """
    cells = [[printable(cell) for cell in row] for row in (headers, *rows)]
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        aligned = (cell.rjust(size) for cell, size in zip(others, sizes[1:], strict=True))
        lines.append("  ".join((first.ljust(sizes[0]), *aligned)).rstrip())
    return "\n".join(lines)


def html_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a notebook, with headers or without; whatever is in a cell is text.

    Example:
        >>> html_table(("a", "b"), [("<b>", "1")])
        '<table><tr><th>a</th><th>b</th></tr><tr><th>&lt;b&gt;</th><td>1</td></tr></table>'
    """
    head = f"<tr>{''.join(f'<th>{html.escape(header)}</th>' for header in headers)}</tr>" if headers else ""
    body = (
        f"<tr><th>{html.escape(first)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in rows
    )
    return f"<table>{head}{''.join(body)}</table>"
