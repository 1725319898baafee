"""For the reference: an ``Example:`` of a docstring is a session of Python, as an ``Examples:`` would be."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Sessions(griffe.Extension):
    """Renames the section where the docstring is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Each module, class, function and attribute, once."""
        if obj.docstring is not None and ">>>" in obj.docstring.value:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
