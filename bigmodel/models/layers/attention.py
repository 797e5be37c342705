"""Causal attention with rotary positions and grouped key-value heads."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.models.layers.basic import RMSNorm, constrain, projection

# attend(q_BxTxHxK, k_BxTxGxK, v_BxTxGxK) -> BxTxHxK; query head h reads key-value head h // (H // G).
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attend(q_BxTxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array) -> jax.Array:
  """Causal softmax attention, as batched matrix products over (batch, head)."""
  T, K = q_BxTxHxK.shape[1], q_BxTxHxK.shape[3]
  k_BxTxHxK, v_BxTxHxK = (repeat_heads(x, q_BxTxHxK.shape[2]) for x in (k_BxTxGxK, v_BxTxGxK))
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxK))
  scores_BxHxTxT = jnp.einsum("bhtk,bhsk->bhts", q * K**-0.5, k).astype(jnp.float32)
  causal_TxT = np.tril(np.ones((T, T), bool))
  weights_BxHxTxT = jax.nn.softmax(jnp.where(causal_TxT, scores_BxHxTxT, -1e30), axis=-1)
  out_BxHxTxK = jnp.einsum("bhts,bhsk->bhtk", weights_BxHxTxT.astype(v.dtype), v)
  return out_BxHxTxK.transpose(0, 2, 1, 3)


def repeat_heads(x_BxTxGxK: jax.Array, heads: int) -> jax.Array:
  """Key-value heads, one for each of `heads` query heads."""
  groups = x_BxTxGxK.shape[2]
  return x_BxTxGxK if groups == heads else jnp.repeat(x_BxTxGxK, heads // groups, axis=2)


def rotary(x_BxTxHxK: jax.Array, base: float = 10_000.0) -> jax.Array:
  """Rotates pairs (i, i + K/2) by position * base^(-2i/K) (Su et al. 2021, equation 34)."""
  T, K = x_BxTxHxK.shape[1], x_BxTxHxK.shape[3]
  frequency = base ** -(np.arange(K // 2) / (K // 2))
  angle_TxK2 = np.arange(T)[:, None] * frequency
  cos, sin = (np.asarray(f(angle_TxK2), np.float32)[:, None, :] for f in (np.cos, np.sin))
  first, second = jnp.split(x_BxTxHxK, 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BxTxHxK.dtype)


class Attention(nn.Module):
  """Projections around `attend`; G = kv_heads groups of H // G query heads share keys and values."""

  heads: int
  kv_heads: int
  head_size: int
  qk_norm: bool
  out_scale: float
  dtype: jnp.dtype
  attend: Attend = attend

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    B, T, D = x_BxTxD.shape
    H, G, K = self.heads, self.kv_heads, self.head_size
    q = projection(self, "query", x_BxTxD, H * K, ("embed", "heads")).reshape(B, T, H, K)
    k = projection(self, "key", x_BxTxD, G * K, ("embed", "kv_heads")).reshape(B, T, G, K)
    v = projection(self, "value", x_BxTxD, G * K, ("embed", "kv_heads")).reshape(B, T, G, K)
    if self.qk_norm:
      q, k = RMSNorm(axis_name="head_size", name="query_norm")(q), RMSNorm(axis_name="head_size", name="key_norm")(k)
    q, k = rotary(q), rotary(k)
    q = constrain(q, ("batch", "length", "heads", "head_size"))
    k, v = (constrain(x, ("batch", "length", "kv_heads", "head_size")) for x in (k, v))
    out_BxTxHK = self.attend(q, k, v).reshape(B, T, H * K)
    return projection(self, "out", out_BxTxHK, D, ("heads", "embed"), self.out_scale)
