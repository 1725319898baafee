"""A namespace that losses reach their modules through, as a project's own registry of models."""

from typing import Any

TEACHERS: dict[str, Any] = {}

discriminator: Any = None
