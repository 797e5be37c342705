"""The multilayer perceptron."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, OneOf, field, read
from bigmodel.models.layers.basic import ACTIVATIONS, Matrix, dropout, outputs, projection
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts

TASKS = ("classification", "regression")
SUPPLIED = ()


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)


def check(config: Config) -> None:
  hidden = config.model.hidden
  require(all(width > 0 for width in hidden), f"config.model.hidden: {hidden} are not all positive")


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike) -> "MLP":
  return MLP(shape_of(config), dtype)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters; no hidden layers make a linear model."""

  hidden: tuple[int, ...] = field((256,), "units of each hidden layer")
  activation: str = field("relu", "activation of the hidden layers", OneOf(ACTIVATIONS))
  dropout: float = field(0.0, "share of activations dropped in training", BELOW_ONE)

  def describe(self) -> dict[str, object]:
    lists = {"inputs": list(self.inputs), "hidden": list(self.hidden)}
    return {"family": "mlp" if self.hidden else "linear", **dataclasses.asdict(self), **lists}

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per example."""
    del context
    widths = (math.prod(self.inputs), *self.hidden, self.outputs)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return plain_counts(matrices + sum(widths[1:]), 2.0 * matrices)


class MLP(nn.Module):
  """x_Bx... -> (outputs float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape = self.shape
    x_BxF = x.reshape(x.shape[0], -1).astype(self.dtype)
    # A ReLU halves the variance (He et al. 2015).
    scale = 2**0.5 if shape.activation in ("relu", "gelu", "gelu_erf") else 1.0
    axis, role = "inputs", Role.INPUT
    for layer, width in enumerate(shape.hidden):
      x_BxF = projection(self, f"layer_{layer}", x_BxF, width, Matrix((axis, "mlp"), role, scale, bias=True))
      x_BxF = dropout(self, ACTIVATIONS[shape.activation](x_BxF), shape.dropout)
      axis, role = "embed", Role.HIDDEN
    out = outputs(self, x_BxF, shape.outputs, axis)
    return out, {}


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
