"""Tasks: a model, its data and its loss, at several sizes."""

from stepscope.paper.tasks.task import Batch, Source, Task

__all__ = ["Batch", "Source", "Task"]
