"""Tasks: what a batch means, the loss, the metrics; a file each.

A task's module has `fields()` and `check(config)` for its `config.task`, of which numbers with a
point are traced; DATA, the kind of data that it needs; `build(config)`, its `Task`.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel.config import Config, require, require_choice
from bigmodel.tasks.task import Apply, Measured, Task

__all__ = ["Apply", "Measured", "Task"]

TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification", "regression", "contrastive_divergence")


def task(name: str) -> Any:
  """The module of a task."""
  require_choice("task.name", name, TASKS)
  return importlib.import_module(f"bigmodel.tasks.{name}")


def fields(name: str) -> dict[str, Any]:
  """The fields of `config.task`, with defaults."""
  return {"name": name, **task(name).fields()}


def check(config: Config) -> None:
  module = task(config.task.name)
  for name, value in traced(config).items():
    require(value >= 0, f"config.task.{name}: {value} is negative")
  kind = config.data.kind
  require(kind == module.DATA, f"config.data.kind: {config.task.name} needs {module.DATA}, not {kind}")
  module.check(config)


def resolve(task_: Config, facts: dict[str, Any]) -> None:
  """Replaces what `config.task` leaves to the data, in place."""
  module = task(task_.name)
  if hasattr(module, "resolve"):
    module.resolve(task_, facts)


def traced(config: Config) -> dict[str, float]:
  """What of `config.task` may differ between runs of one program."""
  return {name: value for name, value in sorted(config.task.items()) if isinstance(value, float)}


def build(config: Config) -> Task:
  """The task of a resolved config."""
  return task(config.task.name).build(config)


def batch_shape(config: Config, rows: int) -> Any:
  """Shapes of a batch of so many rows, as the data give it and the task takes it."""
  if config.data.kind == "text":
    return jax.ShapeDtypeStruct((rows, config.data.context + 1), jnp.int32)
  kind = jnp.float32 if config.task.name == "regression" else jnp.int32
  return {
    "inputs": jax.ShapeDtypeStruct((rows, *config.model.inputs), jnp.float32),
    "targets": jax.ShapeDtypeStruct((rows,), kind),
  }
