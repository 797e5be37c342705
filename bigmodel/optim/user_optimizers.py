"""Optimizers that users define in files of their own and name as FILE.py:NAME.

Such a function is what `definitions` describes. Floats among its defaults are traced; whole numbers, booleans, strings
and tuples are compiled in. What is wrong with it is reported before anything is compiled.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import optax

from bigmodel import declarations, user_files
from bigmodel.config import Config, nearest, require
from bigmodel.declarations import TRACED, Value
from bigmodel.errors import UserError
from bigmodel.models.layers.roles import Label, Labels, Role
from bigmodel.optim import optimizers
from bigmodel.optim.definitions import SUPPLIED, Function, Optimizer, optimizer
from bigmodel.optim.fields import FIELDS
from bigmodel.types import Params, PyTree

WHERE = "config.optim.name"


def title(name: str) -> str:
  """The name of an optimizer in messages: of a user's its file's name without folders, and its name."""
  return Path(name).name.partition("@")[0]


def load(name: str) -> Optimizer:
  """The optimizer that FILE.py:NAME refers to; refuses what is not the definition of one."""
  return _load(user_files.complete(name, WHERE))


@functools.cache
def _load(name: str) -> Optimizer:
  value = user_files.load(name, WHERE)
  where = f"{WHERE}: {title(name)}"
  if not isinstance(value, Optimizer):
    if not callable(value) or isinstance(value, type):
      raise UserError(f"{where} is {value!r}, and not a function that returns an optax.GradientTransformation")
    value = optimizer()(cast(Function, value))
  for parameter in inspect.signature(value.function).parameters.values():
    _check_parameter(parameter, value, where)
  return dataclasses.replace(value, function=_with_clear_errors(value.function, where))


def _check_parameter(parameter: inspect.Parameter, optimizer: Optimizer, where: str) -> None:
  """Refuses a parameter that is neither supplied, nor a field that exists, nor one that the optimizer declares."""
  name, has_default = parameter.name, parameter.default is not parameter.empty
  where = f"{where}: its parameter {name!r}"
  readable = (*SUPPLIED, *optimizers.SPECIFIC)
  require(
    parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY),
    f"{where} has no name by which a config could set it; write every parameter out",
  )
  if name in ("labels", "learning_rate"):
    require(not has_default, f"{where} has a default, which would have no effect: each step supplies it")
  elif name in FIELDS:
    default = FIELDS[name].default
    require(name in readable, f"{where} is a field of config.optim that is applied already; rename or remove it")
    require(
      not has_default, f"{where} has a default, but is a field of every config, whose default is {default!r}; remove it"
    )
  elif name not in optimizer.fields:
    require(
      not has_default,
      f"{where} has the default {parameter.default!r}; it must be a float, int, bool, str or tuple of these",
    )
    require(
      False,
      f"{where} has no default and is no field of config.optim{nearest(name, readable)}; give it a default, or"
      f" use one of {', '.join(readable)}",
    )


def _with_clear_errors(function: Function, where: str) -> Function:
  """The function and its transformation, whose exceptions become errors of the user's definition."""

  def guarded(call: Callable[..., PyTree], what: str) -> Callable[..., PyTree]:
    @functools.wraps(call)
    def wrapper(*arguments: PyTree, **keywords: PyTree) -> PyTree:
      try:
        return call(*arguments, **keywords)
      except UserError:
        raise
      except jax.errors.ConcretizationTypeError as error:
        raise UserError(
          f"{where}: {what} needs the value of a float while it is traced; floats can't decide what Python does (if,"
          " float(), range()): use jnp.where, or a default that is no float"
        ) from error
      except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{where}: {what} fails: {type(error).__name__}: {first}") from error

    return wrapper

  @functools.wraps(function)
  def build(**values: object) -> optax.GradientTransformation:
    made = guarded(function, "the function")(**values)
    require(
      isinstance(made, optax.GradientTransformation),
      f"{where} returns {type(made).__name__}, and not an optax.GradientTransformation",
    )
    made = optax.with_extra_args_support(made)
    return optax.GradientTransformationExtraArgs(
      guarded(made.init, "init of its transformation"), guarded(made.update, "update of its transformation")
    )

  return build


