"""Tasks: a model, its data and its loss, at several sizes."""

from stepscope.tasks.task import Batch, Source, Task

__all__ = ["Batch", "Source", "Task"]
