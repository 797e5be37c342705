"""Mixture of experts: each token goes to its k best feed-forward blocks (Jiang et al. 2024, Mixtral).

Tokens are routed in groups of consecutive tokens of a row. Slots are assigned token by token: all
choices of a token precede those of the next token, so the routing of a token does not depend on
later tokens. In training, an expert takes at most `slots(...)` tokens of a group, and later
choices are dropped (Lepikhin et al. 2020). Evaluation and decoding drop nothing. The config sets
the groups, so routing is the same on every mesh. Array suffixes: n groups per row, S tokens per
group, E experts, C slots per expert.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from bigmodel.models.layers.basic import GATED, activate, constrain, gathered, normal, with_gathered
from bigmodel.models.layers.roles import Role

PRODUCTS = "expert_products"  # name of the results of the experts' matrix products, for rematerialization policies
# Auxiliary outputs of a model, by name: router losses, and shares to log. Empty without experts.
Auxiliary = dict[str, jax.Array]


def slots(group: int, experts: int, chosen: int, capacity_factor: float) -> int:
  """Returns C, the slots of one expert for a group: at most one per token, and exactly that for a factor of 0."""
  if not capacity_factor:
    return group
  return min(group, max(1, math.ceil(capacity_factor * group * chosen / experts)))


def route(logits_BxnxSxE: jax.Array, chosen: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Chooses the experts of each token: returns `(weights_BxnxSxk, expert_BxnxSxk, place_BxnxSxk)`.

  The place of a choice is the number of earlier choices of the same expert in the group.
  """
  E = logits_BxnxSxE.shape[-1]
  best_BxnxSxk, expert_BxnxSxk = jax.lax.top_k(logits_BxnxSxE, chosen)
  weights_BxnxSxk = jax.nn.softmax(best_BxnxSxk, axis=-1)
  # A token chooses an expert at most once, so all choices counted before it are those of earlier tokens.
  picked_BxnxSxE = jnp.sum(jax.nn.one_hot(expert_BxnxSxk, E, dtype=jnp.int32), axis=3)
  before_BxnxSxE = jnp.cumsum(picked_BxnxSxE, axis=2) - picked_BxnxSxE
  return weights_BxnxSxk, expert_BxnxSxk, jnp.take_along_axis(before_BxnxSxE, expert_BxnxSxk, axis=-1)


def assign(
  expert_BxnxSxk: jax.Array, place_BxnxSxk: jax.Array, first: jax.Array | int, E: int, C: int
) -> tuple[jax.Array, jax.Array]:
  """Assigns slots to the choices with places first to first + C - 1: returns `(slot_BxnxSxk, token_BxnxEC)`.

  Every other choice has slot E * C, and an empty slot has token S.
  """
  S, k = expert_BxnxSxk.shape[2:]
  inside = (place_BxnxSxk >= first) & (place_BxnxSxk < first + C)
  slot_BxnxSxk = jnp.where(inside, expert_BxnxSxk * C + place_BxnxSxk - first, E * C)
  token_Sk = jnp.repeat(jnp.arange(S), k)

  def fill(slot_Sxk: jax.Array) -> jax.Array:
    return jnp.full(E * C, S).at[slot_Sxk.reshape(-1)].set(token_Sk, mode="drop", unique_indices=False)

  return slot_BxnxSxk, jax.vmap(jax.vmap(fill))(slot_BxnxSxk)


def balance_loss(logits_BxnxSxE: jax.Array, expert_BxnxSxk: jax.Array) -> jax.Array:
  """Returns the load-balancing loss of Switch Transformer (Fedus et al. 2021, equation 4): 1 for an even load.

  Dropped choices count, because otherwise a full expert would not seem more popular than its slots.
  """
  E = logits_BxnxSxE.shape[-1]
  share_BxnxE = jnp.mean(jax.nn.one_hot(expert_BxnxSxk, E, dtype=jnp.float32), axis=(2, 3))
  probability_BxnxE = jnp.mean(jax.nn.softmax(logits_BxnxSxE, axis=-1), axis=2)
  return E * jnp.mean(jnp.sum(share_BxnxE * probability_BxnxE, axis=-1))


def take(x_BxnxSxD: jax.Array, index_BxnxI: jax.Array) -> jax.Array:
  """Returns rows of each group by index; an index past the end gives zeros."""
  padded = jnp.pad(x_BxnxSxD, ((0, 0), (0, 0), (0, 1), (0, 0)))
  return jnp.take_along_axis(padded, index_BxnxI[..., None], axis=2)


@jax.custom_batching.custom_vmap
def anywhere(condition: jax.Array) -> jax.Array:
  """Returns a condition that is shared by all stages of a pipeline, so that `cond` stays a branch when batched."""
  return condition