def check(optim: Config) -> None:
  """Refuses a user's optimizer that would not train, and values of its fields that are not allowed."""
  user_optimizer = load(optim.name)
  values = {name: optim.get(name, field.default) for name, field in user_optimizer.fields.items()}
  for name, value in values.items():
    kind = type(user_optimizer.fields[name].default)
    require(type(value) is kind, f"config.optim.{name}: {value!r} is not of type {kind.__name__}")
  declarations.check_fields("optim", user_optimizer.fields, values)
  compiled = {name: optim.get(name, field.default) for name, field in _fields(user_optimizer, traced=False).items()}
  _try(user_files.complete(optim.name, WHERE), tuple(compiled.items()))


def _fields(user_optimizer: Optimizer, traced: bool) -> dict[str, declarations.Field]:
  """The fields that the function reads, of those that are traced or of those that are compiled in."""
  fields = FIELDS | dict(user_optimizer.fields)
  return {
    name: one for name, one in fields.items() if name in user_optimizer.parameters and (one.use is TRACED) == traced
  }


@functools.cache
def _try(name: str, compiled: tuple[tuple[str, Value], ...]) -> None:
  """Takes a few steps on a small quadratic loss, and refuses what could not train a model."""
  where, user_optimizer = f"{WHERE}: {title(name)}", load(name)
  params = {"w": jnp.linspace(0.5, 1.5, 12).reshape(4, 3), "b": jnp.linspace(-1.5, -0.5, 3)}
  labels = Labels((("w", Label(("inputs", "outputs"), Role.HIDDEN)), ("b", Label(("outputs",), Role.BIAS))))
  extra = {"obj_fn": _quadratic} if user_optimizer.second_order else {}

  def steps(numbers: Mapping[str, jax.Array]) -> tuple[PyTree, jax.Array]:
    """The first state, and the products of gradients and updates of some steps."""
    transformation = user_optimizer.build({"labels": labels, **dict(compiled), **numbers})
    first = state = transformation.init(params)
    here, products = params, []
    for _ in range(3):
      grads = jax.grad(_quadratic)(here)
      updates, after = transformation.update(grads, state, here, **extra)
      require(_shapes(updates) == _shapes(params), f"{where}: its updates differ from parameters in shapes or types")
      require(_shapes(after) == _shapes(state), f"{where}: its state changes its shapes or types from step to step")
      state = after
      here = jax.tree.map(lambda p, u: p + (u if user_optimizer.sets_rate else -0.01 * u), here, updates)
      products.append(optax.tree.vdot(grads, updates))
    return first, jnp.stack(products)

  defaults = {name: float(field.default) for name, field in _fields(user_optimizer, traced=True).items()}  # type: ignore
  numbers = {name: jnp.float32(value) for name, value in ({"learning_rate": 0.01} | defaults).items()}
  others = {name: jnp.float32(0.75 * value + 0.0625) for name, value in numbers.items()}
  run = jax.jit(steps)
  (first, products), (other_first, _) = run(numbers), run(others)
  same = jax.tree.map(lambda a, b: bool((a == b).all()), first, other_first)
  require(
    all(jax.tree.leaves(same)),
    f"{where}: its initial state depends on its numbers, which may differ between runs of one program; leave them out"
    " of the state (no optax.inject_hyperparams)",
  )
  total = float(jnp.sum(products))
  if user_optimizer.sets_rate:
    require(
      not total > 0,
      f"{where}: its updates go uphill; with the parameter 'learning_rate' they are added to the parameters",
    )
  else:
    require(
      not total < 0,
      f"{where}: its updates go uphill; without the parameter 'learning_rate' it returns a direction, as"
      " optax.scale_by_adam() does, which is multiplied by the negative learning rate",
    )


def _quadratic(params: Params) -> jax.Array:
  return sum((jnp.sum(x**2) for x in jax.tree.leaves(params)), jnp.float32(0))


def _shapes(tree: PyTree) -> PyTree:
  leaves, structure = jax.tree.flatten(tree)
  return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]
