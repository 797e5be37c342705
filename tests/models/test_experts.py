"""Mixture of experts: each token gets its best experts, up to their capacity."""

from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import dots  # its folder is on the path of pytest

from bigmodel.models.decoder import Decoder, Shape
from bigmodel.models.layers import experts
from bigmodel.models.layers.embedding import padded

E, K, D, F, T = 4, 2, 12, 20, 16


def layer(**changes):
  settings = dict(
    experts=E, chosen=K, group=0, capacity_factor=1.25, feed_forward=F, activation="swiglu", out_scale=1.0
  )
  module = experts.Experts(**{**settings, **changes})
  x = jax.random.normal(jax.random.key(1), (3, T, D))
  return module, nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), x)["params"]), x


def applied(module, params, x) -> tuple[jax.Array, dict[str, jax.Array]]:
  return cast(tuple[jax.Array, dict[str, jax.Array]], module.apply({"params": params}, x))


def by_hand(params, x_D):
  """Computes the weighted sum of a token's best experts, each a dense block, in NumPy."""
  x_D = np.asarray(x_D)
  logits = x_D @ params["router"]
  best = np.argsort(-logits)[:K]
  weights = np.exp(logits[best]) / np.exp(logits[best]).sum()
  out = 0
  for weight, expert in zip(weights, best, strict=True):
    up, gate, down = (params[name][expert] for name in ("up", "gate", "down"))
    gate_F = x_D @ gate
    out += weight * ((x_D @ up * gate_F / (1 + np.exp(-gate_F))) @ down)
  return out


@pytest.mark.parametrize("group", [0, 4, 8])
@pytest.mark.parametrize("training", [False, True])
def test_without_drops_each_token_gets_its_best_experts(group, training):
  """Evaluation drops nothing for any capacity; training drops nothing if the capacity is 0."""
  module, params, x = layer(group=group, training=training, capacity_factor=0.0 if training else 1e-9)
  out, auxiliary = jax.jit(module.apply)({"params": params}, x)
  expected = np.array([[by_hand(jax.device_get(params), x[row, t]) for t in range(T)] for row in range(3)])
  np.testing.assert_allclose(out, expected, atol=1e-5)  # float32 sums in another order
  assert float(auxiliary["dropped_choices"]) == 0


def routed(logits, C):
  _, expert, place = experts.route(logits, K)
  return experts.assign(expert, place, 0, E, C)


def test_slots_are_assigned_token_by_token():
  C = 3
  logits = jnp.zeros((1, 1, 6, E)).at[..., 0].set(2.0).at[..., 1].set(1.0)  # all want expert 0, then 1
  slot, token = routed(logits, C)
  np.testing.assert_array_equal(slot[0, 0, :, 0], [0, 1, 2, E * C, E * C, E * C])
  np.testing.assert_array_equal(slot[0, 0, :, 1], [3, 4, 5, E * C, E * C, E * C])
  np.testing.assert_array_equal(token[0, 0], [0, 1, 2, 0, 1, 2, *[6] * 6])
  # An earlier token's second choice comes before a later token's first choice.
  slot, _ = routed(jnp.array([[[[2.0, 1, 0, 0], [1, 2, 0, 0]]]]), 1)
  np.testing.assert_array_equal(slot[0, 0], [[0, 1], [E, E]])


def test_every_choice_gets_a_slot_in_exactly_one_round():
  logits = jax.random.normal(jax.random.key(2), (2, 3, 10, E))
  _, expert, place = experts.route(logits, K)
  rounds = [experts.assign(expert, place, first, E, 2)[0] for first in range(0, 10, 2)]
  np.testing.assert_array_equal(sum((slot < 2 * E).astype(int) for slot in rounds), np.ones(expert.shape))


def test_batched_evaluations_skip_rounds_that_none_of_them_needs():
  """Stages of a pipeline are batched like this; a condition per stage would compute all rounds."""
  total = lambda last, x: experts.in_rounds(lambda first: x * jnp.float32(first + 1), 10, 2, last)
  x = jnp.arange(1.0, 4.0)
  batched = jax.vmap(total)
  assert "cond[" in str(jax.make_jaxpr(batched)(jnp.full(3, 3), x))
  np.testing.assert_array_equal(batched(jnp.full(3, 3), x), x * (1 + 3))


