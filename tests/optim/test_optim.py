"""Schedules end at their final rate, only matrices decay, and other hyperparameters do not recompile."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from handmade import labels_of  # its folder is on the path of pytest

from bigmodel import models, optim
from bigmodel.study import default_config


def rates(schedule, steps=100, **fields):
  config = default_config()
  config.optim.schedule = schedule
  for name, value in fields.items():
    config.optim[name] = value
  h = optim.hyperparameters(config, steps)
  return np.array(
    [h.lr * optim.schedules.factor(schedule, jnp.int32(step), h) for step in range(steps + 1)]
  ), config.optim


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_schedules_rise_to_the_rate_and_end_at_the_horizon(schedule, steps):
  values, fields = rates(schedule, steps, lr=0.5, warmup=0.1, decay=0.3, final=0.1)
  warmup = round(0.1 * steps)
  assert values[warmup - 1] == values.max() == pytest.approx(fields.lr)
  assert np.all(np.diff(values[:warmup]) > 0)
  assert np.all(np.diff(values[warmup:]) <= 1e-7)  # float32
  end = {"inverse_sqrt": (warmup / (steps + 1)) ** 0.5, "constant": 1.0}.get(schedule, 0.1)
  assert values[steps] == pytest.approx(fields.lr * end, rel=1e-5)


def test_wsd_is_flat_until_it_decays_and_cosine_is_half_way_in_the_middle():
  values, _ = rates("wsd", lr=1.0, warmup=0.1, decay=0.2, final=0.0)
  assert np.all(values[10:81] == 1.0)
  assert values[90] == pytest.approx(0.5)
  values, _ = rates("cosine", lr=1.0, warmup=0.0, final=0.0)
  assert values[50] == pytest.approx(0.5, abs=1e-6)


def test_no_warmup_starts_at_the_rate():
  assert rates("cosine", lr=0.3, warmup=0.0)[0][0] == pytest.approx(0.3)


def one_update(config, grads, params):
  how = optim.How.of(config, labels_of(params))
  return optim.update(
    how, grads, optim.initial_state(how, params), params, jnp.int32(0), optim.hyperparameters(config, 10)
  )[0]


def test_one_step_of_adamw_equals_that_of_optax():
  config = default_config()
  config.optim.update(lr=0.1, warmup=0.0, schedule="constant")
  params = {"w": jnp.ones((3, 3)), "scale": jnp.ones(3)}
  grads = jax.tree.map(lambda x: 0.01 * jnp.ones_like(x), params)
  new = one_update(config, grads, params)
  theirs = optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.1, mask={"w": True, "scale": False})
  expected, _ = theirs.update(grads, theirs.init(params), params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a - 1, b, rtol=1e-5), new, expected)  # float32
  assert new["w"][0, 0] < new["scale"][0]


def test_large_gradients_are_clipped():
  config = default_config()
  config.optim.update(name="sgd", lr=1.0, warmup=0.0, schedule="constant", weight_decay=0.0)
  moved = lambda g: -one_update(config, {"w": g}, {"w": jnp.zeros(4)})["w"]
  assert jnp.linalg.norm(moved(100 * jnp.ones(4))) == pytest.approx(1.0)
  assert jnp.linalg.norm(moved(0.1 * jnp.ones(4))) == pytest.approx(0.2)


def test_only_matrices_decay_however_they_are_stacked():
  config = default_config()
  models.resolve(config.model, {"vocab": 50})
  config.model.update(qk_norm=True, experts=2)
  labels = models.labels(config)
  assert len(labels.rows) > 10
  for name, label in labels:
    assert label.is_matrix == (not name.endswith(".scale")), name
