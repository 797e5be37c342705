"""Models: one file a family over shared layers; each says its own parameters and FLOPs.

A family's module declares the fields of its `config.model` in `Shape`, a frozen dataclass with `describe()` and
`counts(context)`; it has `check(config)` for what declarations cannot say, `resolve(model, facts)`, `shape_of(config)`;
`build(config, dtype)`, a Linen module that gives `(outputs, auxiliary numbers by name)`; `example(shape)`,
inputs of the least size; TASKS, what it can be trained for; and SUPPLIED, the arguments of
`build` by which a mesh may have it computed in another way. It may have IN_PIECES, the
fields along which a mesh can split its rows and layers, and NORM_FIRST, whether its blocks
begin with their norms (by default the field `norm_first`, or else True). Each parameter has
a role and named axes: see `layers.roles`.

A model that is applied with a key named 'dropout' is in training; without that key it is evaluated.
"""

import importlib
import pkgutil
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel import declarations
from bigmodel.accounting import Counts
from bigmodel.config import Config, flatten, require, require_choice
from bigmodel.declarations import Field, OneOf
from bigmodel.models.layers.roles import Labels, dotted, labels_of

MOST_ABSTRACT = 256  # models whose shapes are remembered: tracing one takes longer than most of what asks for them
_ABSTRACT: dict[tuple[Any, str], Any] = {}


def _families() -> tuple[str, ...]:
  """The names of the files in this folder: each is a family."""
  return tuple(sorted(one.name for one in pkgutil.iter_modules(__path__) if not one.ispkg))


FAMILIES = _families()


def family(name: str) -> Any:
  """The module of a family."""
  require_choice("model.family", name, FAMILIES)
  return importlib.import_module(f"bigmodel.models.{name}")


def declared(name: str) -> dict[str, Field]:
  """The fields of `config.model` of a family."""
  named = Field(name, "family of models: a file in the folder `models`", OneOf(FAMILIES))
  return {"family": named, **declarations.declared_in(family(name).Shape)}


def resolve(model: Config, facts: dict[str, Any]) -> None:
  """Replaces what `config.model` leaves to the data and to arithmetic, in place; `facts` are the data's."""
  family(model.family).resolve(model, facts)


def check(config: Config) -> None:
  """Refuses a `config.model` that cannot be built, or not for its task."""
  module = family(config.model.family)
  task, known = config.task.name, module.TASKS
  require(task in known, f"config.task.name: a {config.model.family} is for {' or '.join(known)}, not {task}")
  declarations.check("model", module.Shape, config.model)
  module.check(config)


def shape_of(config: Config) -> Any:
  """The frozen shape of the model of a resolved config."""
  return family(config.model.family).shape_of(config)


def counts_of(config: Config) -> Counts:
  """Parameters and FLOPs per token or example of the model of a resolved config."""
  return shape_of(config).counts(config.data.context if "context" in config.data else 1)


def build(config: Config, dtype: Any = jnp.float32, **arguments: Any) -> Any:
  """The Linen module of a resolved config."""
  return family(config.model.family).build(config, dtype, **arguments)


def labels(config: Config) -> Labels:
  """The axes and the role of each parameter of the model of a resolved config."""
  return labels_of(abstract_parameters(config))


def in_pieces(model: Config) -> tuple[str, ...]:
  """The fields of a config, `data.context` or `model.layers`, along which a mesh can split this model's work."""
  return getattr(family(model.family), "IN_PIECES", ())


def begins_blocks_with_norms(model: Config) -> bool:
  """Whether blocks normalise what they read, and not the stream itself; True where there are no blocks."""
  return getattr(family(model.family), "NORM_FIRST", model.get("norm_first", True))


def real_rows(config: Config, boxed: Any = None) -> dict[str, int]:
  """By the dotted name of each padded table, how many of its rows are real; the rest are zeros that nothing reads.

  `boxed` are the model's parameters, boxed with the names of their axes, where they are at hand.
  """
  if "vocab" not in config.model:
    return {}
  boxed = abstract_parameters(config) if boxed is None else boxed
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  return {dotted(path): config.model.vocab for path, leaf in leaves if leaf.names[0] == "vocab"}


def abstract_parameters(config: Config) -> Any:
  """Shapes of the parameters of a resolved config's model, boxed with the names of their axes."""
  groups = ("model.", "task.", "data.context")
  read = {name: value for name, value in flatten(config).items() if name.startswith(groups)}
  key = family(config.model.family).build, repr(read)
  if key not in _ABSTRACT:
    if len(_ABSTRACT) >= MOST_ABSTRACT:
      _ABSTRACT.clear()
    _ABSTRACT[key] = jax.eval_shape(lambda: build(config).init(jax.random.key(0), *example(config))["params"])
  return _ABSTRACT[key]


def example(config: Config) -> tuple[Any, ...]:
  """Inputs of the least size for the model of a resolved config."""
  return family(config.model.family).example(shape_of(config))
