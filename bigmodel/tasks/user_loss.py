"""A loss function in a user's file as a task: `config.task.name = FILE.py:NAME`.

    def smooth_l1(outputs_BxO, batch, beta=1.0):
      error_B = abs(outputs_BxO[:, 0] - batch["targets"])
      return jnp.where(error_B < beta, 0.5 * error_B**2 / beta, error_B - 0.5 * beta)

The function gets the model's outputs and the batch: its "inputs" and its "targets". It returns the loss of each example
[B], or of each token [B, T] where the model reads text. It may return `(loss, {name: metric})` with metrics of the same
shape, whose means are reported. Training minimises the mean loss. Further arguments have defaults and are fields of
`config.task`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp

from bigmodel import declarations, user_files
from bigmodel.config import Config, require
from bigmodel.declarations import OneOf, Value, field
from bigmodel.errors import UserError
from bigmodel.tasks.task import Apply, Measured, RouterFields, Rows, Task, Traced, Values, router_loss

WHERE = "config.task.name"
LossFunction: TypeAlias = Callable[..., "jax.Array | tuple[jax.Array, Mapping[str, jax.Array]]"]


@dataclasses.dataclass(frozen=True)
class ExampleFields:
  targets: str = field(
    "classes", "kind of the examples' targets: class labels or numbers", OneOf(("classes", "numbers"))
  )


@functools.cache
def user_loss(name: str, kind: str) -> "UserLoss":
  """Returns the task of a completed name, FILE.py:NAME@HASH, for a kind of data: "text" or "examples"."""
  function = user_files.load(name, WHERE)
  if not callable(function) or isinstance(function, type):
    raise UserError(f"{WHERE}: {name} is a {type(function).__name__}, not a function (outputs, batch) -> losses")
  return UserLoss(name, kind, cast(LossFunction, function))


@dataclasses.dataclass(frozen=True)
class UserLoss:
  """A user's loss with the interface of `registry.TaskModule`."""

  name: str
  DATA: str
  function: LossFunction

  @functools.cached_property
  def Fields(self) -> type:
    columns = [
      (name, type(default), field(default, f"argument of {self.function.__name__}"))
      for name, default in self._arguments().items()
    ]
    base = RouterFields if self.DATA == "text" else ExampleFields
    return dataclasses.make_dataclass("Fields", columns, bases=(base,), frozen=True)

  def check(self, config: Config) -> None:
    size = config.model.vocab if self.DATA == "text" else config.model.inputs and config.model.outputs
    if size:
      _checked(self, _Shapes.of(config), tuple(self._values_of(config).items()))

  def build(self, config: Config) -> Task:
    loss = functools.partial(self.losses, self._values_of(config))
    return Task(functools.partial(objective, loss), functools.partial(values, loss))

  def losses(self, fields: Mapping[str, Value], outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Values:
    """Returns the loss as `loss`, and the metrics; raises `UserError` for wrong shapes."""
    returned = self.function(outputs, batch, **fields)
    loss, metrics = returned if isinstance(returned, tuple) else (returned, {})
    require(isinstance(metrics, Mapping), f"{WHERE}: {self.name} returns metrics that are not a dictionary")
    require("loss" not in metrics, f"{WHERE}: {self.name} has a metric named 'loss'")
    axes, unit = (2, "token") if self.DATA == "text" else (1, "example")
    for name, value in {"loss": loss, **metrics}.items():
      shape, allowed = list(jnp.shape(value)), list(outputs.shape[:axes])
      require(
        shape == allowed,
        f"{WHERE}: {self.name}: its {name} has shape {shape}; it must be {allowed}, a number for each {unit}",
      )
    return {"loss": loss, **metrics}

  def _arguments(self) -> dict[str, Value]:
    """Returns the function's arguments after the first two, with their defaults."""
    parameters = list(inspect.signature(self.function).parameters.values())
    require(len(parameters) >= 2, f"{WHERE}: {self.name} must take (outputs, batch)")
    arguments = {}
    for one in parameters[2:]:
      plain = isinstance(one.default, bool | int | float | str | tuple)
      require(plain, f"{WHERE}: {self.name}: the argument {one.name!r} has no default that a config can hold")
      taken = one.name in ("name", "targets", *declarations.declared_in(RouterFields))
      require(not taken, f"{WHERE}: {self.name}: the argument {one.name!r} is a field of every task; rename it")
      arguments[one.name] = one.default
    return arguments

  def _values_of(self, config: Config) -> dict[str, Value]:
    return {name: config.task[name] for name in self._arguments()}


def split(rows: Rows) -> dict[str, jax.Array]:
  """Returns the inputs and targets of a batch: for tokens [B, T + 1], all but the last and all but the first."""
  return dict(rows) if isinstance(rows, Mapping) else {"inputs": rows[:, :-1], "targets": rows[:, 1:]}


def objective(
  loss: Callable[[jax.Array, Mapping[str, jax.Array]], Values], apply: Apply, rows: Rows, h: Traced, key: jax.Array
) -> tuple[jax.Array, Measured]:
  del key
  batch = split(rows)
  outputs, auxiliary = apply(batch["inputs"])
  means = {name: jnp.mean(value) for name, value in loss(outputs, batch).items()}
  return means["loss"] + router_loss(auxiliary, h), {**means, **auxiliary}


def values(
  loss: Callable[[jax.Array, Mapping[str, jax.Array]], Values], apply: Apply, rows: Rows, key: jax.Array
) -> Values:
  del key
  batch = split(rows)
  measured = loss(apply(batch["inputs"])[0], batch)
  return {name: value if value.ndim > 1 else value[:, None] for name, value in measured.items()}


@dataclasses.dataclass(frozen=True)
class _Shapes:
  """Shapes of the outputs and batches of a config's model, without the axis of rows."""

  outputs: tuple[int, ...]
  inputs: tuple[int, ...]
  targets: tuple[int, ...]
  numbers: bool

  @classmethod
  def of(cls, config: Config) -> "_Shapes":
    if config.data.kind == "text":
      T = config.data.context
      return cls((T, config.model.vocab), (T,), (T,), False)
    return cls((config.model.outputs,), tuple(config.model.inputs), (), config.task.targets == "numbers")


@functools.lru_cache(maxsize=256)
def _checked(task: UserLoss, shapes: _Shapes, fields: tuple[tuple[str, Value], ...]) -> None:
  """Raises `UserError` if the loss cannot be traced or has a wrong shape, by tracing it on two rows."""
  tokens = task.DATA == "text"
  batch = {
    "inputs": jax.ShapeDtypeStruct((2, *shapes.inputs), jnp.int32 if tokens else jnp.float32),
    "targets": jax.ShapeDtypeStruct((2, *shapes.targets), jnp.float32 if shapes.numbers else jnp.int32),
  }
  outputs = jax.ShapeDtypeStruct((2, *shapes.outputs), jnp.float32)
  try:
    jax.eval_shape(functools.partial(task.losses, dict(fields)), outputs, batch)
  except UserError:
    raise
  except Exception as error:
    raise UserError(
      f"{WHERE}: {task.name} fails on outputs of shape {[2, *shapes.outputs]}: {type(error).__name__}:"
      f" {' '.join(str(error).split())}"
    ) from error
