"""Decoder-only Transformer: pre-norm RMSNorm, rotary positions, grouped-query attention, optional experts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.accounting import Counts
from bigmodel.models.layers.attention import Attend, Attention, attend
from bigmodel.models.layers.basic import FeedForward, RMSNorm, constrain, gathered
from bigmodel.models.layers.experts import Experts, slots

# block(parameters of one layer, x_BxTxD) -> (x_BxTxD, auxiliary loss)
BlockFunction = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]
# run_blocks(block, parameters of all layers stacked, x_BxTxD) -> (x_BxTxD, sum of auxiliary losses)
RunBlocks = Callable[[BlockFunction, Any, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Shape:
  """Everything that decides the parameters of a decoder, and how its tokens are routed."""

  vocab: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_size: int
  feed_forward: int
  activation: str
  qk_norm: bool
  tie_embeddings: bool
  experts: int = 0  # 0: one dense feed-forward block
  experts_per_token: int = 2
  expert_group: int = 0
  expert_capacity: float = 1.25

  def describe(self) -> dict[str, Any]:
    facts = {"family": "decoder", **dataclasses.asdict(self)}
    return {name: value for name, value in facts.items() if self.experts or not name.startswith("expert")}

  @property
  def matrices(self) -> int:
    """Parameters of the matrices of one feed-forward block."""
    return (3 if self.activation == "swiglu" else 2) * self.width * self.feed_forward

  def params(self) -> dict[str, int]:
    """Exact parameter counts, by what they are for; `active` are those that one token meets."""
    D, K = self.width, self.head_size
    attention = 2 * D * self.heads * K + 2 * D * self.kv_heads * K + (2 * K if self.qk_norm else 0)
    router = D * self.experts
    block = attention + 2 * D + router + max(1, self.experts) * self.matrices
    idle = max(0, self.experts - self.experts_per_token) * self.matrices if self.experts else 0
    embedding = self.vocab * D * (1 if self.tie_embeddings else 2)
    blocks = self.layers * block + D
    total = blocks + embedding
    return {"blocks": blocks, "embedding": embedding, "total": total, "active": total - self.layers * idle}

  def counts(self, context: int) -> Counts:
    """Parameters and training FLOPs per token (forward and backward: three forwards).

    Non-embedding leaves out the token embedding and, where untied, the output matrix.
    """
    D, T, HK, GK = self.width, context, self.heads * self.head_size, self.kv_heads * self.head_size
    params = self.params()
    feed_forward = self.matrices
    computed = self.matrices
    if self.experts:
      feed_forward = self.experts_per_token * self.matrices + D * self.experts
      group = min(self.expert_group, T) if self.expert_group else T
      C = slots(group, self.experts, self.experts_per_token, self.expert_capacity)
      computed = self.experts * C / group * self.matrices + D * self.experts
    projections = 2 * D * HK + 2 * D * GK
    dense = 2 * (self.layers * (projections + feed_forward) + D * self.vocab)
    # A token at position t attends to t + 1 keys: (T + 1) / 2 on average.
    exact = dense + self.layers * 2 * 2 * HK * (T + 1) / 2
    chinchilla = dense + 2 * self.vocab * D + self.layers * (2 * 2 * T * HK + 3 * self.heads * T)
    return Counts(
      params_total=params["total"],
      params_non_embedding=params["blocks"],
      params_active=params["active"],
      chinchilla_per_token=3.0 * chinchilla,
      exact_per_token=3.0 * exact,
      # Slots of experts that stay empty are computed too.
      hardware_per_token=3.0 * (exact + 2 * self.layers * (computed - feed_forward)),
      layers_per_token=3.0 * (exact - 2 * D * self.vocab),
      attention_per_token=3.0 * self.layers * 2 * 2 * HK * (T + 1) / 2,
    )


class Block(nn.Module):
  """x_BxTxD -> (x_BxTxD, load-balancing loss of the experts or 0)."""

  shape: Shape
  dtype: jnp.dtype
  attend: Attend

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = self.shape
    out_scale = (2 * shape.layers) ** -0.5  # the residual stream's variance stays put with depth
    attention = Attention(
      shape.heads, shape.kv_heads, shape.head_size, shape.qk_norm, out_scale, self.dtype, self.attend, name="attention"
    )
    x_BxTxD = x_BxTxD + attention(RMSNorm(name="attention_norm")(x_BxTxD))
    normed_BxTxD = RMSNorm(name="feed_forward_norm")(x_BxTxD)
    if shape.experts:
      experts = Experts(
        shape.experts,
        shape.experts_per_token,
        shape.expert_group,
        shape.expert_capacity,
        shape.feed_forward,
        shape.activation,
        out_scale,
        name="experts",
      )
      out_BxTxD, balance = experts(normed_BxTxD)
    else:
      feed_forward = FeedForward(shape.feed_forward, shape.activation, out_scale, name="feed_forward")
      out_BxTxD, balance = feed_forward(normed_BxTxD), jnp.float32(0)
    return constrain(x_BxTxD + out_BxTxD, ("batch", "length", "activation_embed")), balance


def unrolled(block: BlockFunction, stacked: Any, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One layer after another, each with its slice of the stacked parameters."""
  leaves, structure = jax.tree.flatten(stacked)
  split: Any = [jax.lax.split(leaf, (1,) * leaf.shape[0]) for leaf in leaves]  # its gradient is one concatenation
  total = jnp.float32(0)
  for layer in zip(*split, strict=True):
    x_BxTxD, balance = block(jax.tree.unflatten(structure, [leaf[0] for leaf in layer]), x_BxTxD)
    total = total + balance
  return x_BxTxD, total