@anywhere.def_vmap
def _anywhere_batched(size: int, batched: list[bool], condition: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return anywhere(jnp.any(condition) if batched[0] else condition), False


class Experts(nn.Module):
  """x_BxTxD -> (x_BxTxD, balance loss, router z-loss and the share of choices that were dropped).

  In training, every expert has a fixed number of slots. Otherwise nothing is dropped: the
  experts work in rounds, each with slots for an even share of the choices, until all
  choices are processed. So memory is that of one round, and the work grows with the load
  of the most popular expert instead of with the number of experts.
  """

  experts: int
  chosen: int  # k
  group: int  # tokens of a row that are routed together; 0: the whole row
  capacity_factor: float  # in training; 0: enough slots for any routing
  feed_forward: int
  activation: str
  out_scale: float
  training: bool = False

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, Auxiliary]:
    B, T, D = x_BxTxD.shape
    E, F, k = self.experts, self.feed_forward, self.chosen
    S = min(self.group, T) if self.group else T
    if T % S and not self.training:
      S = T  # a prompt of any length; groups do not matter if nothing is dropped
    if T % S:
      raise ValueError(f"a row of {T} tokens is not a whole number of groups of {S}")
    C = slots(S, E, k, self.capacity_factor if self.training else 1.0)
    x_BxnxSxD = x_BxTxD.reshape(B, T // S, S, D)
    router = normal(self, "router", (D, E), ("embed", "router"), Role.HIDDEN, D**-0.5)
    # Small differences decide the routing, so accelerators must not round these factors to bfloat16 or TF32.
    logits = jnp.einsum("bnsd,de->bnse", x_BxnxSxD.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
    weights_BxnxSxk, expert_BxnxSxk, place_BxnxSxk = route(logits, k)
    products = self._products(D, F, x_BxTxD.dtype)

    def work(first: jax.Array | int) -> jax.Array:
      """Returns the experts' results for choices with places first to first + C - 1; zeros for the others."""
      slot_BxnxSxk, token_BxnxEC = assign(expert_BxnxSxk, place_BxnxSxk, first, E, C)
      rows = constrain(take(x_BxnxSxD, token_BxnxEC), ("batch", "length", None, None))
      out_BxnxECxD = self._feed_forward(products, rows.reshape(B, T // S, E, C, D)).reshape(B, T // S, E * C, D)
      out_BxnxECxD = constrain(out_BxnxECxD, ("batch", "length", None, None))
      return take(out_BxnxECxD, slot_BxnxSxk.reshape(B, T // S, S * k)).reshape(B, T // S, S, k, D)

    dropped = jnp.float32(0)
    if self.training:
      results_BxnxSxkxD = work(0)
      dropped = jnp.mean((place_BxnxSxk >= C).astype(jnp.float32))
    else:
      results_BxnxSxkxD = in_rounds(work, S, C, jnp.max(place_BxnxSxk))
    mixed = jnp.einsum("bnskd,bnsk->bnsd", results_BxnxSxkxD, weights_BxnxSxk.astype(x_BxTxD.dtype))
    z_loss = jnp.mean(jnp.square(jax.nn.logsumexp(logits, axis=-1)))  # Zoph et al. 2022, equation 5
    losses = {"balance_loss": balance_loss(logits, expert_BxnxSxk), "router_z_loss": z_loss}
    return mixed.reshape(B, T, D), losses | {"dropped_choices": dropped}

  def _products(self, D: int, F: int, dtype: DTypeLike) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Returns, by name of a matrix, the function that multiplies each expert's slots with its matrix."""
    inward, outward = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
    into, out = (self.experts, D, F), (self.experts, F, D)
    weights = {"up": (into, inward, Role.HIDDEN, D**-0.5), "gate": (into, inward, Role.HIDDEN, D**-0.5)}
    if self.activation not in GATED:
      del weights["gate"]
    weights["down"] = (out, outward, Role.BRANCH_END, self.out_scale * F**-0.5)
    return {
      name: self._product(normal(self, name, shape, axes, role, deviation), axes, dtype)
      for name, (shape, axes, role, deviation) in weights.items()
    }

  def _product(self, weight: jax.Array, axes: tuple[str, ...], dtype: DTypeLike) -> Callable[[jax.Array], jax.Array]:
    if self.training:
      return lambda x: checkpoint_name(with_gathered(by_expert, x, weight, axes), PRODUCTS)
    whole = gathered(weight.astype(dtype), axes)  # gathered once for all rounds
    return lambda x: by_expert(x, whole)

  def _feed_forward(
    self, products: dict[str, Callable[[jax.Array], jax.Array]], rows_BxnxExCxD: jax.Array
  ) -> jax.Array:
    """Applies each expert's feed-forward block to its slots."""
    # An all-to-all: from all experts for this device's rows to this device's experts for all rows.
    axes = ("expert_batch", "length", "expert", None, None)
    rows_BxnxExCxD = constrain(rows_BxnxExCxD, axes)
    up = products["up"](rows_BxnxExCxD)
    gate = products["gate"](rows_BxnxExCxD) if "gate" in products else None
    hidden = constrain(activate(self.activation, up, gate), ("expert_batch", "length", "expert", None, "mlp"))
    return constrain(products["down"](hidden), axes)


def in_rounds(work: Callable[[jax.Array | int], jax.Array], S: int, C: int, last_place: jax.Array) -> jax.Array:
  """Returns the sum of `work(first)` over rounds of C places each, until no choices are left: at most S / C."""
  if C >= S:
    return work(0)

  def add(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
    needed = anywhere(first <= last_place)
    return jax.lax.cond(needed, lambda total: total + work(first), lambda total: total, total), None

  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(work, 0))
  return jax.lax.scan(add, nothing, jnp.arange(0, S, C))[0]


def by_expert(x_BxnxExCxI: jax.Array, weight_ExIxO: jax.Array) -> jax.Array:
  """Multiplies each expert's slots with that expert's matrix."""
  return jnp.einsum("bneci,eio->bneco", x_BxnxExCxI, weight_ExIxO)
