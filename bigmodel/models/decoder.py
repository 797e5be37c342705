"""Decoder-only Transformer: pre-norm RMSNorm, rotary positions, grouped-query attention."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.accounting import Counts
from bigmodel.models.layers.attention import Attend, Attention, attend
from bigmodel.models.layers.basic import FeedForward, RMSNorm


@dataclasses.dataclass(frozen=True)
class Shape:
  """Everything that decides the parameters of a decoder."""

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

  def describe(self) -> dict[str, Any]:
    return {"family": "decoder", **dataclasses.asdict(self)}

  def params(self) -> dict[str, int]:
    """Exact parameter counts, by what they are for."""
    D, F, K = self.width, self.feed_forward, self.head_size
    attention = 2 * D * self.heads * K + 2 * D * self.kv_heads * K + (2 * K if self.qk_norm else 0)
    feed_forward = (3 if self.activation == "swiglu" else 2) * D * F
    blocks = self.layers * (attention + feed_forward + 2 * D) + D
    embedding = self.vocab * D * (1 if self.tie_embeddings else 2)
    return {"blocks": blocks, "embedding": embedding, "total": blocks + embedding}

  def counts(self, context: int) -> Counts:
    """Parameters and training FLOPs per token (forward and backward: three forwards).

    Non-embedding leaves out the token embedding and, where untied, the output matrix.
    """
    D, T, HK, GK = self.width, context, self.heads * self.head_size, self.kv_heads * self.head_size
    params = self.params()
    matrices = (3 if self.activation == "swiglu" else 2) * D * self.feed_forward
    projections = 2 * D * HK + 2 * D * GK
    dense = 2 * (self.layers * (projections + matrices) + D * self.vocab)
    # A token at position t attends to t + 1 keys: (T + 1) / 2 on average.
    exact = dense + self.layers * 2 * 2 * HK * (T + 1) / 2
    chinchilla = dense + 2 * self.vocab * D + self.layers * (2 * 2 * T * HK + 3 * self.heads * T)
    return Counts(
      params_total=params["total"],
      params_non_embedding=params["blocks"],
      params_active=params["total"],
      chinchilla_per_token=3.0 * chinchilla,
      exact_per_token=3.0 * exact,
      hardware_per_token=3.0 * exact,  # nothing is recomputed
    )


class Block(nn.Module):
  shape: Shape
  dtype: jnp.dtype
  attend: Attend

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    shape = self.shape
    out_scale = (2 * shape.layers) ** -0.5  # the residual stream's variance stays put with depth
    attention = Attention(
      shape.heads, shape.kv_heads, shape.head_size, shape.qk_norm, out_scale, self.dtype, self.attend, name="attention"
    )
    x_BxTxD = x_BxTxD + attention(RMSNorm(name="attention_norm")(x_BxTxD))
    feed_forward = FeedForward(shape.feed_forward, shape.activation, out_scale, name="feed_forward")
    return x_BxTxD + feed_forward(RMSNorm(name="feed_forward_norm")(x_BxTxD))


class Decoder(nn.Module):
  """tokens int[B, T] -> logits float32[B, T, V]."""

  shape: Shape
  dtype: jnp.dtype = jnp.float32  # pyright: ignore[reportAssignmentType]
  attend: Attend = attend

  @nn.compact
  def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
    shape = self.shape
    axes = ("vocab", "embed")
    embed_init = nn.with_logical_partitioning(nn.initializers.normal(shape.width**-0.5), axes)
    embedding_VxD: Any = self.param("embedding", embed_init, (shape.vocab, shape.width), jnp.float32)
    x_BxTxD = embedding_VxD[tokens_BxT].astype(self.dtype)
    x_BxTxD = nn.with_logical_constraint(x_BxTxD, ("batch", "length", "activation_embed"))
    for layer in range(shape.layers):
      x_BxTxD = Block(shape, self.dtype, self.attend, name=f"block_{layer}")(x_BxTxD)
      x_BxTxD = nn.with_logical_constraint(x_BxTxD, ("batch", "length", "activation_embed"))
    x_BxTxD = RMSNorm(name="final_norm")(x_BxTxD)
    output_VxD: Any = embedding_VxD
    if not shape.tie_embeddings:
      output_VxD = self.param("output", embed_init, (shape.vocab, shape.width), jnp.float32)
    return jnp.einsum("btd,vd->btv", x_BxTxD, output_VxD.astype(self.dtype)).astype(jnp.float32)
