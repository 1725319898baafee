"""What users named, made safe for a script and for XML; for a terminal: `stepscope.shown`."""

from __future__ import annotations

import json
import re
from typing import Any


def script_json(value: Any) -> str:
    r"""JSON that can stand inside a `<script>` element, whatever is in its strings.

    Example:
        >>> script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    # ASCII, so U+2028 and lone surrogates are escapes too.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def xml_text(value: Any) -> Any:
    r"""A specification whose strings hold only what XML can: on anything else the converter ends the whole process.

    Example:
        >>> xml_text({"title": ["a\x1bb", 1]}) == {"title": ["a\ufffdb", 1]}
        True
    """
    if isinstance(value, str):
        return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {key: xml_text(item) for key, item in value.items()}
    return [xml_text(item) for item in value] if isinstance(value, list | tuple) else value
