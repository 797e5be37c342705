"""Decoder-only Transformers: GPT, Turing-NLG, Gopher, Chinchilla, Llama and, with experts, Mixtral.

The defaults are pre-norm RMSNorm and rotary positions. Older models use LayerNorm, post-norm,
biases, and learned or relative positions.
"""

import dataclasses
from typing import Unpack, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bigmodel.accounting import Counts
from bigmodel.config import Config, require
from bigmodel.declarations import BELOW_ONE, DEPTH, NOT_NEGATIVE, POSITIVE, OneOf, field, read
from bigmodel.models.layers.attention import Attend, Cache, Rotary, Start, attend
from bigmodel.models.layers.basic import (
  ACTIVATIONS,
  GATED,
  NORMS,
  constrain,
  dropout,
  norm_params,
  normal,
  repeated,
)
from bigmodel.models.layers.block import Block, BlockShape, Results, RunBlocks, Stack, stack, unrolled
from bigmodel.models.layers.embedding import VOCABULARY, logits, lookup, padded, vocabulary
from bigmodel.models.layers.experts import Auxiliary
from bigmodel.models.layers.roles import Role
from bigmodel.models.registry.protocol import Facts, Supplied

TASKS = ("causal_lm",)
SUPPLIED = ("attend", "run_blocks")
IN_PIECES = ("data.context", "model.layers")
POSITIONS = ("rotary", "learned", "relative", "none")


