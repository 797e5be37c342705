"""BERT (Devlin et al. 2019): a bidirectional encoder, pre-trained by guessing masked tokens."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.accounting import Counts, plain_counts
from bigmodel.config import Config, require, require_choice
from bigmodel.models.layers.attention import Attend, attend_to_all
from bigmodel.models.layers.basic import (
  ACTIVATIONS,
  GATED,
  LayerNorm,
  constrain,
  dropout,
  normal,
  projection,
  repeated,
)
from bigmodel.models.layers.block import BlockShape, RunBlocks, stack, unrolled
from bigmodel.models.layers.embedding import VOCABULARY, logits, lookup, padded, vocabulary
from bigmodel.models.layers.roles import Role

TASKS = ("masked_lm",)
SUPPLIED = ("run_blocks",)
NORM_FIRST = False
HEADS = ("masked_lm", "pooler", "none")


def fields() -> dict[str, Any]:
  """The fields of `config.model`. Zero means: derived, see `resolve`."""
  return {
    "vocab": 0,  # 0: the tokenizer's, and one more that masks
    "width": 64,
    "layers": 4,
    "heads": 0,  # 0: width // head_size
    "head_size": 32,
    "feed_forward": 0,  # 0: 4 * width
    "activation": "gelu_erf",
    "positions": 0,  # 0: data.context
    "types": 2,  # of segments; rows of a corpus are all of the first
    "epsilon": 1e-12,
    "dropout": 0.0,  # the paper's is 0.1
    "head": "masked_lm",  # what stands on the encoder: guesses of tokens, the pooler of whole sequences, or nothing
  }


def resolve(model: Config, facts: dict[str, Any]) -> None:
  model.vocab = model.vocab or facts["vocab"] + 1
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.feed_forward = model.feed_forward or 4 * model.width
  model.positions = model.positions or facts["context"]


def check(config: Config) -> None:
  model = config.model
  require_choice("model.activation", model.activation, (*GATED, *ACTIVATIONS))
  require_choice("model.head", model.head, HEADS)
  for name in ("width", "layers", "head_size", "types", "epsilon"):
    require(model[name] > 0, f"config.model.{name}: {model[name]} is not positive")
  for name in ("vocab", "heads", "feed_forward", "positions"):
    require(model[name] >= 0, f"config.model.{name}: {model[name]} is negative")
  require(0 <= model.dropout < 1, f"config.model.dropout: {model.dropout} is not in [0, 1)")
  require(
    not model.positions or config.data.context <= model.positions,
    f"config.data.context: {config.data.context} is more than config.model.positions = {model.positions}",
  )


def shape_of(config: Config) -> "Shape":
  return Shape(**{name: config.model[name] for name in fields()})


def build(config: Config, dtype: Any, **arguments: Any) -> "Bert":
  return Bert(shape_of(config), dtype, **arguments)


@dataclasses.dataclass(frozen=True)
class Shape:
  vocab: int
  width: int
  layers: int
  heads: int
  head_size: int
  feed_forward: int
  activation: str = "gelu_erf"
  positions: int = 512
  types: int = 2
  epsilon: float = 1e-12
  dropout: float = 0.0
  head: str = "masked_lm"

  def describe(self) -> dict[str, Any]:
    return {"family": "bert", **dataclasses.asdict(self)}

  @property
  def block(self) -> BlockShape:
    return BlockShape(
      self.width, self.layers, self.heads, self.heads, self.head_size, self.feed_forward, self.activation,
      norm_first=False, epsilon=self.epsilon, causal=False, dropout=self.dropout,
    )  # fmt: skip

  def counts(self, context: int) -> Counts:
    """Parameters, and training FLOPs per token; embeddings are those of tokens, positions and types."""
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

  Where a mesh splits the vocabulary, hidden logits of its padding follow: see `layers.embedding.logits`.
  """

  shape: Shape
  dtype: Any = jnp.float32
  attend: Attend = attend_to_all
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(
    self, tokens_BxT: jax.Array, types_BxT: jax.Array | None = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    shape, D, T = self.shape, self.shape.width, tokens_BxT.shape[1]
    table = lambda name, rows, axis: normal(self, name, (rows, D), (axis, "embed"), Role.TABLE, 0.02)
    embedding_VxD = vocabulary(self, "embedding", shape.vocab, D, Role.TABLE, 0.02)
    positions_PxD = table("positions", shape.positions, "positions")
    types_2xD = table("types", shape.types, "types")
    types = jnp.zeros_like(tokens_BxT) if types_BxT is None else types_BxT
    x_BxTxD = lookup(embedding_VxD, tokens_BxT, VOCABULARY, self.dtype)
    x_BxTxD = x_BxTxD + repeated(positions_PxD[:T], x_BxTxD.shape, ("positions", "embed"), self.dtype)
    x_BxTxD = x_BxTxD + lookup(types_2xD, types, ("types", "embed"), self.dtype)
    x_BxTxD = constrain(x_BxTxD, ("batch", "length", "activation_embed"))
    x_BxTxD = dropout(self, LayerNorm(epsilon=shape.epsilon, name="embedding_norm")(x_BxTxD), shape.dropout)
    x_BxTxD, auxiliary = stack(self, "blocks", shape.block, self.dtype, self.attend, self.run_blocks, x_BxTxD)
    if shape.head == "none":
      return x_BxTxD, auxiliary
    if shape.head == "pooler":
      pooled_BxD = projection(self, "pooler", x_BxTxD[:, 0], D, ("embed", "mlp"), Role.OUTPUT, bias=True)
      return jnp.tanh(pooled_BxD), auxiliary
    x_BxTxD = projection(self, "transform", x_BxTxD, D, ("embed", "mlp"), Role.HIDDEN, bias=True)
    last_norm = LayerNorm(epsilon=shape.epsilon, role=Role.LAST_NORM, name="transform_norm")
    x_BxTxD = last_norm(ACTIVATIONS["gelu_erf"](x_BxTxD))
    return logits(self, x_BxTxD, embedding_VxD, shape.vocab, bias="output_bias"), auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  del shape
  return (jnp.zeros((1, 1), jnp.int32),)