def test_in_training_a_token_whose_choices_are_all_dropped_passes_through_unchanged():
  module, params, x = layer(capacity_factor=1e-9, training=True)
  x = jnp.broadcast_to(x[:, :1], x.shape)  # all tokens of a row choose alike; one gets in
  out, auxiliary = applied(module, params, x)
  assert np.abs(out[:, 0]).min() > 0
  assert np.abs(out[:, 1:]).max() == 0
  assert float(auxiliary["dropped_choices"]) == pytest.approx((T - 1) / T)


def test_the_work_of_evaluation_follows_the_load_and_its_memory_that_of_one_round():
  """Even loads take one round; if all tokens choose the same experts, every place needs a round."""
  module, params, x = layer(group=8)
  calls = []
  work = lambda first: (
    jnp.zeros(()) + jax.pure_callback(lambda f: calls.append(int(f)) or np.float32(1), jnp.float32(0), first)
  )
  C = experts.slots(8, E, K, 1.0)
  for last_place, rounds in ((0, 1), (C - 1, 1), (C, 2), (7, 2)):
    calls.clear()
    assert float(jax.jit(lambda last: experts.in_rounds(work, 8, C, last))(last_place)) == rounds
    assert calls == list(range(0, rounds * C, C))

  def temporary(module):
    memory = jax.jit(module.apply).lower({"params": params}, x).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes

  slots_of_group = module.clone(training=True, capacity_factor=0.0)
  assert temporary(module) < 0.75 * temporary(slots_of_group)


def test_groups_do_not_see_each_other():
  module, params, x = layer(group=4, capacity_factor=0.5, training=True)
  out, _ = module.apply({"params": params}, x)
  changed, _ = module.apply({"params": params}, x.at[:, :4].set(x[:, 4:8]))
  np.testing.assert_array_equal(out[:, 4:], changed[:, 4:])


def test_the_balance_loss_is_1_when_even_and_more_when_not():
  loss = lambda logits: float(experts.balance_loss(logits, experts.route(logits, 1)[1]))
  even = jax.nn.one_hot(jnp.arange(8) % E, E)[None, None] * 30
  assert loss(even) == pytest.approx(1.0)
  assert loss(jnp.zeros((1, 1, 8, E)).at[..., 2].set(30.0)) == pytest.approx(E)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_every_product_with_the_router_has_the_highest_precision(dtype, training):
  """In the program before compilation, forward and backward; no other product has it."""
  module, params, x = layer(group=8, training=training)

  def objective(params, x):
    out, auxiliary = applied(module, params, x)
    return jnp.sum(out.astype(jnp.float32) ** 2) + auxiliary["router_z_loss"]

  text = jax.jit(jax.grad(objective, (0, 1))).lower(params, x.astype(dtype)).as_text()
  products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
  is_of_router = [f"tensor<{D}x{E}xf32>" in line or f"tensor<{E}x{D}xf32>" in line for line in products]
  assert sum(is_of_router) == 3  # the logits, and the gradients of the router and of what it reads
  assert len(products) > 3
  for line, router in zip(products, is_of_router, strict=True):
    assert ("precision = [HIGHEST, HIGHEST]" in line) == router, line


SHAPE = Shape(50, 24, 2, 4, 4, 8, 40, "swiglu", False, True, E, K, 8, 1.25)


def test_counts_equal_those_of_the_tree():
  boxed = jax.jit(Decoder(SHAPE).init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
  params = nn.meta.unbox(boxed)
  counts = SHAPE.counts(T)
  padding = (padded(SHAPE.vocab) - SHAPE.vocab) * SHAPE.width
  assert counts.params_total == sum(x.size for x in jax.tree.leaves(params)) - padding
  one = sum(x[0, 0].size for name, x in params["blocks"]["experts"].items() if name != "router")
  assert counts.params_active == counts.params_total - SHAPE.layers * (E - K) * one


def test_hardware_flops_are_the_products_that_are_computed():
  """Except the masked half of attention, and the weighted sum of the chosen experts' outputs."""
  model = Decoder(SHAPE)
  x = jnp.zeros((3, T), jnp.int32)
  params = nn.meta.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), x)["params"]))
  rngs = {"dropout": jax.random.key(0)}  # as in training
  counted = dots(jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x, rngs=rngs))(params, x).jaxpr)
  masked_half = SHAPE.layers * 2 * 2 * 32 * (T - 1) / 2
  mixing = SHAPE.layers * 2 * K * 24
  assert counted == (SHAPE.counts(T).hardware_per_token / 3 + masked_half + mixing) * x.size
  assert SHAPE.counts(T).exact_per_token < SHAPE.counts(T).hardware_per_token
