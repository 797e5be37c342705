"""FT-Transformer (Gorishniy et al. 2021): each feature of a table is a token; a class token gives the outputs.

The last features may be codes of categories, and each category has a vector.
"""

import dataclasses
from typing import Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, DEPTH, NOT_NEGATIVE, POSITIVE, OneOf, field, read
from bigmodel.models.layers.attention import Attend, attend_to_all
from bigmodel.models.layers.basic import ACTIVATIONS, GATED, LayerNorm, constrain, normal, outputs, repeated
from bigmodel.models.layers.block import BlockShape, RunBlocks, Stack, stack, unrolled
from bigmodel.models.layers.embedding import lookup
from bigmodel.models.layers.roles import Role
from bigmodel.models.layers.shapes import ExampleShape, resolve_examples
from bigmodel.models.registry.protocol import Facts, Supplied

TASKS = ("classification", "regression")
SUPPLIED = ("run_blocks",)


def resolve(model: Config, facts: Facts) -> None:
  resolve_examples(model, facts)
  model.categories = model.categories or facts.get("categories", ())
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or -(-4 * model.width // 24) * 8


def check(config: Config) -> None:
  model = config.model
  require(
    len(model.inputs) <= 1,
    f"config.model.inputs: {model.inputs} is not a row of features; images are for other families",
  )
  require(
    not model.inputs or len(model.categories) <= model.inputs[0],
    f"config.model.categories: {len(model.categories)} categorical features of inputs {model.inputs}",
  )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> "FTTransformer":
  return FTTransformer(shape_of(config), dtype, **supplied)


@dataclasses.dataclass(frozen=True)
class Shape(ExampleShape):
  """The sizes that determine the parameters. In a config, `resolve` replaces sizes of 0."""

  width: int = field(64, "size of a feature's vector between the layers", POSITIVE)
  layers: int = field(3, "blocks of attention and feed-forward", DEPTH)
  heads: int = field(0, "attention heads; 0: width // head_size", NOT_NEGATIVE)
  head_size: int = field(8, "size of each head", POSITIVE)
  feed_forward: int = field(0, "hidden units; 0: 4/3 * width rounded up to a multiple of 8", NOT_NEGATIVE)
  activation: str = field("reglu", "activation of the feed-forward blocks", OneOf((*GATED, *ACTIVATIONS)))
  dropout: float = field(0.0, "share of activations dropped in training", BELOW_ONE)
  categories: tuple[int, ...] = field(
    (), "number of categories of each of the last features, which are codes; (): those of the data"
  )

  def describe(self) -> dict[str, object]:
    lists = {"inputs": list(self.inputs), "categories": list(self.categories)}
    return {"family": "tabular", **dataclasses.asdict(self), **lists}

  @property
  def numbers(self) -> int:
    """The number of numeric features, which come first."""
    return self.inputs[0] - len(self.categories)

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
      causal=False,
      dropout=self.dropout,
    )

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per row of a table."""
    del context
    D, T = self.width, self.inputs[0] + 1
    # One vector for each number and each category, one bias for each feature, and the class token.
    vectors = self.numbers + sum(self.categories) + self.inputs[0] + 1
    params = self.layers * self.block.params()[0] + 2 * D + vectors * D + (D + 1) * self.outputs
    layers = self.layers * T * (self.block.dense() + self.block.attention(T))
    recomputed = self.block.recomputed(T).times(self.layers * T)
    return plain_counts(params, layers + 2.0 * D * self.outputs, recomputed=recomputed)


class FTTransformer(nn.Module):
  """features float[B, F], numbers and then codes -> (outputs float32[B, outputs], no auxiliary numbers)."""

  shape: Shape
  dtype: DTypeLike = jnp.float32
  attend: Attend = attend_to_all
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(self, x_BxF: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, D, F = self.shape, self.shape.width, self.shape.inputs[0]
    axes, B = ("inputs", "embed"), len(x_BxF)

    def vectors(name: str, count: int) -> jax.Array:
      return normal(self, name, (count, D), axes, Role.SHRINKING_TABLE, D**-0.5)

    def for_all(vectors_FxD: jax.Array) -> jax.Array:
      return repeated(vectors_FxD, (B, *vectors_FxD.shape), axes, self.dtype)

    parts = []
    if shape.numbers:
      parts.append(x_BxF[:, : shape.numbers].astype(self.dtype)[..., None] * for_all(vectors("weight", shape.numbers)))
    if shape.categories:
      begins = np.cumsum((0, *shape.categories[:-1]))
      codes_BxC = x_BxF[:, shape.numbers :].astype(jnp.int32) + begins
      parts.append(lookup(vectors("categories", sum(shape.categories)), codes_BxC, axes, self.dtype))
    tokens_BxFxD = jnp.concatenate(parts, axis=1) + for_all(vectors("bias", F))
    token_D = normal(self, "token", (D,), ("embed",), Role.SHRINKING_TABLE, D**-0.5)
    x_BxTxD = jnp.concatenate([repeated(token_D, (B, 1, D), ("embed",), self.dtype), tokens_BxFxD], axis=1)
    x_BxTxD = constrain(x_BxTxD, ("batch", None, "activation_embed"))
    blocks = Stack(shape.block, self.dtype, self.attend, self.run_blocks)
    x_BxTxD, auxiliary = stack(self, "blocks", blocks, x_BxTxD)
    read_BxD = jax.nn.relu(LayerNorm(role=Role.LAST_NORM, name="final_norm")(x_BxTxD[:, 0]))
    out = outputs(self, read_BxD, shape.outputs)
    return out, auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  return (jnp.zeros((1, *shape.inputs), jnp.float32),)
