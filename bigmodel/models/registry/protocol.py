"""What a family of models offers. A file in the folder `models` is a family, and its functions are these members."""

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
  """Computations that depend on the mesh, which a family takes as arguments of `build`: those in its SUPPLIED."""

  attend: Attend
  run_blocks: RunBlocks


class ModelShape(Protocol):
  """Everything that decides a model's parameters: a frozen dataclass whose fields are those of `config.model`."""

  def describe(self) -> dict[str, object]:
    """The family and the sizes, for records."""
    ...

  def counts(self, context: int) -> Counts:
    """Parameters, and FLOPs per token of rows of `context` tokens, or per example."""
    ...


class Model(Protocol):
  """A Linen module, or what behaves like one."""

  @property
  def init(self) -> Callable[..., Mapping[str, Params]]:
    """`init(key, *inputs)`: variables, of which there are only "params", boxed with their axes and roles."""
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

  TASKS: tuple[str, ...]  # that it can be trained for; the first is the default
  SUPPLIED: tuple[str, ...]  # arguments of `build` by which a mesh may have it computed in another way
  Shape: type[Any]

  def resolve(self, model: Config, facts: Facts) -> None:
    """Replaces, in place, the fields that are left to the data and to arithmetic."""
    ...

  def check(self, config: Config) -> None:
    """Refuses what declarations of fields cannot express."""
    ...

  def shape_of(self, config: Config) -> ModelShape: ...

  def build(self, config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> Model: ...

  def example(self, shape: Any) -> tuple[jax.Array, ...]:
    """The smallest inputs of a model of this shape."""
    ...