def resolve(model: Config, facts: Facts) -> None:
  """Replaces zeros in `config.model` by the values that they stand for, in place."""
  model.vocab = model.vocab or facts["vocab"]
  model.heads = model.heads or max(1, model.width // model.head_size)
  model.kv_heads = model.kv_heads or model.heads
  model.feed_forward = model.feed_forward or default_feed_forward(model)


def default_feed_forward(model: Config) -> int:
  return -(-8 * model.width // 24) * 8 if model.activation in GATED else 4 * model.width


def check(config: Config) -> None:
  """Raises `UserError` if fields of `config.model` are inconsistent."""
  model = config.model
  require(
    model.positions != "rotary" or model.head_size % 2 == 0,
    f"config.model.head_size: {model.head_size} is odd; rotary positions need pairs",
  )
  require(
    model.rotary_low < model.rotary_high,
    f"config.model.rotary_high: {model.rotary_high} is not more than rotary_low = {model.rotary_low}",
  )
  if model.experts:
    require(model.experts > 1, f"config.model.experts: {model.experts} is neither 0 nor at least 2")
    chosen, group = model.experts_per_token, model.expert_group
    require(
      1 <= chosen <= model.experts,
      f"config.model.experts_per_token: {chosen} is not between 1 and experts = {model.experts}",
    )
    require(
      config.data.context % (group or 1) == 0,
      f"config.model.expert_group: {group} does not divide data.context = {config.data.context}",
    )
  heads = model.heads or max(1, model.width // model.head_size)
  groups = model.kv_heads or heads
  require(heads % groups == 0, f"config.model.kv_heads: {groups} does not divide heads = {heads}")


def build(config: Config, dtype: DTypeLike, **supplied: Unpack[Supplied]) -> "Decoder":
  return Decoder(shape_of(config), dtype, **supplied)


def shape_of(config: Config) -> "Shape":
  """Returns the shape of a resolved config."""
  return read(Shape, config.model, context=config.data.context if config.model.positions == "learned" else 0)


@dataclasses.dataclass(frozen=True)
class Shape:
  """The sizes that determine the parameters of a decoder and the routing of its tokens.

  In a config, `resolve` replaces sizes of 0.
  """

  vocab: int = field(0, "entries of the token table; 0: the tokenizer's", NOT_NEGATIVE)
  width: int = field(64, "size of a token's vector between the layers", POSITIVE)
  layers: int = field(4, "blocks of attention and feed-forward", DEPTH)
  heads: int = field(0, "attention heads; 0: width // head_size", NOT_NEGATIVE)
  kv_heads: int = field(0, "heads of keys and values, each shared by as many queries; 0: heads", NOT_NEGATIVE)
  head_size: int = field(32, "size of each head", POSITIVE)
  feed_forward: int = field(
    0, "hidden units; 0: 4 * width, or 8/3 * width rounded up to a multiple of 8 for gated activations", NOT_NEGATIVE
  )
  activation: str = field("swiglu", "activation of the feed-forward blocks", OneOf((*GATED, *ACTIVATIONS)))
  qk_norm: bool = field(False, "normalise queries and keys")
  tie_embeddings: bool = field(True, "whether the token table also gives the logits")
  experts: int = field(0, "experts per layer, of which each token uses some; 0: one block for all tokens", NOT_NEGATIVE)
  experts_per_token: int = field(2, "experts that each token uses", POSITIVE)
  expert_group: int = field(0, "tokens of a row that are routed together; 0: the whole row", NOT_NEGATIVE)
  expert_capacity: float = field(
    1.25, "slots of an expert over its even share of a group, in training; 0: drop no choice", NOT_NEGATIVE
  )
  norm: str = field("rms", "RMSNorm or LayerNorm", OneOf(NORMS))
  norm_first: bool = field(True, "pre-norm: norms before attention and feed-forward; otherwise after the residual sums")
  epsilon: float = field(1e-6, "added to the variance in norms", POSITIVE)
  bias: bool = field(False, "whether projections have biases")
  positions: str = field("rotary", "kind of position information", OneOf(POSITIONS))
  rotary_base: float = field(10_000.0, "longest wavelength of rotary positions over 2 pi", POSITIVE)
  rotary_factor: float = field(
    1.0, "multiplies rotary wavelengths, for contexts longer than those of pre-training", POSITIVE, added_later=True
  )
  rotary_context: int = field(
    0,
    "context of pre-training: rotary_factor spares short wavelengths, as in Llama 3.1; 0: it multiplies all",
    NOT_NEGATIVE,
    added_later=True,
  )
  rotary_low: float = field(
    1.0, "turns in rotary_context up to which a wavelength is multiplied fully", NOT_NEGATIVE, added_later=True
  )
  rotary_high: float = field(
    4.0, "turns in rotary_context from which a wavelength is kept; more than rotary_low", POSITIVE, added_later=True
  )
  dropout: float = field(0.0, "share of activations dropped in training", BELOW_ONE)
  context: int = 0  # number of learned positions; not a field of the config

  def describe(self) -> dict[str, object]:
    facts = {"family": "decoder", **dataclasses.asdict(self)}
    unused = () if self.experts else ("expert",)
    if self.rotary_factor == 1:
      unused += ("rotary_factor", "rotary_context", "rotary_low", "rotary_high")
    return {name: value for name, value in facts.items() if not name.startswith(unused)}

  @property
  def block(self) -> BlockShape:
    names = {field.name for field in dataclasses.fields(BlockShape)}
    same = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
    rotary = None
    if self.positions == "rotary":
      rotary = Rotary(self.rotary_base, self.rotary_factor, self.rotary_context, self.rotary_low, self.rotary_high)
    return BlockShape(**same, rotary=rotary, relative=self.positions == "relative", gives_outputs=not self.norm_first)

  def params(self) -> dict[str, int]:
    """Returns exact parameter counts by purpose; `active` counts those that one token uses."""
    block, idle = self.block.params()
    final = norm_params(self.norm, self.width) if self.norm_first else 0
    embedding = self.vocab * self.width * (1 if self.tie_embeddings else 2) + self.context * self.width
    blocks = self.layers * block + final
    total = blocks + embedding
    return {"blocks": blocks, "embedding": embedding, "total": total, "active": total - self.layers * idle}

  def counts(self, context: int) -> Counts:
    """Returns parameters and training FLOPs per token (forward and backward: three forwards).

    Non-embedding parameters exclude the embeddings of tokens and positions and, where untied, the output matrix.
    """
    D, T, HK, block = self.width, context, self.heads * self.head_size, self.block
    params = self.params()
    dense = self.layers * block.dense() + 2 * D * self.vocab
    exact = dense + self.layers * block.attention(T)
    chinchilla = dense + 2 * self.vocab * D + self.layers * (2 * 2 * T * HK + 3 * self.heads * T)
    return Counts(
      params_total=params["total"],
      params_non_embedding=params["blocks"],
      params_active=params["active"],
      chinchilla_per_token=3.0 * chinchilla,
      exact_per_token=3.0 * exact,
      # Empty slots of experts are computed, too.
      # The logits of padding are computed, too.
      hardware_per_token=3.0 * (exact + self.layers * block.idle(T) + 2 * D * (padded(self.vocab) - self.vocab)),
      recomputed_per_token=block.recomputed(T).times(self.layers),
    )


class Decoder(nn.Module):
  """tokens int[B, T] -> (logits float32[B, T, V], auxiliary numbers of the experts, means over layers).

  If a mesh shards the vocabulary, hidden logits of padding come last: see `layers.embedding.logits`.
  The parameters of the blocks are always stacked over layers, so checkpoints and results do not
  depend on whether the layers are unrolled, scanned or pipelined. With `caches`, one per layer and
  filled up to position `start`, the tokens are those from `start` on, the parameters of the blocks
  are a list over layers, and the new caches are returned in place of the auxiliary numbers.
  """

  shape: Shape
  dtype: DTypeLike = jnp.float32
  attend: Attend = attend
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(
    self, tokens_BxT: jax.Array, caches: list[Cache] | None = None, start: Start = 0
  ) -> tuple[jax.Array, Auxiliary | list[Cache]]:
    shape = self.shape
    deviation = shape.width**-0.5
    embedding_VxD = vocabulary(self, "embedding", shape.vocab, shape.width, Role.SHRINKING_TABLE, deviation)
    x_BxTxD = lookup(embedding_VxD, tokens_BxT, VOCABULARY, self.dtype)
    if shape.positions == "learned":
      named = ("positions", "embed")
      learned_CxD = normal(self, "positions", (shape.context, shape.width), named, Role.SHRINKING_TABLE, deviation)
      learned_TxD = jax.lax.dynamic_slice_in_dim(learned_CxD, start, tokens_BxT.shape[1])
      x_BxTxD = x_BxTxD + repeated(learned_TxD, x_BxTxD.shape, named, self.dtype)
    x_BxTxD = constrain(dropout(self, x_BxTxD, shape.dropout), ("batch", "length", "activation_embed"))

    if caches is None:
      blocks = Stack(shape.block, self.dtype, self.attend, self.run_blocks)
      x_BxTxD, auxiliary = stack(self, "blocks", blocks, x_BxTxD)
      auxiliary = jax.tree.map(lambda total: total / shape.layers, auxiliary)
    else:
      block, auxiliary = Block(shape.block, self.dtype, self.attend, parent=None), []
      for params, cache in zip(self.get_variable("params", "blocks"), caches, strict=True):
        x_BxTxD, _, cache = cast(Results, block.apply({"params": params}, x_BxTxD, None, cache, start))
        auxiliary.append(cache)

    if shape.norm_first:
      x_BxTxD = NORMS[shape.norm](epsilon=shape.epsilon, role=Role.LAST_NORM, name="final_norm")(x_BxTxD)
    output_VxD = embedding_VxD
    if not shape.tie_embeddings:
      output_VxD = vocabulary(self, "output", shape.vocab, shape.width, Role.OUTPUT_TABLE, deviation)
    logits_BxTxV = logits(self, x_BxTxD, output_VxD, shape.vocab)
    return logits_BxTxV if caches is None else logits_BxTxV[..., : shape.vocab], auxiliary


def example(shape: Shape) -> tuple[jax.Array, ...]:
  """Returns inputs of the smallest size, for computing initial values."""
  del shape
  return (jnp.zeros((1, 1), jnp.int32),)
