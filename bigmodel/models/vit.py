"""Vision Transformer (Dosovitskiy et al. 2021): patches as tokens, a class token that is read out."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require, require_choice
from bigmodel.models.layers.attention import Attend, attend_to_all
from bigmodel.models.layers.basic import ACTIVATIONS, GATED, LayerNorm, constrain, dropout, normal, projection, repeated
from bigmodel.models.layers.block import BlockShape, RunBlocks, stack, unrolled
from bigmodel.models.layers.roles import Role

TASKS = ("classification",)
SUPPLIED = ("run_blocks",)


def fields() -> dict[str, Any]:
  """The fields of `config.model`. Zero means: derived, see `resolve`."""
  return {
    "patch": 4,  # side of a patch, in pixels
    "width": 64,
    "layers": 4,
    "heads": 0,  # 0: width // head_size
    "head_size": 32,
    "feed_forward": 0,  # 0: 4 * width
    "activation": "gelu_erf",
    "epsilon": 1e-6,
    "dropout": 0.0,
  }


def resolve(model: Config, facts: dict[str, Any]) -> None:
  model.inputs, model.outputs = model.inputs or facts["inputs"], model.outputs or facts["outputs"]
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or 4 * model.width


def check(config: Config) -> None:
  model = config.model
  require_choice("model.activation", model.activation, (*GATED, *ACTIVATIONS))
  for name in ("patch", "width", "layers", "head_size", "epsilon"):
    require(model[name] > 0, f"config.model.{name}: {model[name]} is not positive")
  for name in ("heads", "feed_forward"):
    require(model[name] >= 0, f"config.model.{name}: {model[name]} is negative")
  require(0 <= model.dropout < 1, f"config.model.dropout: {model.dropout} is not in [0, 1)")
  if model.inputs:
    require(len(model.inputs) == 3, f"config.model.inputs: {model.inputs} is not (height, width, channels)")
    height, width = model.inputs[:2]
    require(
      height % model.patch == 0 and width % model.patch == 0,
      f"config.model.patch: {model.patch} does not divide images of {height} x {width}",
    )


def shape_of(config: Config) -> "Shape":
  own = {name: config.model[name] for name in fields()}
  return Shape(tuple(config.model.inputs), config.model.outputs, **own)


def build(config: Config, dtype: Any, **arguments: Any) -> "ViT":
  return ViT(shape_of(config), dtype, **arguments)


@dataclasses.dataclass(frozen=True)
class Shape:
  inputs: tuple[int, ...]
  outputs: int
  patch: int
  width: int
  layers: int
  heads: int
  head_size: int
  feed_forward: int
  activation: str = "gelu_erf"
  epsilon: float = 1e-6
  dropout: float = 0.0

  def describe(self) -> dict[str, Any]:
    return {"family": "vit", **dataclasses.asdict(self), "inputs": list(self.inputs)}

  @property
  def block(self) -> BlockShape:
    return BlockShape(
      self.width, self.layers, self.heads, self.heads, self.head_size, self.feed_forward, self.activation,
      epsilon=self.epsilon, causal=False, dropout=self.dropout,
    )  # fmt: skip

  @property
  def patches(self) -> int:
    return self.inputs[0] // self.patch * (self.inputs[1] // self.patch)

  def counts(self, context: int) -> Counts:
    """Parameters, and training FLOPs per image."""
    del context
    D, T, pixels = self.width, self.patches + 1, self.patch**2 * self.inputs[2]
    params = self.layers * self.block.params()[0] + 2 * D + (pixels + 1) * D + (T + 1) * D + (D + 1) * self.outputs
    layers = self.layers * T * (self.block.dense() + self.block.attention(T))
    products = layers + 2.0 * (self.patches * pixels * D + D * self.outputs)
    return plain_counts(params, products, recomputed=self.block.recomputed(T).times(self.layers * T))


class ViT(nn.Module):
  """images [B, height, width, channels] -> (logits float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: Any = jnp.float32
  attend: Attend = attend_to_all
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, P, D = self.shape, self.shape.patch, self.shape.width
    B, height, width, channels = x.shape
    cut = x.astype(self.dtype).reshape(B, height // P, P, width // P, P, channels)
    pixels_BxTxF = cut.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, P * P * channels)
    x_BxTxD = projection(self, "patches", pixels_BxTxF, D, ("inputs", "embed"), Role.INPUT, bias=True)
    token_D = normal(self, "token", (D,), ("embed",), Role.TABLE, 0.02)
    positions_TxD = normal(self, "positions", (shape.patches + 1, D), ("positions", "embed"), Role.TABLE, 0.02)
    x_BxTxD = jnp.concatenate([repeated(token_D, (B, 1, D), ("embed",), self.dtype), x_BxTxD], axis=1)
    x_BxTxD = x_BxTxD + repeated(positions_TxD, x_BxTxD.shape, ("positions", "embed"), self.dtype)
    x_BxTxD = constrain(dropout(self, x_BxTxD, shape.dropout), ("batch", None, "activation_embed"))
    x_BxTxD, auxiliary = stack(self, "blocks", shape.block, self.dtype, self.attend, self.run_blocks, x_BxTxD)
    read_BxD = LayerNorm(epsilon=shape.epsilon, role=Role.LAST_NORM, name="final_norm")(x_BxTxD[:, 0])
    out = projection(
      self, "output", read_BxD, shape.outputs, ("embed", "outputs"), Role.OUTPUT, bias=True, result=jnp.float32
    )
    return out, auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
