"""Access to families of models by name, and to the model of a config."""

import functools
import importlib
import pkgutil
from pathlib import Path
from typing import Unpack, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel import declarations, user_files
from bigmodel.accounting import Counts
from bigmodel.config import Config, flatten, require, require_choice
from bigmodel.declarations import Field, OneOf
from bigmodel.models.layers.roles import Labels, dotted, labels_of
from bigmodel.models.registry import user_module
from bigmodel.models.registry.protocol import Facts, Family, Model, ModelShape, Supplied
from bigmodel.types import Params

_FOLDER = Path(__file__).parents[1]
# Each file in the folder `models` is a family; its folders are not.
FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules([str(_FOLDER)]) if not module.ispkg))
# Number of models whose abstract parameters are cached, because tracing a model is slow.
CACHED = 256
_ABSTRACT: dict[tuple[object, str], Params] = {}


def family(name: str) -> Family:
  """Returns the family of a name: a file in the folder `models`, or a Flax module in a user's file, FILE.py:NAME."""
  if user_files.is_reference(name):
    return cast(Family, user_module.family(user_files.complete(name, "config.model.family")))
  require_choice("model.family", name, FAMILIES)
  return cast(Family, importlib.import_module(f"bigmodel.models.{name}"))


def declared(name: str) -> dict[str, Field]:
  """Returns the fields of `config.model` of a family."""
  allowed = None if user_files.is_reference(name) else OneOf(FAMILIES)
  named = Field(name, "family of models: a file in the folder `models`, or FILE.py:NAME", allowed)
  return {"family": named, **declarations.declared_in(family(name).Shape)}


def resolve(model: Config, facts: Facts) -> None:
  """Fills in the fields of `config.model` that depend on the data or other fields, in place; `facts` are the data's."""
  family(model.family).resolve(model, facts)


def check(config: Config) -> None:
  """Raises `UserError` if the model cannot be built or does not fit its task."""
  chosen = family(config.model.family)
  task, allowed = config.task.name, chosen.TASKS
  require(
    task in allowed or user_files.is_reference(task),
    f"config.task.name: a {config.model.family} is for {' or '.join(allowed)}, not {task}",
  )
  declarations.check("model", chosen.Shape, config.model)
  chosen.check(config)


def shape_of(config: Config) -> ModelShape:
  """Returns the frozen shape of the model of a resolved config."""
  return family(config.model.family).shape_of(config)


def counts_of(config: Config) -> Counts:
  """Returns parameters and FLOPs per token or example of the model of a resolved config."""
  return shape_of(config).counts(config.data.context if "context" in config.data else 1)


def build(config: Config, dtype: DTypeLike = jnp.float32, **supplied: Unpack[Supplied]) -> Model:
  """Returns the model of a resolved config, which computes in `dtype`."""
  return family(config.model.family).build(config, dtype, **supplied)


def labels(config: Config) -> Labels:
  """Returns the axes and the role of each parameter of the model of a resolved config."""
  return labels_of(abstract_parameters(config))


def in_pieces(model: Config) -> tuple[str, ...]:
  """Returns the fields, `data.context` or `model.layers`, along which a mesh can shard this model's computation."""
  return getattr(family(model.family), "IN_PIECES", ())


def begins_blocks_with_norms(model: Config) -> bool:
  """Whether the model's blocks are pre-norm; True for models without blocks."""
  return getattr(family(model.family), "NORM_FIRST", model.get("norm_first", True))


def real_rows(config: Config, boxed: Params | None = None) -> dict[str, int]:
  """Returns, by dotted name of each padded table, the number of rows that are not padding.

  `boxed` are the model's parameters, boxed with the names of their axes, if available.
  """
  if "vocab" not in config.model:
    return {}
  boxed = abstract_parameters(config) if boxed is None else boxed
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  return {dotted(path): config.model.vocab for path, leaf in leaves if leaf.names[:1] == ("vocab",)}


def abstract_parameters(config: Config) -> Params:
  """Returns the abstract parameters of a resolved config's model, boxed with the names of their axes."""
  groups = ("model.", "task.", "data.context")
  read = {name: value for name, value in flatten(config).items() if name.startswith(groups)}
  key = family(config.model.family).build, repr(read)
  if key not in _ABSTRACT:
    if len(_ABSTRACT) >= CACHED:
      _ABSTRACT.clear()
    init = functools.partial(build(config).init, jax.random.key(0))
    _ABSTRACT[key] = jax.eval_shape(lambda: init(*example(config))["params"])
  return _ABSTRACT[key]


def example(config: Config) -> tuple[jax.Array, ...]:
  """Returns the smallest inputs of the model of a resolved config."""
  return family(config.model.family).example(shape_of(config))
