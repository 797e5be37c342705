"""Tasks: the loss and the metrics of a batch. Each task is a file with the members of `registry.TaskModule`."""

from bigmodel.tasks.registry import (
  TASKS,
  batch_shape,
  build,
  check,
  declared,
  defaults,
  kind_of,
  loss_title,
  resolve,
  task,
  traced,
)
from bigmodel.tasks.task import Apply, Measured, Task

__all__ = [
  "TASKS",
  "Apply",
  "Measured",
  "Task",
  "batch_shape",
  "build",
  "check",
  "declared",
  "defaults",
  "kind_of",
  "loss_title",
  "resolve",
  "task",
  "traced",
]
