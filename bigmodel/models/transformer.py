"""The encoder-decoder Transformer (Vaswani et al. 2017), with one table for source, target and output."""

import dataclasses
from typing import Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bigmodel.accounting import Counts, Recomputed, plain_counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, DEPTH, NOT_NEGATIVE, POSITIVE, OneOf, field, read
from bigmodel.models.layers.attention import Attend, attend, attend_to_all
from bigmodel.models.layers.basic import (
  ACTIVATIONS,
  GATED,
  constrain,
  dropout,
  sinusoids,
)
from bigmodel.models.layers.block import BlockShape, RunBlocks, Stack, stack, unrolled
from bigmodel.models.layers.embedding import VOCABULARY, logits, lookup, padded, vocabulary
from bigmodel.models.layers.roles import Role
from bigmodel.models.registry.protocol import Facts, Supplied

TASKS = ("seq2seq",)
SUPPLIED = ("run_blocks",)
NORM_FIRST = False


def resolve(model: Config, facts: Facts) -> None:
  model.vocab = model.vocab or facts["vocab"]
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or 4 * model.width


def check(config: Config) -> None:
  model = config.model
  require(model.width % 2 == 0, f"config.model.width: {model.width} is odd; sines and cosines need pairs")


def shape_of(config: Config) -> "Shape":
  return read(Shape, config.model)


def build(config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> "Transformer":
  return Transformer(shape_of(config), dtype, **supplied)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes that determine the parameters. In a config, `resolve` replaces sizes of 0."""

  vocab: int = field(0, "entries of the token table; 0: the tokenizer's", NOT_NEGATIVE)
  width: int = field(64, "size of a token's vector between the layers", POSITIVE)
  layers: int = field(2, "blocks of the encoder and of the decoder", DEPTH)
  heads: int = field(0, "attention heads; 0: width // head_size", NOT_NEGATIVE)
  head_size: int = field(32, "size of each head", POSITIVE)
  feed_forward: int = field(0, "hidden units; 0: 4 * width", NOT_NEGATIVE)
  activation: str = field("relu", "activation of the feed-forward blocks", OneOf((*GATED, *ACTIVATIONS)))
  epsilon: float = field(1e-6, "added to the variance in norms", POSITIVE)
  dropout: float = field(
    0.0, "share of activations dropped in training; 0.1 in the paper, or 0.3 for its big model", BELOW_ONE
  )

  def describe(self) -> dict[str, object]:
    return {"family": "transformer", **dataclasses.asdict(self)}

  def block(self, decoder: bool) -> BlockShape:
    return BlockShape(
      width=self.width,
      layers=self.layers,
      heads=self.heads,
      kv_heads=self.heads,
      head_size=self.head_size,
      feed_forward=self.feed_forward,
      activation=self.activation,
      norm_first=False,
      gives_outputs=decoder,
      epsilon=self.epsilon,
      causal=decoder,
      cross=decoder,
      dropout=self.dropout,
    )

  def counts(self, context: int) -> Counts:
    """Returns parameters, and training FLOPs per token of source and target, each half of `context` long."""
    encoder, decoder, T = self.block(False), self.block(True), context / 2
    embedding = self.vocab * self.width
    params = self.layers * (encoder.params()[0] + decoder.params()[0])
    attention = self.layers * (encoder.attention(T) + decoder.attention(T, T)) / 2
    layers = self.layers * (encoder.dense() + decoder.dense()) / 2 + attention
    # Each token passes through one of the two stacks.
    stacks = zip(encoder.recomputed(T), decoder.recomputed(T, T), strict=True)
    recomputed = Recomputed(*map(sum, stacks)).times(self.layers / 2)
    counts = plain_counts(embedding + params, layers + embedding, embedding, recomputed)
    padding = 3 * self.width * (padded(self.vocab) - self.vocab)
    return dataclasses.replace(counts, hardware_per_token=counts.hardware_per_token + padding)


class Transformer(nn.Module):
  """(source int[B, S], target int[B, T]) -> (logits of the token after each target token float32[B, T, V], {}).

  If a mesh shards the vocabulary, hidden logits of padding come last: see `layers.embedding.logits`.
  """

  shape: Shape
  dtype: DTypeLike = jnp.float32
  run_blocks: RunBlocks = unrolled
  attend: Attend = attend

  @nn.compact
  def __call__(self, source_BxS: jax.Array, target_BxT: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, D = self.shape, self.shape.width
    embedding_VxD = vocabulary(self, "embedding", shape.vocab, D, Role.SCALED_TABLE, D**-0.5)

    def embedded(tokens_BxT: jax.Array) -> jax.Array:
      positions_TxD = sinusoids(np.arange(tokens_BxT.shape[1]), D).astype(self.dtype)
      x_BxTxD = dropout(
        self, lookup(embedding_VxD, tokens_BxT, VOCABULARY, self.dtype) * D**0.5 + positions_TxD, shape.dropout
      )
      return constrain(x_BxTxD, ("batch", "length", "activation_embed"))

    encoder = Stack(shape.block(False), self.dtype, attend_to_all, self.run_blocks)
    decoder = Stack(shape.block(True), self.dtype, self.attend, self.run_blocks)
    memory_BxSxD, _ = stack(self, "encoder_blocks", encoder, embedded(source_BxS))
    x_BxTxD, auxiliary = stack(self, "decoder_blocks", decoder, embedded(target_BxT), memory_BxSxD)
    return logits(self, x_BxTxD, embedding_VxD, shape.vocab), auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  del shape
  return (jnp.zeros((1, 1), jnp.int32),) * 2
