"""Access to tasks by name, and to the task of a config."""

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
# A file of this folder that defines DATA is a task; the others are helpers.
TASKS = tuple(sorted(path.stem for path in _FOLDER.glob("*.py") if "\nDATA = " in path.read_text(encoding="utf-8")))


class TaskModule(Protocol):
  """The interface of a task: the names that its file defines."""

  DATA: str  # the kind of data that the task needs
  LOSS: str  # title of a plot axis with the loss and its unit
  Fields: type[Any]  # declares the fields of `config.task`

  def check(self, config: Config) -> None:
    """Raises `UserError` for invalid values that the declarations of fields cannot exclude."""
    ...

  def build(self, config: Config) -> Task: ...


@runtime_checkable
class Resolves(Protocol):
  """A task with fields that are filled in from the data."""

  def resolve(self, task: Config, facts: Facts) -> None:
    """Fills these fields in, in place."""
    ...


def task(name: str, kind: str = "") -> TaskModule:
  """Returns the task of a name: a file in the folder `tasks`, or a user's loss for this `kind` of data."""
  if user_files.is_reference(name):
    return cast(TaskModule, user_loss(user_files.complete(name, "config.task.name"), kind))
  require_choice("task.name", name, TASKS)
  return cast(TaskModule, importlib.import_module(f"bigmodel.tasks.{name}"))


def loss_title(name: str) -> str:
  """Returns the title of a plot axis with the loss of a task."""
  return "loss" if user_files.is_reference(name) else task(name).LOSS


def kind_of(name: str, tasks_of_family: Sequence[str]) -> str:
  """Returns the kind of data of a task; a user's loss takes the data of its model's family."""
  return task(tasks_of_family[0] if user_files.is_reference(name) else name).DATA


def declared(name: str, kind: str = "") -> dict[str, Field]:
  """Returns the fields of `config.task` of a task."""
  allowed = None if user_files.is_reference(name) else OneOf(TASKS)
  named = Field(name, "what the model is trained for: a file in the folder `tasks`, or FILE.py:NAME", allowed)
  return {"name": named, **declarations.declared_in(task(name, kind).Fields)}


def defaults(name: str, kind: str = "") -> dict[str, Value]:
  """Returns the default values of the fields of `config.task` of a task."""
  return {field: declaration.default for field, declaration in declared(name, kind).items()}


def check(config: Config) -> None:
  """Raises `UserError` if `config.task` is invalid or does not fit its data."""
  kind = config.data.kind
  module = task(config.task.name, kind)
  declarations.check("task", module.Fields, config.task)
  require(kind == module.DATA, f"config.data.kind: {config.task.name} needs {module.DATA}, not {kind}")
  module.check(config)


def resolve(task_config: Config, facts: Facts) -> None:
  """Fills in the fields of `config.task` that depend on the data, in place."""
  module = None if user_files.is_reference(task_config.name) else task(task_config.name)
  if isinstance(module, Resolves):
    module.resolve(task_config, facts)


def traced(config: Config) -> dict[str, float]:
  """Returns the numbers of `config.task` that may differ between runs of one program."""
  fields = declared(config.task.name, config.data.kind)
  return {name: config.task[name] for name, field in sorted(fields.items()) if field.use is TRACED}


def build(config: Config) -> Task:
  """Returns the task of a resolved config."""
  return task(config.task.name, config.data.kind).build(config)


def batch_shape(config: Config, rows: int) -> PyTree:
  """Returns the shapes of a batch with a number of rows."""
  if config.data.kind == "text":
    return jax.ShapeDtypeStruct((rows, config.data.context + 1), jnp.int32)
  dtype = jnp.float32 if has_numeric_targets(config.task) else jnp.int32
  return {
    "inputs": jax.ShapeDtypeStruct((rows, *config.model.inputs), jnp.float32),
    "targets": jax.ShapeDtypeStruct((rows,), dtype),
  }
