"""Attention with rotary or relative positions, grouped key-value heads, and a cache for decoding."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from bigmodel.models.layers.basic import (
  Matrix,
  RMSNorm,
  constrain,
  einsum_float32,
  projection,
  repeated,
  sinusoids,
  zeros,
)
from bigmodel.models.layers.roles import Role

# attend(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK) -> BxTxHxK; query head h reads key-value head h // (H // G).
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# Keys and values of one layer, (B*G)xSxK each. Products read this layout directly, so XLA updates them in place.
Cache = tuple[jax.Array, jax.Array]
# The position of the first query: an array while decoding, otherwise 0.
Start = int | jax.Array
HIDDEN = -1e30


def attend(
  q_BxTxHxK: jax.Array,
  k_BxSxGxK: jax.Array,
  v_BxSxGxK: jax.Array,
  start: Start = 0,
  causal: bool = True,
  bias_BxHxTxS: ArrayLike = 0.0,
) -> jax.Array:
  """Computes softmax attention by matrix products batched over (batch, head); query t has position `start + t`."""
  (T, H, K), S = q_BxTxHxK.shape[1:], k_BxSxGxK.shape[1]
  k_BxSxHxK, v_BxSxHxK = (repeat_heads(x, H) for x in (k_BxSxGxK, v_BxSxGxK))
  q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BxTxHxK, k_BxSxHxK, v_BxSxHxK))
  scores_BxHxTxS = product(q * K**-0.5, k.swapaxes(2, 3), jnp.float32) + bias_BxHxTxS
  if causal:
    positions = start + (np if isinstance(start, int) else jnp).arange(T)
    scores_BxHxTxS = jnp.where(np.arange(S) <= positions[:, None], scores_BxHxTxS, HIDDEN)
  weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS, axis=-1)
  out_BxHxTxK = product(weights_BxHxTxS.astype(v.dtype), v)
  return out_BxHxTxK.transpose(0, 2, 1, 3)


def product(a_BxHxMxN: jax.Array, b_BxHxNxP: jax.Array, result: DTypeLike | None = None) -> jax.Array:
  """Returns a @ b of arrays of one dtype, in the dtype `result` (default: theirs). Scores need float32.

  The gradient of b transposes the narrower of its two factors, which is faster on CPU.
  """
  return _product(a_BxHxMxN, b_BxHxNxP, jnp.dtype(result or a_BxHxMxN.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(a_BxHxMxN: jax.Array, b_BxHxNxP: jax.Array, result: np.dtype) -> jax.Array:
  return jnp.matmul(a_BxHxMxN, b_BxHxNxP, preferred_element_type=result)


def _product_forward(a: jax.Array, b: jax.Array, result: np.dtype) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return jnp.matmul(a, b, preferred_element_type=result), (a, b)  # not `_product`: see `basic.times`


def _product_backward(
  result: np.dtype, kept: tuple[jax.Array, jax.Array], g_BxHxMxP: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del result
  a, b = kept
  g_BxHxMxP = g_BxHxMxP.astype(a.dtype)
  of_a = g_BxHxMxP @ b.swapaxes(2, 3)
  if a.shape[3] < b.shape[3]:
    return of_a, a.swapaxes(2, 3) @ g_BxHxMxP
  return of_a, (g_BxHxMxP.swapaxes(2, 3) @ a).swapaxes(2, 3)


_product.defvjp(_product_forward, _product_backward)


def attend_to_all(q_BxTxHxK: jax.Array, k_BxSxGxK: jax.Array, v_BxSxGxK: jax.Array) -> jax.Array:
  """Computes attention of an encoder, or of a decoder to an encoder: every query sees every key."""
  return attend(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, causal=False)


def repeat_heads(x_BxTxGxK: jax.Array, heads: int) -> jax.Array:
  """Repeats key-value heads, one for each of `heads` query heads."""
  groups = x_BxTxGxK.shape[2]
  return x_BxTxGxK if groups == heads else _repeat_heads(x_BxTxGxK, heads // groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeat_heads(x_BxTxGxK: jax.Array, times: int) -> jax.Array:
  return jnp.repeat(x_BxTxGxK, times, axis=2)


def _repeat_heads_forward(x_BxTxGxK: jax.Array, times: int) -> tuple[jax.Array, None]:
  return _repeat_heads(x_BxTxGxK, times), None


def _repeat_heads_backward(times: int, _: None, gradient_BxTxHxK: jax.Array) -> tuple[jax.Array]:
  B, T, H, K = gradient_BxTxHxK.shape
  return (jnp.sum(gradient_BxTxHxK.reshape(B, T, H // times, times, K), axis=3),)  # jnp.sum accumulates in float32


_repeat_heads.defvjp(_repeat_heads_forward, _repeat_heads_backward)


@dataclasses.dataclass(frozen=True)
class Rotary:
  """The wavelengths of rotary positions, `2 pi base^(2i/K)` for pair i of K/2 (Su et al. 2021, section 3.2.2).

  A `factor` above 1 lengthens them for longer contexts. As in Llama 3.1, wavelengths above `context / low` are
  multiplied by `factor`, those below `context / high` are kept, and the frequencies in between are interpolated.
  With a `context` of 0, all wavelengths are multiplied.
  """

  base: float = 10_000.0
  factor: float = 1.0
  context: int = 0
  low: float = 1.0
  high: float = 4.0

  def frequencies(self, K: int) -> np.ndarray:
    """Returns the angle between neighbouring positions, in radians, of each pair of a head of size K, float64[K/2]."""
    plain = self.base ** -(np.arange(K // 2) / (K // 2))
    if self.factor == 1:
      return plain
    turns = self.context * plain / (2 * np.pi)  # in the original context
    kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
    return plain * (kept + (1 - kept) / self.factor)


UNSCALED = Rotary()


def rotary(x_BxTxHxK: jax.Array, wavelengths: Rotary = UNSCALED, start: Start = 0) -> jax.Array:
  """Rotates pairs (i, i + K/2) by position * frequency (Su et al. 2021, equation 34)."""
  T, K = x_BxTxHxK.shape[1], x_BxTxHxK.shape[3]
  frequency = wavelengths.frequencies(K)
  if isinstance(start, int):
    fixed_TxK2 = np.arange(start, start + T)[:, None] * frequency
    cos, sin = (np.asarray(f(fixed_TxK2), np.float32)[:, None, :] for f in (np.cos, np.sin))
  else:
    angle_TxK2 = (start + jnp.arange(T))[:, None] * frequency.astype(np.float32)
    cos, sin = (f(angle_TxK2)[:, None, :] for f in (jnp.cos, jnp.sin))
  first, second = jnp.split(x_BxTxHxK, 2, axis=-1)
  rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return rotated.astype(x_BxTxHxK.dtype)


class Attention(nn.Module):
  """Projections around `attend`; G = kv_heads groups of H // G query heads share keys and values.

  Queries come from x; keys and values come from `memory` if given, otherwise also from x.
  With a `cache` filled up to position `start`, x are the tokens from `start` on. Returns the
  result and the new cache.
  """

  heads: int
  kv_heads: int
  head_size: int
  out_scale: float
  dtype: DTypeLike
  attend: Attend = attend
  qk_norm: bool = False
  bias: bool = False
  rotary: Rotary | None = None  # None: no rotation
  relative: bool = False  # relative positions (Dai et al. 2019)
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self, x_BxTxD: jax.Array, memory_BxSxD: jax.Array | None = None, cache: Cache | None = None, start: Start = 0
  ) -> tuple[jax.Array, Cache | None]:
    B, T, D = x_BxTxD.shape
    H, G, K = self.heads, self.kv_heads, self.head_size
    source_BxSxD = x_BxTxD if memory_BxSxD is None else memory_BxSxD

    def split(x: jax.Array, heads: int) -> jax.Array:
      return x.reshape(*x.shape[:2], heads, K)

    query = Matrix(("embed", "heads"), Role.HIDDEN if self.qk_norm else Role.QUERY, bias=self.bias)
    shared = Matrix(("embed", "kv_heads"), Role.HIDDEN, bias=self.bias)
    q = split(projection(self, "query", x_BxTxD, H * K, query), H)
    k = split(projection(self, "key", source_BxSxD, G * K, shared), G)
    v = split(projection(self, "value", source_BxSxD, G * K, shared), G)
    if self.qk_norm:
      q = RMSNorm("head_size", self.epsilon, Role.QUERY, name="query_norm")(q)
      k = RMSNorm("head_size", self.epsilon, name="key_norm")(k)
    if self.rotary is not None:
      q, k = rotary(q, self.rotary, start), rotary(k, self.rotary, start)
    q = constrain(q, ("batch", "length", "heads", "head_size"))
    k, v = (constrain(x, ("batch", "length", "kv_heads", "head_size")) for x in (k, v))
    attend_ = self.attend
    if cache is not None:

      def filled(old: jax.Array, new_BxTxGxK: jax.Array) -> jax.Array:
        flat = new_BxTxGxK.swapaxes(1, 2).reshape(B * G, T, K)
        return jax.lax.dynamic_update_slice_in_dim(old, flat, start, 1)

      cache = filled(cache[0], k), filled(cache[1], v)
      k, v = (x.reshape(B, G, -1, K).swapaxes(1, 2) for x in cache)
      attend_ = functools.partial(attend, start=start)
    if self.relative:
      q, bias = self._distances(q, k.shape[1], start, D)
      attend_ = functools.partial(attend, start=start, bias_BxHxTxS=bias)
    out_BxTxHK = attend_(q, k, v).reshape(B, T, H * K)
    outward = Matrix(("heads", "embed"), Role.BRANCH_END, self.out_scale, self.bias)
    out_BxTxD = projection(self, "out", out_BxTxHK, D, outward)
    return out_BxTxD, cache

  def _distances(self, q_BxTxHxK: jax.Array, S: int, start: Start, D: int) -> tuple[jax.Array, jax.Array]:
    """Returns `(q + u, scores of distances_BxHxTxS)`: terms (b) and (d) of Dai et al. 2019, section 3.3."""
    T, H, K = q_BxTxHxK.shape[1:]
    table_SxD = sinusoids(np.arange(S), D).astype(q_BxTxHxK.dtype)
    r_SxHxK = projection(self, "distance", table_SxD, H * K, Matrix(("embed", "heads"), Role.HIDDEN)).reshape(S, H, K)

    def to_all_queries(name: str) -> jax.Array:
      vector_HK = zeros(self, name, (H * K,), ("heads",), Role.QUERY)
      all_BxTxHK = repeated(vector_HK, (*q_BxTxHxK.shape[:2], H * K), ("heads",), q_BxTxHxK.dtype)
      return all_BxTxHK.reshape(q_BxTxHxK.shape)

    u_BxTxHxK, v_BxTxHxK = to_all_queries("u"), to_all_queries("v")
    by_distance = einsum_float32("bthk,shk->bhts", (q_BxTxHxK + v_BxTxHxK) * K**-0.5, r_SxHxK)
    back_TxS = jnp.clip(start + np.arange(T)[:, None] - np.arange(S), 0, S - 1)
    return q_BxTxHxK + u_BxTxHxK, jnp.take_along_axis(by_distance, back_TxS[None, None], axis=-1)
