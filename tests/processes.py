"""Processes that a test started, and theirs."""

import pytest


def children_of(pid):
    """The process numbers of its children; skips the test where they can't be looked up."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
            return [int(child) for child in file.read().split()]
    except FileNotFoundError:
        pytest.skip("needs /proc")
