"""Every family: its counts are exact, its axes have rules, and all ways to run it agree."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_decoder import dots

from bigmodel import models, parallel, study
from bigmodel.models.layers.attention import Attention, attend, product
from bigmodel.models.layers.basic import sinusoids, times
from bigmodel.models.layers.initial import PIECE, drawn
from bigmodel.parallel import blocks
from bigmodel.train.checkpoint import to_flat

IMAGE = dict(inputs=(12, 8, 3), outputs=5)
CASES = {
  "linear": ("linear", dict(inputs=(7,), outputs=3)),
  "mlp": ("mlp", dict(inputs=(7, 2), outputs=3, hidden=(11, 5), activation="tanh")),
  "dbn": ("dbn", dict(inputs=(5, 2), outputs=3, hidden=(7, 4))),
  "alexnet": ("alexnet", dict(inputs=(67, 75, 3), outputs=5, hidden=8)),
  "alexnet_torchvision": ("alexnet", dict(inputs=(63, 63, 1), outputs=5, hidden=8, form="one_weird_trick")),
  "resnet": ("resnet", dict(**IMAGE, width=8, stages=(1, 2), groups=4)),
  "resnet_bottleneck": ("resnet", dict(inputs=(33, 40, 3), outputs=5, width=8, stages=(2, 1, 1), block="bottleneck",
                                       stem="large")),
  "vit": ("vit", dict(**IMAGE, width=16, layers=2, head_size=8)),
  "bert": ("bert", dict(vocab=23, width=16, layers=2, head_size=8, positions=9)),
  "bert_pooler": ("bert", dict(vocab=23, width=16, layers=2, head_size=8, head="pooler")),
  "transformer": ("transformer", dict(vocab=23, width=16, layers=2, head_size=8)),
  "tabular": ("tabular", dict(inputs=(6,), outputs=2, width=16, layers=2)),
  "gpt": ("decoder", dict(vocab=23, width=16, layers=2, head_size=8, norm="layer", bias=True, activation="gelu",
                          positions="learned")),
  "gpt1": ("decoder", dict(vocab=23, width=16, layers=2, head_size=8, norm="layer", bias=True, norm_first=False,
                           positions="none", activation="gelu")),
  "gopher": ("decoder", dict(vocab=23, width=16, layers=2, head_size=8, positions="relative")),
  "dropless": ("decoder", dict(vocab=23, width=16, layers=1, head_size=8, experts=3, expert_capacity=0.0)),
  "experts": ("decoder", dict(vocab=23, width=16, layers=2, head_size=8, experts=4, expert_group=3)),
  "experts_gpt1": ("decoder", dict(vocab=23, width=16, layers=2, head_size=8, experts=4, norm_first=False,
                                   activation="gelu", expert_capacity=0.5)),
}  # fmt: skip
T = 6


def make(name, **changes):
  family, fields = CASES[name]
  config = study.default_config(family)
  config.model.update(**{**fields, **changes})
  if "context" in config.data:
    config.data.context = 2 * T if family == "transformer" else T
  return study.resolve_without_data(config)


def inputs_of(config, rows=2) -> tuple[np.ndarray, ...]:
  rng = np.random.default_rng(0)
  if config.data.kind == "examples":
    return (rng.standard_normal((rows, *config.model.inputs), np.float32),)
  tokens = rng.integers(0, 23, (rows, T), dtype=np.int32)
  return (tokens, tokens[:, ::-1]) if config.model.family == "transformer" else (tokens,)


def abstract(config):
  """Returns the shapes of the parameters, boxed and unboxed."""
  boxed = models.abstract_parameters(config)
  return boxed, nn.meta.unbox(boxed)


def init(config):
  draw = functools.partial(drawn, models.build(config).init)
  return jax.jit(lambda key: nn.meta.unbox(draw(key, *models.example(config))["params"]))(jax.random.key(0))


def applied(model, params):
  """Returns the outputs of the compiled model."""
  return jax.jit(lambda *inputs, **named: model.apply({"params": params}, *inputs, **named)[0])


def convolutions(jaxpr):
  """Returns the FLOPs of all convolutions in a jaxpr, as if all taps were inside the image."""
  total = 0
  for eqn in jaxpr.eqns:
    total += sum(convolutions(v.jaxpr) for v in eqn.params.values() if hasattr(v, "jaxpr"))
    if eqn.primitive.name == "conv_general_dilated":
      kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
      total += 2 * int(np.prod(out)) * int(np.prod(kernel[:3]))
  return total


@pytest.mark.parametrize(
  ("name", "impl"),
  [("linear", None), ("resnet", None), ("gpt", None), ("dropless", None), ("mlp", "rbg"), ("mlp", "in order")],
)
def test_numbers_drawn_together_equal_those_drawn_per_parameter(name, impl):
  """Another seed gives other numbers; some parameters have more than a piece of numbers, some fewer than a place."""
  config = make(name, **{"gpt": {"vocab": PIECE}, "linear": {"inputs": (2,), "outputs": 1}}.get(name, {}))
  init, example = models.build(config).init, models.example(config)
  key_of = lambda seed: jax.random.key(seed, impl="rbg" if impl == "rbg" else None)
  with jax.threefry_partitionable(impl != "in order"):
    params = [
      nn.meta.unbox(jax.jit(function)(key_of(seed))["params"])
      for function, seed in ((lambda key: init(key, *example), 3), (lambda key: drawn(init, key, *example), 3),
                             (lambda key: drawn(init, key, *example), 4))
    ]  # fmt: skip
  apart, together, others = map(jax.tree.leaves, params)
  assert all(x.dtype == np.float32 for x in together)
  for one, other in zip(apart, together, strict=True):
    np.testing.assert_array_equal(one, other)
  assert any((one != other).any() for one, other in zip(together, others, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_parameter_counts_equal_those_of_the_tree_and_every_axis_has_a_rule(name):
  config = make(name)
  boxed, params = abstract(config)
  rows = {name: (*rows, *params[name].shape[1:]) for name, *rows in models.real_rows(config, boxed).items()}
  sizes = {name: math.prod(rows.get(name) or x.shape) for name, x in to_flat(params).items()}
  assert models.counts_of(config).params_total == sum(sizes.values())
  mesh = parallel.make_mesh_of({"fsdp": 1}, jax.devices()[:1])
  parallel.shardings(mesh, boxed, parallel.RULES)  # refuses what no rule matches


@pytest.mark.parametrize("name", CASES)
def test_exact_flops_are_the_products_of_the_forward_pass(name):
  config = make(name)
  _, params = abstract(config)
  model, inputs = models.build(config), inputs_of(config)
  training = {"dropout": jax.random.key(0)}
  jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, *inputs, rngs=training))(params).jaxpr
  counts = models.counts_of(config)
  units = sum(np.size(x) for x in inputs) if config.data.kind == "text" else len(inputs[0])
  own = counts.hardware_per_token / 3 * units
  shape: Any = models.shape_of(config)
  HK = shape.heads * shape.head_size if hasattr(shape, "heads") else 0
  masked = 0.0  # what a causal mask hides is computed too
  if config.model.family in ("decoder", "transformer"):
    masked = shape.layers * 4 * HK * (T - 1) / 2 * (units if name != "transformer" else units / 2)
  if name == "gopher":  # its table of distances is one for all rows, and its scores are of all distances
    masked += shape.layers * (2 * HK * (T - 1) / 2 * units + 2 * shape.width * HK * T)
  if config.model.get("experts"):
    masked += shape.layers * 2 * shape.experts_per_token * shape.width * units  # the weighted sum of experts
  if name == "bert_pooler":
    masked += 2 * shape.width**2 * 2  # once a row: not counted a token
  assert dots(jaxpr) + convolutions(jaxpr) == pytest.approx(own + masked, rel=1e-9)


@pytest.mark.parametrize("name", ["bert", "transformer", "gopher", "dropless"])
def test_scanned_and_unrolled_blocks_agree_with_dropout_too(name):
  fields = {"dropout": 0.2}
  config = make(name, **fields)
  params = init(config)
  inputs, key = inputs_of(config), jax.random.key(3)
  apply = lambda rngs, **ways: applied(models.build(config, **ways), params)(*inputs, rngs=rngs)
  still, dropped = apply(None), apply({"dropout": key})
  np.testing.assert_allclose(apply({"dropout": key}, run_blocks=blocks.scanned), dropped, atol=2e-6)
  np.testing.assert_allclose(apply(None, run_blocks=blocks.scanned), still, atol=2e-6)
  assert np.abs(still - dropped).max() > 1e-3
  assert np.abs(apply({"dropout": jax.random.key(4)}) - dropped).max() > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_batch_do_not_see_each_other(name):
  config = make(name)
  params = init(config)
  inputs = inputs_of(config, rows=3)
  apply = applied(models.build(config), params)
  np.testing.assert_allclose(apply(*inputs)[1:2], apply(*(x[1:2] for x in inputs)), atol=1e-5)


def test_an_encoder_sees_both_ways_and_a_decoder_of_the_transformer_one():
  config = make("bert")
  params = init(config)
  compiled = applied(models.build(config), params)
  apply = lambda *inputs: np.asarray(compiled(*inputs))
  (x,) = inputs_of(config)
  changed = x.copy()
  changed[0, 2] = (changed[0, 2] + 1) % 23
  assert (np.abs(apply(x) - apply(changed))[0].max(axis=-1) > 0).all()

  config = make("transformer")
  params = init(config)
  compiled = applied(models.build(config), params)
  source, target = inputs_of(config)
  other = target.copy()
  other[0, 3] = (other[0, 3] + 1) % 23
  moved = np.abs(apply(source, target) - apply(source, other))[0].max(axis=-1) > 0
  np.testing.assert_array_equal(moved, [False] * 3 + [True] * 3)
  other = source.copy()
  other[0, 3] = (other[0, 3] + 1) % 23
  assert (np.abs(apply(source, target) - apply(other, target))[0].max(axis=-1) > 0).all()


@pytest.mark.parametrize("categories", [(3, 4), (2,) * 6])
def test_each_category_has_a_vector(categories):
  config = make("tabular", categories=categories)
  params, model = init(config), models.build(config)
  assert sum(x.size for x in jax.tree.leaves(params)) == models.counts_of(config).params_total
  x = np.ones((2, 6), np.float32)
  x[1, -1] = 0  # another category of the last feature
  changed = {**params, "categories": params["categories"].at[sum(categories[:-1])].add(jnp.arange(16.0))}
  before, after = (applied(model, p)(x) for p in (params, changed))
  np.testing.assert_array_equal(before[0], after[0])
  assert (before[1] != after[1]).all()


def test_relative_positions_are_those_of_transformer_xl():
  """Term by term, Dai et al. 2019, section 3.3, for one head."""
  D, K = 8, 6
  module = Attention(1, 1, K, 1.0, jnp.float32, attend, relative=True)
  x = jax.random.normal(jax.random.key(1), (1, T, D))
  params = nn.meta.unbox(module.init(jax.random.key(0), x)["params"])
  params = {name: w + 0.1 * jax.random.normal(jax.random.key(2), w.shape) for name, w in params.items()}
  q, k, v = (x[0] @ params[name] for name in ("query", "key", "value"))
  r = sinusoids(np.arange(T), D) @ params["distance"]
  out = np.zeros((T, K))
  for i in range(T):
    scores = [
      (q[i] @ k[j] + q[i] @ r[i - j] + params["u"] @ k[j] + params["v"] @ r[i - j]) / K**0.5 for j in range(i + 1)
    ]
    out[i] = jax.nn.softmax(jnp.array(scores)) @ v[: i + 1]
  result_BxTxD, _ = module.apply({"params": params}, x)
  np.testing.assert_allclose(result_BxTxD[0], out @ params["out"], atol=1e-5)


def test_bad_models_are_refused_with_their_field():
  from bigmodel.errors import UserError

  for name, changes, field in (
    ("alexnet", dict(inputs=(28, 28, 1)), "28 x 28 are too small"),
    ("vit", dict(patch=5), "config.model.patch: 5 does not divide"),
    ("tabular", dict(inputs=(4, 4)), "is not a row of features"),
    ("gpt", dict(norm="batch"), "config.model.norm: no 'batch'"),
    ("bert", dict(positions=4), "config.data.context: 6 is more than config.model.positions = 4"),
  ):
    with pytest.raises(UserError, match=field):
      models.check(make(name, **changes))


@pytest.mark.parametrize("rows", [(7,), (3, 7), (2, 3, 7)])
def test_the_gradient_of_a_product_equals_that_of_a_plain_product(rows):
  """Also to second order, which Sophia needs."""
  check_gradients(times, (*rows, 5), (5, 4))


@pytest.mark.parametrize("widths", [(5, 4), (4, 5)], ids=["wide", "narrow"])
def test_the_gradient_of_products_of_heads_equals_that_of_plain_products(widths):
  check_gradients(product, (2, 3, 7, widths[0]), (2, 3, *widths))


def check_gradients(own, *shapes):
  keys = jax.random.split(jax.random.key(0), 3)
  x, w, v = (jax.random.normal(key, shape) for key, shape in zip(keys, (*shapes, shapes[1]), strict=True))

  def gradients(product):
    first = jax.grad(lambda x, w: jnp.sum(jnp.sin(product(x, w))), argnums=(0, 1))
    return *first(x, w), jax.grad(lambda w: jnp.vdot(first(x, w)[1], v))(w)

  for mine, plain in zip(gradients(own), gradients(jnp.matmul), strict=True):
    np.testing.assert_allclose(mine, plain, rtol=1e-5, atol=1e-6)
