"""Where files are kept that can be made or fetched again: data, pretrained weights, the script of a page."""

from __future__ import annotations

import os
from pathlib import Path

from stepscope.errors import UsageError


def cache_directory() -> Path:
    """The directory of the cache; it need not exist yet.

    ``$STEPSCOPE_CACHE``, else ``$XDG_CACHE_HOME/stepscope``, else ``~/.cache/stepscope``.
    """
    try:
        if chosen := os.environ.get("STEPSCOPE_CACHE"):
            return Path(chosen).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "stepscope"
    except RuntimeError as error:
        raise UsageError("there is no home directory for the cache: set STEPSCOPE_CACHE to a directory") from error
