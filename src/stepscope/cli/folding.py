"""Text within the width of a terminal, which alone would break words where they happen to end."""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap

_WIDEST = 120
_CONTINUED = " " * 12
"""What begins like this goes on with the line before."""

_UNBOUNDED = 1_000_000


def folded(line: str, width: int) -> str:
    """A line as several, where it is longer than the width: what follows hangs under the second column.

    A second column begins after two spaces, or after a colon. Where it begins in the right half, the rest of the line
    hangs a little deeper than the first column.

    Args:
        line: one line of text.
        width: in characters; longer words stay whole.

    Example:
        >>> print(folded("  Try:  a peak rate a third as large, then a tenth", 30))
          Try:  a peak rate a third as
                large, then a tenth
    """
    start = re.match(r"(\s*)(?:(?<=\s)\S.*?(?:  +|: +)(?=\S))?", line)
    assert start is not None  # it may be empty
    hang = start.end() if start.end() <= width / 2 else len(start[1]) + 4
    return textwrap.fill(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def folded_to_terminal(text: str) -> str:
    """Lines within the width of the terminal; as they are, where they are written to anything else."""
    width = shutil.get_terminal_size((_UNBOUNDED, 24)).columns
    return "\n".join(folded(line, width) for line in text.split("\n"))


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, fills paragraphs, and breaks no word."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.rstrip().split("\n"):
            is_prose = bool(line) and not line.startswith(" ")
            goes_on = is_prose and bool(lines) and bool(lines[-1]) and not lines[-1].startswith(" ")
            if goes_on or line.startswith(_CONTINUED):
                lines[-1] += f" {line.strip()}"
            else:
                lines.append(line)
        return "\n".join(indent + folded(line, min(width, _WIDEST)) for line in lines)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)
