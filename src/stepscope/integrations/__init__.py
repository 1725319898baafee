"""Thin adapters that put a `Probe` into training loops that other libraries run."""
