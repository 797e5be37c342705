"""Vision Transformer (Dosovitskiy et al. 2021): patches are tokens, and a class token gives the outputs."""

import dataclasses
from typing import Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, DEPTH, NOT_NEGATIVE, POSITIVE, OneOf, field, read
from bigmodel.models.layers.attention import Attend, attend_to_all
from bigmodel.models.layers.basic import (
  ACTIVATIONS,
  GATED,
  LayerNorm,
  Matrix,
  constrain,
  dropout,
  normal,
  outputs,
  projection,
  repeated,
)
from bigmodel.models.layers.block import BlockShape, RunBlocks, Stack, stack, unrolled
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts, Supplied

TASKS = ("classification",)
SUPPLIED = ("run_blocks",)


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or 4 * model.width


def check(config: Config) -> None:
  model = config.model
  if model.inputs:
    require(len(model.inputs) == 3, f"config.model.inputs: {model.inputs} is not (height, width, channels)")
    height, width = model.inputs[:2]
    require(
      height % model.patch == 0 and width % model.patch == 0,
      f"config.model.patch: {model.patch} does not divide images of {height} x {width}",
    )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> "ViT":
  return ViT(shape_of(config), dtype, **supplied)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters. In a config, `resolve` replaces sizes of 0."""

  patch: int = field(4, "side of a patch, in pixels", POSITIVE)
  width: int = field(64, "size of a patch's vector between the layers", POSITIVE)
  layers: int = field(4, "blocks of attention and feed-forward", DEPTH)
  heads: int = field(0, "attention heads; 0: width // head_size", NOT_NEGATIVE)
  head_size: int = field(32, "size of each head", POSITIVE)
  feed_forward: int = field(0, "hidden units; 0: 4 * width", NOT_NEGATIVE)
  activation: str = field("gelu_erf", "activation of the feed-forward blocks", OneOf((*GATED, *ACTIVATIONS)))
  epsilon: float = field(1e-6, "added to the variance in norms", POSITIVE)
  dropout: float = field(0.0, "share of activations dropped in training", BELOW_ONE)

  def describe(self) -> dict[str, object]:
    return {"family": "vit", **dataclasses.asdict(self), "inputs": list(self.inputs)}

  @property
  def block(self) -> BlockShape:
    return BlockShape(
      width=self.width,
      layers=self.layers,
      heads=self.heads,
      kv_heads=self.heads,
      head_size=self.head_size,
      feed_forward=self.feed_forward,
      activation=self.activation,
      epsilon=self.epsilon,
      causal=False,
      dropout=self.dropout,
    )

  @property
  def patches(self) -> int:
    return self.inputs[0] // self.patch * (self.inputs[1] // self.patch)

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per image."""
    del context
    D, T, pixels = self.width, self.patches + 1, self.patch**2 * self.inputs[2]
    params = self.layers * self.block.params()[0] + 2 * D + (pixels + 1) * D + (T + 1) * D + (D + 1) * self.outputs
    layers = self.layers * T * (self.block.dense() + self.block.attention(T))
    products = layers + 2.0 * (self.patches * pixels * D + D * self.outputs)
    return plain_counts(params, products, recomputed=self.block.recomputed(T).times(self.layers * T))


class ViT(nn.Module):
  """images [B, height, width, channels] -> (logits float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: DTypeLike = jnp.float32
  attend: Attend = attend_to_all
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, P, D = self.shape, self.shape.patch, self.shape.width
    B, height, width, channels = x.shape
    cut = x.astype(self.dtype).reshape(B, height // P, P, width // P, P, channels)
    pixels_BxTxF = cut.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * P * channels)
    x_BxTxD = projection(self, "patches", pixels_BxTxF, D, Matrix(("inputs", "embed"), Role.INPUT, bias=True))
    token_D = normal(self, "token", (D,), ("embed",), Role.TABLE, 0.02)
    positions_TxD = normal(self, "positions", (shape.patches + 1, D), ("positions", "embed"), Role.TABLE, 0.02)
    x_BxTxD = jnp.concatenate([repeated(token_D, (B, 1, D), ("embed",), self.dtype), x_BxTxD], axis=1)
    x_BxTxD = x_BxTxD + repeated(positions_TxD, x_BxTxD.shape, ("positions", "embed"), self.dtype)
    x_BxTxD = constrain(dropout(self, x_BxTxD, shape.dropout), ("batch", None, "activation_embed"))
    blocks = Stack(shape.block, self.dtype, self.attend, self.run_blocks)
    x_BxTxD, auxiliary = stack(self, "blocks", blocks, x_BxTxD)
    read_BxD = LayerNorm(epsilon=shape.epsilon, role=Role.LAST_NORM, name="final_norm")(x_BxTxD[:, 0])
    out = outputs(self, read_BxD, shape.outputs)
    return out, auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
