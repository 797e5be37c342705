"""Tasks: what a batch means, the loss, the metrics; a file each.

A task's module declares the fields of its `config.task` in `Fields`, and has `check(config)` for what declarations
cannot say; DATA, the kind of data that it needs; `build(config)`, its `Task`.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from bigmodel import declarations
from bigmodel.config import Config, require, require_choice
from bigmodel.declarations import TRACED, Field, OneOf, Value
from bigmodel.tasks.task import Apply, Measured, Task

__all__ = ["Apply", "Measured", "Task"]

TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification", "regression", "contrastive_divergence")


def task(name: str) -> Any:
  """The module of a task."""
  require_choice("task.name", name, TASKS)
  return importlib.import_module(f"bigmodel.tasks.{name}")


def declared(name: str) -> dict[str, Field]:
  """The fields of `config.task` of a task."""
  named = Field(name, "what the model is trained for: a file in the folder `tasks`", OneOf(TASKS))
  return {"name": named, **declarations.declared_in(task(name).Fields)}


def defaults(name: str) -> dict[str, Value]:
  """The fields of `config.task` of a task with their defaults."""
  return {field: one.default for field, one in declared(name).items()}


def check(config: Config) -> None:
  module = task(config.task.name)
  declarations.check("task", module.Fields, config.task)
  kind = config.data.kind
  require(kind == module.DATA, f"config.data.kind: {config.task.name} needs {module.DATA}, not {kind}")
  module.check(config)


def resolve(task_: Config, facts: dict[str, Any]) -> None:
  """Replaces what `config.task` leaves to the data, in place."""
  module = task(task_.name)
  if hasattr(module, "resolve"):
    module.resolve(task_, facts)


def traced(config: Config) -> dict[str, float]:
  """The numbers of `config.task` that may differ between runs of one program."""
  own = declared(config.task.name)
  return {name: config.task[name] for name, one in sorted(own.items()) if one.use is TRACED}


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
