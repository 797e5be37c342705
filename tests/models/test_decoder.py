"""The decoder: its counts are exact, it is causal, and its options do what they say."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import parallel
from bigmodel.models.decoder import Decoder, Shape
from bigmodel.models.layers.attention import attend, rotary

BASE = dict(vocab=50, width=24, layers=2, heads=4, kv_heads=4, head_size=8, feed_forward=40, activation="gelu",
            qk_norm=False, tie_embeddings=True)  # fmt: skip


def make(run=jax.jit, **changes):
  """Runs the decoder; `run` may be a function of shapes only, such as `jax.eval_shape`."""
  shape = Shape(**{**BASE, **changes})
  model = Decoder(shape)
  boxed = run(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  return shape, model, boxed, nn.meta.unbox(boxed)


shapes_only = lambda f: functools.partial(jax.eval_shape, f)
OPTIONS = [
  dict(activation=a, qk_norm=q, tie_embeddings=t, kv_heads=k)
  for a, q, t, k in itertools.product(("gelu", "swiglu", "relu2"), (False, True), (False, True), (1, 4))
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameter_counts_equal_those_of_the_tree(options):
  shape, _, boxed, params = make(shapes_only, **options)
  sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
  for name in {"embedding", "output"} & set(sizes):
    sizes[name] -= (56 - 50) * shape.width  # rows that are not real
  counts = shape.counts(16)
  assert counts.params_total == sum(sizes.values())
  assert counts.params_non_embedding == sum(sizes.values()) - sizes["embedding"] - sizes.get("output", 0)
  specs = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))
  named = {name for spec in specs for name in spec}
  assert named <= {name for name, _ in parallel.RULES}
  assert all(len(spec) == x.ndim for spec, x in zip(specs, jax.tree.leaves(params), strict=True))


def dots(jaxpr) -> int:
  """Returns the FLOPs of all matrix products in a jaxpr."""
  total = 0
  for eqn in jaxpr.eqns:
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += dots(inner)
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      size = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
      total += 2 * int(np.prod(eqn.outvars[0].aval.shape)) * int(size)
  return total


@pytest.mark.parametrize("options", [{}, dict(activation="swiglu", kv_heads=2), dict(tie_embeddings=False)], ids=str)
def test_exact_flops_are_the_products_of_the_forward_pass(options):
  """Attention counts twice, because the program also computes the masked half."""
  shape, model, _, params = make(shapes_only, **options)
  B, T = 3, 16
  jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(params, jnp.zeros((B, T), jnp.int32))
  masked_half = shape.layers * 2 * 2 * shape.heads * shape.head_size * (T - 1) / 2
  assert dots(jaxpr.jaxpr) == (shape.counts(T).hardware_per_token / 3 + masked_half) * B * T


def test_training_flops_agree_with_xla_on_an_unrolled_model():
  """XLA also counts elementwise operations, a few percent at this width, so its count is never below the products."""
  shape, model, _, params = make(
    width=256, heads=4, kv_heads=4, head_size=64, feed_forward=1024, vocab=512, activation="relu2"
  )
  B, T = 2, 64
  x = jnp.zeros((B, T), jnp.int32)
  step = jax.jit(jax.grad(lambda p: jnp.mean(jax.nn.logsumexp(model.apply({"params": p}, x)[0], axis=-1))))
  costs = step.lower(params).compile().cost_analysis()
  assert costs is not None
  masked_half = 3 * shape.layers * 2 * 2 * 256 * (T - 1) / 2
  own = (shape.counts(T).exact_per_token + masked_half) * B * T
  assert 1.0 <= costs["flops"] / own < 1.05


def test_chinchilla_flops_are_those_of_appendix_f():
  """Hoffmann et al. 2022, appendix F, term by term for one sequence of their 73M model."""
  T, V, D, K, H, F, layers = 2048, 32_000, 640, 64, 10, 2560, 10
  attention = 2 * 3 * T * D * (K * H) + 2 * T * T * (K * H) + 3 * H * T * T + 2 * T * T * (K * H) + 2 * T * (K * H) * D
  dense = 2 * T * (D * F + D * F)
  forward = 2 * T * V * D + layers * (attention + dense) + 2 * T * D * V
  shape = Shape(V, D, layers, H, H, K, F, "gelu", False, True)
  assert shape.counts(T).chinchilla_per_token * T == 3 * forward


def test_no_position_sees_later_tokens():
  _, model, _, params = make()
  T = 12
  x = jax.random.randint(jax.random.key(1), (1, T), 0, 50)
  first = model.apply({"params": params}, x)[0]
  for t in range(T):
    changed = model.apply({"params": params}, x.at[0, t].set((x[0, t] + 1) % 50))[0]
    different = np.any(np.asarray(first != changed)[0], axis=-1)
    assert not different[:t].any()
    assert different[t]


def test_grouped_heads_equal_repeated_heads():
  _, grouped, _, params = make(kv_heads=2)
  _, full, _, _ = make(kv_heads=4)
  repeated = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jnp.repeat(x.reshape(-1, 24, 2, 8), 2, axis=2).reshape(-1, 24, 32) if path[-1].key in ("key", "value") else x
    ),
    params,
  )
  x = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)
  one, other = grouped.apply({"params": params}, x)[0], full.apply({"params": repeated}, x)[0]
  np.testing.assert_allclose(one, other, atol=1e-5)  # float32 sums in another order


def test_rotary_scores_depend_on_distance_only():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  score = np.einsum("thk,shk->ts", rotary(jnp.tile(q, (1, 20, 1, 1)))[0], rotary(jnp.tile(k, (1, 20, 1, 1)))[0])
  for distance in range(-19, 20):
    assert np.ptp(np.diagonal(score, distance)) < 1e-5  # float32
  assert abs(score[0, 0] - score[0, 5]) > 1e-3


def test_attention_equals_that_of_jax():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 11, 4, 8))
  np.testing.assert_allclose(attend(q, k, v), jax.nn.dot_product_attention(q, k, v, is_causal=True), atol=2e-6)
  np.testing.assert_allclose(attend(q[:, 3:], k, v, start=3), attend(q, k, v)[:, 3:], atol=2e-6)


def test_attend_can_be_supplied():
  _, model, _, params = make()
  swapped = Decoder(model.shape, attend=lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
  x = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)
  np.testing.assert_allclose(model.apply({"params": params}, x)[0], swapped.apply({"params": params}, x)[0], atol=1e-5)


def test_half_precision_activations_change_little_and_keep_float32_parameters():
  shape, model, _, params = make()
  half = Decoder(shape, jnp.bfloat16)
  x = jax.random.randint(jax.random.key(1), (2, 9), 0, 50)
  logits, other = model.apply({"params": params}, x)[0], half.apply({"params": params}, x)[0]
  assert other.dtype == jnp.float32
  assert 0 < np.abs(logits - other).max() < 0.1
