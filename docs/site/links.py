"""A hook of the documentation's site: files of the repository that are no pages are named, and not linked."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?!https?:|#)(\.\./[^)]+|reproduction/[^)]*|calibration/[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page, as MkDocs hands it over."""
    return _OUTSIDE.sub(r"\1", markdown)
