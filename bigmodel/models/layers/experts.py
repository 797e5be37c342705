"""Mixture of experts: each token goes to its k best feed-forward blocks (Jiang et al. 2024, Mixtral).

Tokens are routed in groups, each a stretch of one row. Slots are assigned token by token: all
choices of a token come before those of the next one, so what a token gets does not depend on
what follows it. In training an expert takes at most `slots(...)` tokens of a group, and later
choices are dropped (Lepikhin et al. 2020). Evaluation and decoding drop nothing. Groups come
from the config and never from the mesh, so every mesh routes alike. Array suffixes: n groups
a row, S tokens a group, E experts, C slots an expert.
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
# Numbers beside a model's outputs, by name: losses of the router, and shares to be logged. Empty without experts.
Auxiliary = dict[str, jax.Array]


def slots(group: int, experts: int, chosen: int, capacity_factor: float) -> int:
  """C: the slots of one expert for a group of tokens; at most one a token, which a factor of 0 gives to all."""
  if not capacity_factor:
    return group
  return min(group, max(1, math.ceil(capacity_factor * group * chosen / experts)))


def route(logits_BxnxSxE: jax.Array, chosen: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Which experts each token goes to: `(weights_BxnxSxk, expert_BxnxSxk, place_BxnxSxk)`.

  A choice's place is the number of earlier choices of the same expert in the group: those of
  earlier tokens.
  """
  E = logits_BxnxSxE.shape[-1]
  best_BxnxSxk, expert_BxnxSxk = jax.lax.top_k(logits_BxnxSxE, chosen)
  weights_BxnxSxk = jax.nn.softmax(best_BxnxSxk, axis=-1)
  # A token chooses an expert at most once, so all that are counted before it are choices of earlier tokens.
  picked_BxnxSxE = jnp.sum(jax.nn.one_hot(expert_BxnxSxk, E, dtype=jnp.int32), axis=3)
  before_BxnxSxE = jnp.cumsum(picked_BxnxSxE, axis=2) - picked_BxnxSxE
  return weights_BxnxSxk, expert_BxnxSxk, jnp.take_along_axis(before_BxnxSxE, expert_BxnxSxk, axis=-1)


def assign(
  expert_BxnxSxk: jax.Array, place_BxnxSxk: jax.Array, first: jax.Array | int, E: int, C: int
) -> tuple[jax.Array, jax.Array]:
  """Gives the choices with places first to first + C - 1 a slot: `(slot_BxnxSxk, token_BxnxEC)`.

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
  """Load balancing of Switch Transformer (Fedus et al. 2021, equation 4): 1 where all experts are chosen alike.

  Dropped choices count as well, or else a full expert would seem no more popular than its slots.
  """
  E = logits_BxnxSxE.shape[-1]
  share_BxnxE = jnp.mean(jax.nn.one_hot(expert_BxnxSxk, E, dtype=jnp.float32), axis=(2, 3))
  probability_BxnxE = jnp.mean(jax.nn.softmax(logits_BxnxSxE, axis=-1), axis=2)
  return E * jnp.mean(jnp.sum(share_BxnxE * probability_BxnxE, axis=-1))


def take(x_BxnxSxD: jax.Array, index_BxnxI: jax.Array) -> jax.Array:
  """Rows of each group by index; one past the end is a row of zeros."""
  padded = jnp.pad(x_BxnxSxD, ((0, 0), (0, 0), (0, 1), (0, 0)))
  return jnp.take_along_axis(padded, index_BxnxI[..., None], axis=2)


@jax.custom_batching.custom_vmap
def anywhere(condition: jax.Array) -> jax.Array:
  """A condition that is one for all stages of a pipeline, so that `cond` stays a branch when it is batched."""
  return condition


@anywhere.def_vmap
def _anywhere_batched(size: int, batched: list[bool], condition: jax.Array) -> tuple[jax.Array, bool]:
  del size
  return anywhere(jnp.any(condition) if batched[0] else condition), False


class Experts(nn.Module):
  """x_BxTxD -> (x_BxTxD, balance loss, router z-loss and the share of choices that were dropped).

  In training every expert has a fixed number of slots. Otherwise nothing is dropped: the
  experts work in rounds, each with slots for an even share of the choices, until all
  choices had their turn. So memory stays at that of one round, and the work grows
  with the load of the most popular expert instead of with the number of experts.
  """

  experts: int
  chosen: int  # k
  group: int  # tokens of a row that are routed together; 0: the whole row
  capacity_factor: float  # of training; 0: as many slots as could be asked for
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
      S = T  # a prompt of any length: where nothing is dropped, groups change nothing
    if T % S:
      raise ValueError(f"a row of {T} tokens is not a whole number of groups of {S}")
    C = slots(S, E, k, self.capacity_factor if self.training else 1.0)
    x_BxnxSxD = x_BxTxD.reshape(B, T // S, S, D)
    router = normal(self, "router", (D, E), ("embed", "router"), Role.HIDDEN, D**-0.5)
    # Near ties decide where a token goes: an accelerator must not round these factors to bfloat16 or TF32.
    logits = jnp.einsum("bnsd,de->bnse", x_BxnxSxD.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
    weights_BxnxSxk, expert_BxnxSxk, place_BxnxSxk = route(logits, k)
    products = self._products(D, F, x_BxTxD.dtype)

    def work(first: jax.Array | int) -> jax.Array:
      """The experts' results for choices with places first to first + C - 1; zeros for the others."""
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
    """By name, the product of each expert's slots with its matrix of that name."""
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
    whole = gathered(weight.astype(dtype), axes)  # once for all rounds
    return lambda x: by_expert(x, whole)

  def _feed_forward(
    self, products: dict[str, Callable[[jax.Array], jax.Array]], rows_BxnxExCxD: jax.Array
  ) -> jax.Array:
    """Each expert's feed-forward block on its slots."""
    # From every expert's share of my rows to my experts' share of all rows: an all-to-all.
    axes = ("expert_batch", "length", "expert", None, None)
    rows_BxnxExCxD = constrain(rows_BxnxExCxD, axes)
    up = products["up"](rows_BxnxExCxD)
    gate = products["gate"](rows_BxnxExCxD) if "gate" in products else None
    hidden = constrain(activate(self.activation, up, gate), ("expert_batch", "length", "expert", None, "mlp"))
    return constrain(products["down"](hidden), axes)


def in_rounds(work: Callable[[jax.Array | int], jax.Array], S: int, C: int, last_place: jax.Array) -> jax.Array:
  """The sum of `work(first)` over rounds of C places each, as many as there are choices for: at most S / C."""
  if C >= S:
    return work(0)

  def add(total: jax.Array, first: jax.Array) -> tuple[jax.Array, None]:
    needed = anywhere(first <= last_place)
    return jax.lax.cond(needed, lambda total: total + work(first), lambda total: total, total), None

  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(work, 0))
  return jax.lax.scan(add, nothing, jnp.arange(0, S, C))[0]


def by_expert(x_BxnxExCxI: jax.Array, weight_ExIxO: jax.Array) -> jax.Array:
  """The product of each expert's slots with that expert's matrix."""
  return jnp.einsum("bneci,eio->bneco", x_BxnxExCxI, weight_ExIxO)
