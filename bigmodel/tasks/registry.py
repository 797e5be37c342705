"""Tasks by name, and what the rest of the package asks about the task of a config."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp

from bigmodel import declarations, user_files
from bigmodel.config import Config, require, require_choice
from bigmodel.data.fields import has_numeric_targets
from bigmodel.declarations import TRACED, Field, OneOf, Value
from bigmodel.models.registry.protocol import Facts
from bigmodel.tasks.task import Task
from bigmodel.tasks.user_loss import user_loss
from bigmodel.types import PyTree

_FOLDER = Path(__file__).parent
# The files of this folder that define DATA; the others are helpers.
TASKS = tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if "\nDATA = " in path.read_text(encoding="utf-8")))


class TaskModule(Protocol):
  """What the file of a task defines."""

  DATA: str  # the kind of data that it needs
  LOSS: str  # the title of an axis with its loss, including the unit
  Fields: type[Any]  # declares the fields of `config.task`

  def check(self, config: Config) -> None:
    """Refuses what declarations of fields cannot express."""
    ...

  def build(self, config: Config) -> Task: ...


@runtime_checkable
class Resolves(Protocol):
  """A task that leaves fields to the data."""

  def resolve(self, task: Config, facts: Facts) -> None:
    """Replaces them, in place."""
    ...


def task(name: str, kind: str = "") -> TaskModule:
  """The task of this name: a file in the folder `tasks`, or a user's loss, which is for any `kind` of data."""
  if user_files.is_reference(name):
    return cast(TaskModule, user_loss(user_files.complete(name, "config.task.name"), kind))
  require_choice("task.name", name, TASKS)
  return cast(TaskModule, importlib.import_module(f"bigmodel.tasks.{name}"))


def loss_title(name: str) -> str:
  """The title of an axis with the loss of a task."""
  return "loss" if user_files.is_reference(name) else task(name).LOSS


def kind_of(name: str, tasks_of_family: Sequence[str]) -> str:
  """The kind of data of a task; a user's loss takes those that the tasks of its model's family take."""
  return task(tasks_of_family[0] if user_files.is_reference(name) else name).DATA


def declared(name: str, kind: str = "") -> dict[str, Field]:
  """The fields of `config.task` of a task."""
  allowed = None if user_files.is_reference(name) else OneOf(TASKS)
  named = Field(name, "what the model is trained for: a file in the folder `tasks`, or FILE.py:NAME", allowed)
  return {"name": named, **declarations.declared_in(task(name, kind).Fields)}


def defaults(name: str, kind: str = "") -> dict[str, Value]:
  """The fields of `config.task` of a task with their defaults."""
  return {field: declaration.default for field, declaration in declared(name, kind).items()}


def check(config: Config) -> None:
  """Refuses a `config.task` that cannot be trained for, or not on its data."""
  kind = config.data.kind
  module = task(config.task.name, kind)
  declarations.check("task", module.Fields, config.task)
  require(kind == module.DATA, f"config.data.kind: {config.task.name} needs {module.DATA}, not {kind}")
  module.check(config)


def resolve(task_config: Config, facts: Facts) -> None:
  """Replaces what `config.task` leaves to the data, in place."""
  module = None if user_files.is_reference(task_config.name) else task(task_config.name)
  if isinstance(module, Resolves):
    module.resolve(task_config, facts)


def traced(config: Config) -> dict[str, float]:
  """The numbers of `config.task` that may differ between runs of one program."""
  fields = declared(config.task.name, config.data.kind)
  return {name: config.task[name] for name, field in sorted(fields.items()) if field.use is TRACED}


def build(config: Config) -> Task:
  """The task of a resolved config."""
  return task(config.task.name, config.data.kind).build(config)


def batch_shape(config: Config, rows: int) -> PyTree:
  """Shapes of a batch of so many rows, as the data give it and the task takes it."""
  if config.data.kind == "text":
    return jax.ShapeDtypeStruct((rows, config.data.context + 1), jnp.int32)
  dtype = jnp.float32 if has_numeric_targets(config.task) else jnp.int32
  return {
    "inputs": jax.ShapeDtypeStruct((rows, *config.model.inputs), jnp.float32),
    "targets": jax.ShapeDtypeStruct((rows,), dtype),
  }
