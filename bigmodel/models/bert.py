"""BERT (Devlin et al. 2019): a bidirectional encoder, pre-trained by predicting masked tokens."""

import dataclasses
from typing import Unpack, cast

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
  projection,
  repeated,
)
from bigmodel.models.layers.block import BlockShape, RunBlocks, Stack, stack, unrolled
from bigmodel.models.layers.embedding import VOCABULARY, logits, lookup, padded, vocabulary
from bigmodel.models.layers.roles import Role
from bigmodel.models.registry.protocol import Facts, Supplied

TASKS = ("masked_lm",)
SUPPLIED = ("run_blocks",)
NORM_FIRST = False
HEADS = ("masked_lm", "pooler", "none")


def resolve(model: Config, facts: Facts) -> None:
  model.vocab = model.vocab or cast(int, facts["vocab"]) + 1  # plus the mask token
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or 4 * model.width
  model.positions = model.positions or facts["context"]


def check(config: Config) -> None:
  model = config.model
  require(
    not model.positions or config.data.context <= model.positions,
    f"config.data.context: {config.data.context} is more than config.model.positions = {model.positions}",
  )


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> "Bert":
  return Bert(shape_of(config), dtype, **supplied)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes that determine the parameters. In a config, `resolve` replaces sizes of 0."""

  vocab: int = field(0, "entries of the token table; 0: the tokenizer's, plus a mask token", NOT_NEGATIVE)
  width: int = field(64, "size of a token's vector between the layers", POSITIVE)
  layers: int = field(4, "blocks of attention and feed-forward", DEPTH)
  heads: int = field(0, "attention heads; 0: width // head_size", NOT_NEGATIVE)
  head_size: int = field(32, "size of each head", POSITIVE)
  feed_forward: int = field(0, "hidden units; 0: 4 * width", NOT_NEGATIVE)
  activation: str = field("gelu_erf", "activation of the feed-forward blocks", OneOf((*GATED, *ACTIVATIONS)))
  positions: int = field(0, "learned positions; 0: data.context", NOT_NEGATIVE)
  types: int = field(2, "kinds of segments; rows of a corpus are all of the first", POSITIVE)
  epsilon: float = field(1e-12, "added to the variance in norms", POSITIVE)
  dropout: float = field(0.0, "share of activations dropped in training; 0.1 in the paper", BELOW_ONE)
  head: str = field("masked_lm", "on top of the encoder: predicts tokens, pools a sequence, or none", OneOf(HEADS))

  def describe(self) -> dict[str, object]:
    return {"family": "bert", **dataclasses.asdict(self)}

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
      norm_first=False,
      epsilon=self.epsilon,
      causal=False,
      dropout=self.dropout,
    )

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per token; embeddings are those of tokens, positions and types."""
    D = self.width
    head = {"masked_lm": D * D + 3 * D + self.vocab, "pooler": D * D + D, "none": 0}[self.head]
    embedding = (self.vocab + self.positions + self.types) * D
    layers = self.layers * (self.block.dense() + self.block.attention(context))
    read = 2.0 * D * (D + self.vocab) if self.head == "masked_lm" else 0.0
    params = embedding + 2 * D + self.layers * self.block.params()[0] + head
    counts = plain_counts(params, layers + read, embedding, self.block.recomputed(context).times(self.layers))
    padding = 3 * 2.0 * D * (padded(self.vocab) - self.vocab) if self.head == "masked_lm" else 0.0
    return dataclasses.replace(counts, hardware_per_token=counts.hardware_per_token + padding)


class Bert(nn.Module):
  """tokens int[B, T] -> (logits float32[B, T, V], or pooled [B, D], or states [B, T, D]; no auxiliary numbers).

  If a mesh shards the vocabulary, hidden logits of padding come last: see `layers.embedding.logits`.
  """

  shape: Shape
  dtype: DTypeLike = jnp.float32
  attend: Attend = attend_to_all
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(
    self, tokens_BxT: jax.Array, types_BxT: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, D, T = self.shape, self.shape.width, tokens_BxT.shape[1]

    def table(name: str, rows: int, axis: str) -> jax.Array:
      return normal(self, name, (rows, D), (axis, "embed"), Role.TABLE, 0.02)

    embedding_VxD = vocabulary(self, "embedding", shape.vocab, D, Role.TABLE, 0.02)
    positions_PxD = table("positions", shape.positions, "positions")
    types_2xD = table("types", shape.types, "types")
    types = jnp.zeros_like(tokens_BxT) if types_BxT is None else types_BxT
    x_BxTxD = lookup(embedding_VxD, tokens_BxT, VOCABULARY, self.dtype)
    x_BxTxD = x_BxTxD + repeated(positions_PxD[:T], x_BxTxD.shape, ("positions", "embed"), self.dtype)
    x_BxTxD = x_BxTxD + lookup(types_2xD, types, ("types", "embed"), self.dtype)
    x_BxTxD = constrain(x_BxTxD, ("batch", "length", "activation_embed"))
    x_BxTxD = dropout(self, LayerNorm(epsilon=shape.epsilon, name="embedding_norm")(x_BxTxD), shape.dropout)
    blocks = Stack(shape.block, self.dtype, self.attend, self.run_blocks)
    x_BxTxD, auxiliary = stack(self, "blocks", blocks, x_BxTxD)
    if shape.head == "none":
      return x_BxTxD, auxiliary
    if shape.head == "pooler":
      pooled_BxD = projection(self, "pooler", x_BxTxD[:, 0], D, Matrix(("embed", "mlp"), Role.OUTPUT, bias=True))
      return jnp.tanh(pooled_BxD), auxiliary
    x_BxTxD = projection(self, "transform", x_BxTxD, D, Matrix(("embed", "mlp"), Role.HIDDEN, bias=True))
    last_norm = LayerNorm(epsilon=shape.epsilon, role=Role.LAST_NORM, name="transform_norm")
    x_BxTxD = last_norm(ACTIVATIONS["gelu_erf"](x_BxTxD))
    return logits(self, x_BxTxD, embedding_VxD, shape.vocab, bias="output_bias"), auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  del shape
  return (jnp.zeros((1, 1), jnp.int32),)
