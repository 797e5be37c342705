"""Roles of parameters. Models declare them where they create parameters; optimizers and parametrizations read them.

A parameter is created in a box with the logical names of its axes, by which meshes shard it, and its role.
So code outside of a model's file never depends on the names of its parameters.
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

# Logical axes along which separate parameters are stacked; optimizers treat each parameter of a stack separately.
STACKED = ("layers", "expert")


class Role(enum.Enum):
  """The role of a parameter. A bias has the role of its matrix if rules treat both equally, otherwise BIAS."""

  TABLE = "vectors that are looked up, added, or multiplied by numbers; their initial size is the same at every width"
  SHRINKING_TABLE = "a table whose initial values are in proportion to width^-1/2"
  SCALED_TABLE = "a shrinking table whose vectors are multiplied by width^1/2 where they are read"
  OUTPUT_TABLE = "a shrinking table whose products with the last states are the logits"
  INPUT = "a matrix or convolution that multiplies the data"
  HIDDEN = "a matrix or convolution between layers"
  QUERY = "sets the size of attention's queries: their matrix and bias, the scale of their norm, what is added to them"
  BRANCH_END = "the matrix, and its bias, whose result is added to the residual stream"
  OUTPUT = "a matrix that gives the outputs"
  BIAS = "added to the results of a matrix"
  NORM = "scales and biases of a norm"
  LAST_NORM = "scales and biases of the norm whose results the outputs are computed from"
  UNKNOWN = "not declared by a user's model: safe with every optimizer, but without transfer to models of other sizes"


# Roles of tables, which non-embedding parameter counts leave out.
TABLES = (Role.TABLE, Role.SHRINKING_TABLE, Role.SCALED_TABLE, Role.OUTPUT_TABLE)


@dataclasses.dataclass(frozen=True)
class Label:
  """The logical names of a parameter's axes, and its role."""

  axes: tuple[str | None, ...]
  role: Role

  @property
  def in_stack(self) -> bool:
    """Whether the parameter is stacked over layers."""
    return self.axes[:1] == ("layers",)

  @property
  def stacked(self) -> int:
    """The number of leading axes over stacked parameters: layers and experts."""
    return sum(axis in STACKED for axis in self.axes)

  @property
  def is_matrix(self) -> bool:
    """Whether a single parameter has at least two axes; such parameters have weight decay."""
    return len(self.axes) - self.stacked > 1

  @property
  def is_hidden(self) -> bool:
    """Whether it is a matrix or convolution between layers, the target of Muon, Shampoo and SOAP."""
    return self.is_matrix and self.role in (Role.HIDDEN, Role.QUERY, Role.BRANCH_END)


class Parameter(nn.LogicallyPartitioned):
  """The box of a parameter: its array, the logical names of its axes, and its role."""

  role: Role | None = struct.field(default=None, pytree_node=False)


def labelled(init: Callable[P, jax.Array], axes: tuple[str, ...], role: Role) -> Callable[P, Parameter]:
  """Returns the initializer `init` with its arrays boxed with these axes and this role."""

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
    """Returns the label of the parameter at a path of its tree."""
    return self.by_name[dotted(path)]

  @property
  def stacks(self) -> set[str]:
    """Returns the top-level names whose parameters are all stacked over layers."""
    outermost = {name.partition(".")[0] for name, _ in self.rows}
    return outermost - {name.partition(".")[0] for name, label in self.rows if not label.in_stack}


def dotted(path: Path) -> str:
  """Returns the dotted name of the parameter at a path of its tree."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def labels_of(boxed: Params) -> Labels:
  """Returns the labels of a tree of boxed parameters, concrete or abstract; raises if a parameter has none."""
  leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, Parameter))
  rows = []
  for path, leaf in leaves:
    role = leaf.role if isinstance(leaf, Parameter) else None
    require(
      role is not None,
      f"config.model.family: its parameter {dotted(path)} has no role, which optimizers need; create"
      " parameters with `models.layers.roles.labelled` or the functions of `models.layers.basic`",
    )
    assert role is not None
    rows.append((dotted(path), Label(tuple(leaf.names), role)))
  return Labels(tuple(rows))
