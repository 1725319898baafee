"""Drawn combinations of model, loss, optimizer, batch and loop: each is trained with and without the probe.

`run.py` is the command; `tests/test_drawn.py` runs a small draw.
"""
