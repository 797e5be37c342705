"""Mixture of experts: each token goes to its k best feed-forward blocks (Jiang et al. 2024, Mixtral).

Tokens are routed in groups, each a stretch of one row, within which an expert takes
at most `capacity` tokens; what is over is dropped, first choices last (Lepikhin et
al. 2020). Groups come from the config and never from the mesh, so every mesh routes
alike. Array suffixes: n groups a row, S tokens a group, E experts, C slots an expert.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigmodel.models.layers import initial
from bigmodel.models.layers.basic import GATED, activate, constrain, with_gathered


def slots(group: int, experts: int, chosen: int, capacity_factor: float) -> int:
  """C: the slots of one expert for a group of tokens; at most one a token, which a factor of 0 gives to all."""
  if not capacity_factor:
    return group
  return min(group, max(1, math.ceil(capacity_factor * group * chosen / experts)))


def route(logits_BxnxSxE: jax.Array, chosen: int, C: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Which slot every choice of every token gets.

  Returns `(weights_BxnxSxk, slot_BxnxSxk, token_BxnxEC, balance)`: a dropped choice has
  slot E*C, an empty slot has token S; `balance` is the load-balancing loss of Switch
  Transformer (Fedus et al. 2021, equation 4), 1 where all experts get alike.
  """
  B, n, S, E = logits_BxnxSxE.shape
  best_BxnxSxk, expert_BxnxSxk = jax.lax.top_k(logits_BxnxSxE, chosen)
  weights_BxnxSxk = jax.nn.softmax(best_BxnxSxk, axis=-1)
  # First choices of all tokens come before second choices of any.
  order_BxnxkS = expert_BxnxSxk.swapaxes(-1, -2).reshape(B, n, chosen * S)
  picked_BxnxkSxE = jax.nn.one_hot(order_BxnxkS, E, dtype=jnp.int32)
  before_BxnxkSxE = jnp.cumsum(picked_BxnxkSxE, axis=2) - picked_BxnxkSxE
  place_BxnxkS = jnp.sum(before_BxnxkSxE * picked_BxnxkSxE, axis=-1)
  slot_BxnxkS = jnp.where(place_BxnxkS < C, order_BxnxkS * C + place_BxnxkS, E * C)
  token_kS = jnp.tile(jnp.arange(S), chosen)
  fill = lambda slot: jnp.full(E * C, S).at[slot].set(token_kS, mode="drop", unique_indices=False)
  token_BxnxEC = jax.vmap(jax.vmap(fill))(slot_BxnxkS)
  slot_BxnxSxk = slot_BxnxkS.reshape(B, n, chosen, S).swapaxes(-1, -2)
  share_BxnxE = jnp.mean(picked_BxnxkSxE.astype(jnp.float32), axis=2)
  probability_BxnxE = jnp.mean(jax.nn.softmax(logits_BxnxSxE, axis=-1), axis=2)
  balance = E * jnp.mean(jnp.sum(share_BxnxE * probability_BxnxE, axis=-1))
  return weights_BxnxSxk, slot_BxnxSxk, token_BxnxEC, balance


def take(x_BxnxSxD: jax.Array, index_BxnxI: jax.Array) -> jax.Array:
  """Rows of each group by index; one past the end is a row of zeros."""
  padded = jnp.pad(x_BxnxSxD, ((0, 0), (0, 0), (0, 1), (0, 0)))
  return jnp.take_along_axis(padded, index_BxnxI[..., None], axis=2)


class Experts(nn.Module):
  """x_BxTxD -> (x_BxTxD, [load-balancing loss, router z-loss])."""

  experts: int
  chosen: int  # k
  group: int  # tokens of a row that are routed together; 0: the whole row
  capacity_factor: float  # 0: as many as could come
  feed_forward: int
  activation: str
  out_scale: float

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    B, T, D = x_BxTxD.shape
    E, F = self.experts, self.feed_forward
    S = min(self.group, T) if self.group else T
    if T % S:
      raise ValueError(f"a row of {T} tokens is not a whole number of groups of {S}")
    C = slots(S, E, self.chosen, self.capacity_factor)
    x_BxnxSxD = x_BxTxD.reshape(B, T // S, S, D)
    router = self._weight("router", (D, E), ("embed", "router"), D)
    logits = jnp.einsum("bnsd,de->bnse", x_BxnxSxD.astype(jnp.float32), router)  # float32: near ties decide
    weights_BxnxSxk, slot_BxnxSxk, token_BxnxEC, balance = route(logits, self.chosen, C)

    rows = constrain(take(x_BxnxSxD, token_BxnxEC), ("batch", "length", None, None))
    # From every expert's share of my rows to my experts' share of all rows: an all-to-all.
    axes = ("expert_batch", "length", "expert", None, None)
    rows_BxnxExCxD = constrain(rows.reshape(B, T // S, E, C, D), axes)
    hidden = self._multiply("up", rows_BxnxExCxD, F, ("expert", "embed", "mlp"))
    gate = self._multiply("gate", rows_BxnxExCxD, F, ("expert", "embed", "mlp")) if self.activation in GATED else None
    hidden = constrain(activate(self.activation, hidden, gate), ("expert_batch", "length", "expert", None, "mlp"))
    out = self._multiply("down", hidden, D, ("expert", "mlp", "embed"), self.out_scale)
    out = constrain(out, axes).reshape(B, T // S, E * C, D)
    out = constrain(out, ("batch", "length", None, None))

    flat = slot_BxnxSxk.reshape(B, T // S, S * self.chosen)
    chosen_BxnxSxkxD = take(out, flat).reshape(B, T // S, S, self.chosen, D)
    mixed = jnp.einsum("bnskd,bnsk->bnsd", chosen_BxnxSxkxD, weights_BxnxSxk.astype(x_BxTxD.dtype))
    z_loss = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))  # Zoph et al. 2022, equation 5
    return mixed.reshape(B, T, D), jnp.stack([balance, z_loss])

  def _weight(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int, scale: float = 1.0) -> Any:
    init = nn.with_logical_partitioning(initial.normal(scale * fan_in**-0.5), axes)
    return self.param(name, init, shape, jnp.float32)

  def _multiply(self, name: str, x: jax.Array, width: int, axes: tuple[str, str, str], scale: float = 1.0) -> jax.Array:
    fan_in = x.shape[-1]
    weight = self._weight(name, (self.experts, fan_in, width), axes, fan_in, scale)
    return with_gathered(_by_expert, x, weight, axes)


def _by_expert(x_BxnxExCxI: jax.Array, weight_ExIxO: jax.Array) -> jax.Array:
  """The product of each expert's slots with its own matrix."""
  return jnp.einsum("bneci,eio->bneco", x_BxnxExCxI, weight_ExIxO)
