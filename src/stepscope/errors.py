"""The two errors that a user can correct: each message is one line that says what was wrong and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class UsageError(ValueError):
    """A mistake in what stepscope was given. The command line prints it as one line and exits with status 2."""


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed; the message gives the command that installs it."""


def said(error: BaseException) -> str:
    r"""What an error says, in one line: the first of its text, or its name where it has none.

    Example:
        >>> said(ValueError("wrong\nin detail")), said(KeyboardInterrupt())
        ('wrong', 'KeyboardInterrupt')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional dependency, or says how to install it.

    Args:
        module: dotted name of the module, such as ``"altair"``.
        extra: the extra of this package that brings it, such as ``"report"``.

    Raises:
        MissingExtraError: the module is not installed.

    Example:
        >>> require("json", "report").loads("[1]")
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        raise MissingExtraError(f"{missing} is not installed: pip install 'stepscope[{extra}]'") from error
