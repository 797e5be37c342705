"""The interface of a family of models. The functions of a family's file are the members of `Family`."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypedDict, Unpack

import jax
from jax.typing import DTypeLike

from bigmodel.accounting import Counts
from bigmodel.config import Config
from bigmodel.models.layers.attention import Attend
from bigmodel.models.layers.block import RunBlocks
from bigmodel.models.layers.experts import Auxiliary
from bigmodel.types import Params

# Facts of the data: "vocab" of text, "inputs" and "outputs" of examples, "context", and more.
Facts: TypeAlias = Mapping[str, object]


class Supplied(TypedDict, total=False):
  """Mesh-dependent functions that a family takes as arguments of `build`, as listed in its SUPPLIED."""

  attend: Attend
  run_blocks: RunBlocks


class ModelShape(Protocol):
  """The sizes that determine a model's parameters: a frozen dataclass with the fields of `config.model`."""

  def describe(self) -> dict[str, object]:
    """Returns the family and the sizes, for records."""
    ...

  def counts(self, context: int) -> Counts:
    """Returns parameters, and FLOPs per token of rows of `context` tokens, or per example."""
    ...


class Model(Protocol):
  """A Linen module, or an object that behaves like one."""

  @property
  def init(self) -> Callable[..., Mapping[str, Params]]:
    """`init(key, *inputs)`: variables, with only "params", boxed with their axes and roles."""
    ...

  @property
  def apply(self) -> Callable[..., tuple[jax.Array, Auxiliary]]:
    """`apply({"params": params}, *inputs, rngs=None)`: outputs and auxiliary numbers by name.

    With a key named 'dropout' in `rngs` the model is in training; without it, it is evaluated.
    """
    ...


class Family(Protocol):
  """A family may also have two optional members.

  IN_PIECES: the fields ("data.context", "model.layers") along which a mesh can split its rows and layers.
  NORM_FIRST: whether its blocks begin with their norms; by default the field `norm_first`, or else True.
  """

  TASKS: tuple[str, ...]  # tasks that it supports; the first is the default
  SUPPLIED: tuple[str, ...]  # arguments of `build` that depend on the mesh
  Shape: type[Any]

  def resolve(self, model: Config, facts: Facts) -> None:
    """Fills in, in place, the fields that depend on the data or other fields."""
    ...

  def check(self, config: Config) -> None:
    """Raises `UserError` for invalid values that the declarations of fields cannot exclude."""
    ...

  def shape_of(self, config: Config) -> ModelShape: ...

  def build(self, config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> Model: ...

  def example(self, shape: Any) -> tuple[jax.Array, ...]:
    """Returns the smallest inputs of a model of this shape."""
    ...
