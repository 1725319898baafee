"""The command line: ``stepscope`` and what follows it.

A mistake of the user's is one line on standard error and exit status 2; an interruption is 130 and loses nothing.
"""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from stepscope.cli.arguments import parser
from stepscope.errors import UsageError

__all__ = ["main"]


_PLAIN = "stepscope.plain"
"""What a terminal's encoding lacks is written as something like it."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    likeness = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{HORIZONTAL ELLIPSIS}": "..."}
    return "".join(likeness.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(_PLAIN, _plain)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        arguments: without the program's name; ``None`` takes them from the process.

    Raises:
        SystemExit: always. Status 0 when done, 2 for a mistake in what was given, 130 when interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAIN)
    options = parser().parse_args(arguments)
    program = " ".join(["stepscope", options.command, *filter(None, [getattr(options, "experiment", None)])])
    try:
        options.run(options)
    except UsageError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
    except OSError as error:
        about = f" ({str(error.filename)[:60]})" if error.filename else ""
        print(f"{program}: error: {error.strerror or error}{about}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
