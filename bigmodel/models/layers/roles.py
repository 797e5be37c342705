"""Roles of parameters. Models declare them where they create parameters; optimizers and parametrizations read them.

A parameter is created in a box that carries the logical names of its axes, by which meshes spread it, and its role.
Nothing outside of a model's file needs the parameter's name to know how to treat it.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

import jax
from flax import linen as nn
from flax import struct

from bigmodel.config import require
from bigmodel.types import Params

P = ParamSpec("P")  # of an initializer

Path = tuple[jax.tree_util.KeyEntry, ...]  # of a leaf in a tree of parameters, as JAX gives it

# Logical axes along which whole parameters lie side by side: an optimizer treats each of them as if it were alone.
STACKED = ("layers", "expert")


class Role(enum.Enum):
  """What a parameter does. A bias has the role of its matrix where rules treat both alike, otherwise BIAS."""

  TABLE = "vectors that are looked up, added, or multiplied by numbers; their initial size is the same at every width"
  SHRINKING_TABLE = "a table whose initial values are in proportion to width^-1/2"
  SCALED_TABLE = "a shrinking table whose vectors are multiplied by width^1/2 where they are read"
  OUTPUT_TABLE = "vectors whose products with the last states are the logits; a shrinking table, too"
  INPUT = "a matrix or convolution that meets the data"
  HIDDEN = "a matrix or convolution between layers"
  QUERY = "sets the size of attention's queries: their matrix and bias, the scale of their norm, what is added to them"
  BRANCH_END = "the matrix, and its bias, whose result is added to the residual stream"
  OUTPUT = "a matrix that gives the outputs"
  BIAS = "added to the results of a matrix"
  NORM = "scales and biases of a norm"
  LAST_NORM = "scales and biases of the norm whose results the outputs are computed from"
  UNKNOWN = "not declared by a user's model: safe with every optimizer, but nothing follows for models of other sizes"


# Roles of tables, which counts of parameters without embeddings leave out.
TABLES = (Role.TABLE, Role.SHRINKING_TABLE, Role.SCALED_TABLE, Role.OUTPUT_TABLE)


@dataclasses.dataclass(frozen=True)
class Label:
  """The logical names of a parameter's axes, and its role."""

  axes: tuple[str | None, ...]
  role: Role

  @property
  def in_stack(self) -> bool:
    """Whether the parameter is one of a stack of layers, and holds those of all layers."""
    return self.axes[:1] == ("layers",)

  @property
  def stacked(self) -> int:
    """How many axes come before those of a single parameter: layers of a stack, experts."""
    return sum(axis in STACKED for axis in self.axes)

  @property
  def is_matrix(self) -> bool:
    """Whether a single parameter has at least two axes. These decay."""
    return len(self.axes) - self.stacked > 1

  @property
  def is_hidden(self) -> bool:
    """Whether it is a matrix or convolution between layers: what Muon, Shampoo and SOAP are for."""
    return self.is_matrix and self.role in (Role.HIDDEN, Role.QUERY, Role.BRANCH_END)


class Parameter(nn.LogicallyPartitioned):
  """The box of a parameter: its array, the logical names of its axes, and its role."""

  role: Role | None = struct.field(default=None, pytree_node=False)


def labelled(init: Callable[P, jax.Array], axes: tuple[str, ...], role: Role) -> Callable[P, Parameter]:
  """The initializer `init`, whose arrays come in a box with these axes and this role."""

  @functools.wraps(init)
  def wrapper(*arguments: P.args, **keywords: P.kwargs) -> Parameter:
    return Parameter(init(*arguments, **keywords), axes, role=role)

  return wrapper


@dataclasses.dataclass(frozen=True)
class Labels:
  """The labels of all parameters of a model, by their dotted names; hashable, so that programs can depend on it."""

  rows: tuple[tuple[str, Label], ...]

  @functools.cached_property
  def by_name(self) -> dict[str, Label]:
    return dict(self.rows)

  def __iter__(self) -> Iterator[tuple[str, Label]]:
    return iter(self.rows)

  def at(self, path: Path) -> Label:
    """The label of the parameter at a path of its tree."""
    return self.by_name[dotted(path)]

  @property
  def stacks(self) -> set[str]:
    """The outermost names under which every parameter holds those of all layers."""
    outermost = {name.partition(".")[0] for name, _ in self.rows}
    return outermost - {name.partition(".")[0] for name, label in self.rows if not label.in_stack}


def dotted(path: Path) -> str:
  """The dotted name of the parameter at a path of its tree."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def labels_of(boxed: Params) -> Labels:
  """The labels of a tree of boxed parameters, concrete or abstract; refuses a parameter that has none."""
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, Parameter))
  rows = []
  for path, leaf in leaves:
    role = leaf.role if isinstance(leaf, Parameter) else None
    require(
      role is not None,
      f"config.model.family: its parameter {dotted(path)} has no role, by which optimizers know how to treat it; create"
      " parameters with `models.layers.roles.labelled` or the functions of `models.layers.basic`",
    )
    assert role is not None
    rows.append((dotted(path), Label(tuple(leaf.names), role)))
  return Labels(tuple(rows))
