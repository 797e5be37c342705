"""Deep belief net (Hinton, Osindero and Teh 2006): a sigmoid network whose layers are pre-trained as RBMs.

The task `contrastive_divergence` trains one layer on the activations of those below it; the
task `classification` trains all of them together.
"""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import field, read
from bigmodel.models.layers.basic import einsum_float32, gathered, normal, outputs, repeated, zeros
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts

TASKS = ("classification", "contrastive_divergence")
SUPPLIED = ()


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)


def check(config: Config) -> None:
  hidden = config.model.hidden
  require(
    bool(hidden) and all(width > 0 for width in hidden),
    f"config.model.hidden: {hidden} must be positive widths of layers",
  )
  require(
    config.data.normalise == "unit",
    f"config.data.normalise: {config.data.normalise!r}; a DBN's inputs are probabilities: use unit",
  )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike) -> "DBN":
  return DBN(shape_of(config), dtype)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters."""

  hidden: tuple[int, ...] = field((500, 500, 2000), "units of each hidden layer")

  def describe(self) -> dict[str, object]:
    return {"family": "dbn", "inputs": list(self.inputs), "outputs": self.outputs, "hidden": list(self.hidden)}

  @property
  def widths(self) -> tuple[int, ...]:
    return (math.prod(self.inputs), *self.hidden)

  def counts(self, context: int) -> Counts:
    """Returns parameters, with the biases of visible units, and FLOPs per example of training all layers together."""
    del context
    widths = (*self.widths, self.outputs)
    matrices = sum(a * b for a, b in itertools.pairwise(widths))
    return plain_counts(matrices + sum(widths[1:]) + sum(widths[:-2]), 2.0 * matrices)


class DBN(nn.Module):
  """inputs in [0, 1] -> (logits float32[B, outputs], {}); with a `layer`, the losses of that RBM [B, 2]."""

  shape: Shape
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, layer: int | None = None, key: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, none = self.shape, {}
    v_BxV = x.reshape(x.shape[0], -1).astype(self.dtype)
    for i, (below, width) in enumerate(itertools.pairwise(shape.widths)):
      axes = ("inputs" if not i else "embed", "mlp")
      weight_VxH = normal(self, f"layer_{i}", (below, width), axes, Role.HIDDEN if i else Role.INPUT, below**-0.5)
      weight_VxH = gathered(weight_VxH.astype(self.dtype), axes)
      hidden_H = zeros(self, f"layer_{i}_bias", (width,), ("mlp",), Role.BIAS)
      visible_V = gathered(zeros(self, f"layer_{i}_visible", (below,), axes[:1], Role.BIAS), axes[:1])
      if i == layer:
        assert key is not None
        return divergence(jax.lax.stop_gradient(v_BxV), weight_VxH, hidden_H, visible_V, key), none
      inputs_BxH = v_BxV @ weight_VxH
      v_BxV = jax.nn.sigmoid(inputs_BxH + repeated(hidden_H, inputs_BxH.shape, ("mlp",), self.dtype))
    out = outputs(self, v_BxV, shape.outputs)
    return out, none


def divergence(
  v_BxV: jax.Array, weight_VxH: jax.Array, hidden_H: jax.Array, visible_V: jax.Array, key: jax.Array
) -> jax.Array:
  """Returns, for each row, the free energy of the data minus that of the reconstruction, and its cross-entropy.

  The gradient of the first is contrastive divergence with one step of Gibbs sampling (Hinton 2002,
  equation 5): hidden units are sampled, visible units stay probabilities.
  """

  def free_energy(v: jax.Array) -> jax.Array:
    inputs_BxH = einsum_float32("bv,vh->bh", v, weight_VxH) + hidden_H
    return -einsum_float32("bv,v->b", v, visible_V.astype(v.dtype)) - jnp.sum(jax.nn.softplus(inputs_BxH), axis=-1)

  chance_BxH = jax.nn.sigmoid(einsum_float32("bv,vh->bh", v_BxV, weight_VxH) + hidden_H)
  h_BxH = jax.random.bernoulli(key, chance_BxH).astype(v_BxV.dtype)
  logit_BxV = einsum_float32("bh,vh->bv", h_BxH, weight_VxH) + visible_V
  seen_BxV = jax.lax.stop_gradient(jax.nn.sigmoid(logit_BxV)).astype(v_BxV.dtype)
  cross_entropy_B = jnp.sum(jax.nn.softplus(logit_BxV) - v_BxV * logit_BxV, axis=-1)
  losses = jnp.stack([free_energy(v_BxV) - free_energy(seen_BxV), jax.lax.stop_gradient(cross_entropy_B)], axis=-1)
  return losses


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
