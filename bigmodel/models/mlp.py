"""Linear and softmax regression, and the multilayer perceptron."""

import dataclasses
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require, require_choice
from bigmodel.models.layers.basic import ACTIVATIONS, dropout, projection
from bigmodel.models.layers.roles import Role

TASKS = ("classification", "regression")
SUPPLIED = ()


def fields() -> dict[str, Any]:
  """The fields of `config.model`; the family `linear` has none of them, for it has no hidden layers."""
  return {"hidden": (256,), "activation": "relu", "dropout": 0.0}


def resolve(model: Config, facts: dict[str, Any]) -> None:
  model.inputs, model.outputs = model.inputs or facts["inputs"], model.outputs or facts["outputs"]


def check(config: Config) -> None:
  model = config.model
  if model.family == "mlp":
    require_choice("model.activation", model.activation, ACTIVATIONS)
    require(all(width > 0 for width in model.hidden), f"config.model.hidden: {model.hidden} are not all positive")
    require(0 <= model.dropout < 1, f"config.model.dropout: {model.dropout} is not in [0, 1)")


def shape_of(config: Config) -> "Shape":
  model = config.model
  own = {} if model.family == "linear" else {name: model[name] for name in fields()}
  return Shape(tuple(model.inputs), model.outputs, **own)


def build(config: Config, dtype: Any) -> "MLP":
  return MLP(shape_of(config), dtype)


@dataclasses.dataclass(frozen=True)
class Shape:
  """Everything that decides the parameters; no hidden widths make a linear model."""

  inputs: tuple[int, ...]
  outputs: int
  hidden: tuple[int, ...] = ()
  activation: str = "relu"
  dropout: float = 0.0

  def describe(self) -> dict[str, Any]:
    facts = {"family": "mlp" if self.hidden else "linear", **dataclasses.asdict(self)}
    return facts | {"inputs": list(self.inputs), "hidden": list(self.hidden)}

  def counts(self, context: int) -> Counts:
    """Parameters, and training FLOPs per example."""
    del context
    widths = (math.prod(self.inputs), *self.hidden, self.outputs)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return plain_counts(matrices + sum(widths[1:]), 2.0 * matrices)


class MLP(nn.Module):
  """x_Bx... -> (outputs float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape = self.shape
    x_BxF = x.reshape(x.shape[0], -1).astype(self.dtype)
    # A rectifier halves the variance (He et al. 2015).
    scale = 2**0.5 if shape.activation in ("relu", "gelu", "gelu_erf") else 1.0
    axis, role = "inputs", Role.INPUT
    for layer, width in enumerate(shape.hidden):
      x_BxF = projection(self, f"layer_{layer}", x_BxF, width, (axis, "mlp"), role, scale, bias=True)
      x_BxF = dropout(self, ACTIVATIONS[shape.activation](x_BxF), shape.dropout)
      axis, role = "embed", Role.HIDDEN
    out = projection(
      self, "output", x_BxF, shape.outputs, (axis, "outputs"), Role.OUTPUT, bias=True, result=jnp.float32
    )
    return out, {}


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
