"""Vocabularies are padded inside the model: the padding is invisible outside and stays zero."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_families import CASES, init, inputs_of, make  # its folder is on the path of pytest

from bigmodel import models, optim, parallel, tasks
from bigmodel.models.layers import initial
from bigmodel.models.layers.attention import HIDDEN
from bigmodel.models.layers.embedding import padded
from bigmodel.optim.optimizers import NAMES
from bigmodel.train import step

PADDED = [name for name, (family, _) in CASES.items() if "vocab" in models.declared(family)]


def test_padding_is_small_and_divides():
  for rows in (1, 257, 4095, 4096, 30_522, 50_257, 128_256):
    more = padded(rows)
    assert more >= rows
    assert more % (8 if rows < 4096 else 128) == 0
    assert more - rows < max(8, 0.032 * rows)


@pytest.mark.parametrize("name", PADDED)
def test_initial_values_of_real_rows_do_not_depend_on_padding(name):
  config, plain = make(name), {}
  for way in (init, drawn_alone):
    params = way(config)
    assert models.real_rows(config)
    for path, rows in models.real_rows(config).items():
      assert params[path].shape[0] == padded(rows) > rows
      assert not np.asarray(params[path][rows:]).any()
      plain.setdefault(path, params[path][:rows])
      np.testing.assert_array_equal(params[path][:rows], plain[path])


def drawn_alone(config):
  """Returns parameters that each draw their numbers separately."""
  return nn.meta.unbox(jax.jit(lambda key: models.build(config).init(key, *models.example(config)))(jax.random.key(0)))[
    "params"
  ]


def test_numbers_of_real_rows_equal_those_of_an_unpadded_array():
  key = jax.random.key(3)
  np.testing.assert_array_equal(
    initial.normal(0.5, 23)(key, (24, 6)), jnp.pad(initial.normal(0.5)(key, (23, 6)), ((0, 1), (0, 0)))
  )


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer"])
def test_padding_is_never_predicted_if_a_mesh_shards_the_vocabulary(name):
  config = make(name)
  config.parallel.update(preset="fsdp_tp")
  params, inputs = init(config), inputs_of(config)
  model, mesh = models.build(config), parallel.make_mesh_of(dict(tensor=2))
  whole = jax.jit(lambda *x: model.apply({"params": params}, *x)[0])(*inputs)
  with jax.set_mesh(mesh), nn.logical_axis_rules(parallel.rules_on(mesh, parallel.rules(config, dict(mesh.shape)))):
    split = jax.jit(lambda *x: model.apply({"params": params}, *x)[0])(*inputs)
  assert whole.shape[-1] == 23
  assert split.shape[-1] == 24
  np.testing.assert_allclose(split[..., :23], whole, atol=1e-5)
  assert (np.asarray(split[..., 23]) == np.float32(HIDDEN)).all()


@pytest.mark.parametrize(
  "optimizer", [pytest.param(n, marks=() if n in ("adamw", "adafactor") else pytest.mark.slow) for n in NAMES]
)
def test_padding_stays_zero_with_every_optimizer(optimizer):
  config = make("gpt", layers=1, tie_embeddings=False)
  config.optim.name, config.optim.lr = optimizer, 1.0 if optimizer == "prodigy" else 0.01
  params, task, how = init(config), tasks.build(config), optim.How.of(config)
  model, h, rows = models.build(config), optim.hyperparameters(config, 10), models.real_rows(config)
  batch = np.random.default_rng(0).integers(0, 23, (4, 7)).astype(np.int32)
  numbers = {name: jnp.float32(0.1) for name in tasks.traced(config)}
  loss = lambda p: task.objective(step.applied(model.apply, p), jnp.asarray(batch), numbers, jax.random.key(0))[0]

  @jax.jit
  def steps(params):
    def one(at, carry):
      params, state = carry
      return optim.update(how, jax.grad(loss)(params), state, params, at, h, loss)[:2]

    return jax.lax.fori_loop(0, 3, one, (params, optim.initial_state(how, params)))

  after, state = steps(params)
  for path, real in rows.items():
    for tree in (after, optim.evaluated(config, after, state)):
      assert not np.asarray(tree[path][real:]).any()
    assert (np.asarray(after[path]) != np.asarray(params[path])).any()
