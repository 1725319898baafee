"""What `records` writes with: values that JSON can hold, files that are whole or absent, versions."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError


def plain(value: Any, name: str = "value") -> Any:
    """Turns a value into what JSON can hold: torch and numpy scalars become numbers, NaN becomes None.

    So do infinities: JSON has neither.

    Args:
        value: any nesting of mappings with string keys, sequences, dataclasses, arrays and scalars.
        name: what the value is called in the error.

    Raises:
        UsageError: something in it has no JSON form.

    Example:
        >>> plain({"loss": float("nan"), "steps": (1, 2)})
        {'loss': None, 'steps': [1, 2]}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{name}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise UsageError(f"{name} cannot be written as JSON: its key {wrong[0]!r} is not a string")
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if callable(getattr(value, "tolist", None)):  # torch tensors, numpy arrays and numpy scalars
        listed = value.tolist()
        if isinstance(listed, (list, int, float, str)):
            return plain(listed, name)
    raise UsageError(f"{name} cannot be written as JSON: it is a {type(value).__name__}")


def versions() -> dict[str, Any]:
    """What a measurement depends on besides its configuration: versions and the kind of machine.

    Returns:
        Versions of stepscope, python, torch and, where installed, numpy and transformers; the platform, the
        number of processors and of torch's threads. Nothing that names a host, a user or a path.
    """
    import torch

    found: dict[str, Any] = {"stepscope": _version("stepscope") or "not installed"}
    found["python"] = platform.python_version()
    found["torch"] = str(torch.__version__)
    for package in ("numpy", "transformers"):
        if version := _version(package):
            found[package] = version
    found["platform"] = f"{platform.system()} {platform.machine()}"
    found["cpus"] = os.cpu_count()
    found["torch_threads"] = torch.get_num_threads()
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file whole or not at all: a reader sees the old content or the new, also after a crash.

    Args:
        path: the file; missing parent directories are created.
        content: all of its bytes.

    Raises:
        UsageError: the file cannot be written.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        # Beside the target, since a rename is atomic only within a file system; not mkstemp, whose files only
        # their owner can read.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_directory(target.parent)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name, or no name
        if temporary is not None:
            with contextlib.suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {show(target)}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a system call failed, without the path that the message around it gives already.

    Example:
        >>> reason(PermissionError(13, "Permission denied", "/root"))
        'Permission denied'
    """
    return str(getattr(error, "strerror", None) or error)


def _sync_directory(path: Path) -> None:
    """Makes a rename in a directory durable, where the platform can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def show(path: str | os.PathLike[str]) -> str:
    """A path as it can stand in a one-line message."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


BRIEF = 60
"""Characters of a value that an error shows."""


def brief(value: Any) -> str:
    """A value of JSON as an error shows it."""
    text = json.dumps(value)
    return text if len(text) <= BRIEF else f"{text[: BRIEF - 3]}..."


def lines_of(content: bytes) -> Iterator[bytes]:
    r"""Cuts at ``\n`` alone: names may hold U+2028 and the other ends of line that `str.splitlines` knows."""
    start = 0
    while start < len(content):
        end = content.find(b"\n", start) + 1 or len(content)
        yield content[start:end]
        start = end


def encode(value: Any) -> bytes:
    """One line of JSON in UTF-8, without its end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 form, but JSON has an escape for it
        return json.dumps(value, allow_nan=False).encode()