class Decoder(nn.Module):
  """tokens int[B, T] -> (logits float32[B, T, V], mean load-balancing loss of the layers).

  The parameters of the blocks are stacked over layers, whichever way they are run: a
  checkpoint and a run's bits do not say whether the layers were unrolled, scanned or piped.
  """

  shape: Shape
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  attend: Attend = attend
  run_blocks: RunBlocks = unrolled

  @nn.compact
  def __call__(self, tokens_BxT: jax.Array) -> tuple[jax.Array, jax.Array]:
    shape = self.shape
    axes = ("vocab", "embed")
    embed_init = nn.with_logical_partitioning(nn.initializers.normal(shape.width**-0.5), axes)
    embedding_VxD: Any = self.param("embedding", embed_init, (shape.vocab, shape.width), jnp.float32)
    table_VxD = gathered(embedding_VxD.astype(self.dtype), axes)
    x_BxTxD = table_VxD[tokens_BxT]
    x_BxTxD = constrain(x_BxTxD, ("batch", "length", "activation_embed"))

    block = Block(shape, self.dtype, self.attend, parent=None)
    blocks: Any = self.param("blocks", lambda key: _stacked_init(key, shape))
    run: Any = lambda params, x: block.apply({"params": params}, x)
    x_BxTxD, balance = self.run_blocks(run, blocks, x_BxTxD)

    x_BxTxD = RMSNorm(name="final_norm")(x_BxTxD)
    output_VxD: Any = embedding_VxD
    if not shape.tie_embeddings:
      output_VxD = self.param("output", embed_init, (shape.vocab, shape.width), jnp.float32)
    logits_BxTxV = jnp.einsum("btd,vd->btv", x_BxTxD, gathered(output_VxD.astype(self.dtype), axes)).astype(jnp.float32)
    return constrain(logits_BxTxV, ("batch", "length", "vocab")), balance / shape.layers


def _stacked_init(key: jax.Array, shape: Shape) -> Any:
  """Parameters of all blocks, a key each, with the axis `layers` in front."""
  block, x_BxTxD = Block(shape, jnp.float32, attend, parent=None), jnp.zeros((1, 1, shape.width))
  boxed = jax.vmap(lambda key: block.init(key, x_BxTxD)["params"])(jax.random.split(key, shape.layers))
  return nn.meta.add_axis(boxed, 0, {nn.PARTITION_NAME: "layers"})
