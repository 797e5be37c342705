"""Tasks: inputs and targets, and losses compared with their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel import tasks
from bigmodel.study import default_config
from bigmodel.tasks import masked_lm, seq2seq

KEY = jax.random.key(0)


def test_each_row_has_the_same_number_of_masked_tokens_in_bert_s_shares():
  tokens = jax.random.randint(jax.random.key(1), (200, 400), 0, 50)
  hidden, weight = masked_lm.hide(tokens, KEY, 60, mask_token=50, vocab=51)
  np.testing.assert_array_equal(weight.sum(axis=1), 60)
  np.testing.assert_array_equal(jnp.where(weight == 0, hidden, 0), jnp.where(weight == 0, tokens, 0))
  picked = np.asarray(weight, bool)
  masked, kept = np.asarray(hidden == 50)[picked].mean(), np.asarray(hidden == tokens)[picked].mean()
  assert masked == pytest.approx(0.8 + 0.1 / 51, abs=0.015)  # 12,000 positions: 4 standard errors
  assert kept == pytest.approx(0.1 + 0.1 / 51, abs=0.012)
  assert np.asarray(masked_lm.hide(tokens, jax.random.key(2), 60, 50, 51)[1] != weight).any(axis=1).all()


@pytest.mark.parametrize("target", ["next", "reversed"])
def test_a_row_is_split_into_source_and_target(target):
  rows = jnp.arange(20, 31)[None]  # T = 10, and the token before
  source, read, said = (np.asarray(x[0]) for x in seq2seq.pair(rows, target))
  np.testing.assert_array_equal(source, range(21, 26))
  if target == "next":
    np.testing.assert_array_equal(said, range(26, 31))
    np.testing.assert_array_equal(read, range(25, 30))
  else:
    np.testing.assert_array_equal(said, range(25, 20, -1))
    np.testing.assert_array_equal(read, [seq2seq.BEGIN, *range(25, 21, -1)])


@pytest.mark.parametrize("target", ["next", "reversed"])
def test_values_of_a_sequence_are_at_the_positions_of_their_tokens(target):
  """A model that always predicts one token is right only at the positions of that token."""
  config = default_config("transformer")
  config.task.target, config.data.context = target, 10
  task = tasks.build(config)
  rows = jnp.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1]])
  knows = 2 if target == "reversed" else 8  # not the middle one, which is its own mirror image
  apply = lambda source, read: (jnp.zeros((*read.shape, 12)).at[..., knows].set(9.0), {})
  values = task.values(apply, rows, KEY)
  half = slice(0, 5) if target == "reversed" else slice(5, 10)
  assert float(values["weight"].sum()) == 5 == float(values["weight"][0, half].sum())
  right = np.asarray(values["accuracy"] * values["weight"])[0]
  np.testing.assert_array_equal(np.flatnonzero(right), [knows - 1])  # rows[0, 1:][knows - 1] == knows


def logits_and_targets():
  return np.asarray(jax.random.normal(KEY, (40, 5))), np.asarray(jax.random.randint(jax.random.key(1), (40,), 0, 5))


def test_smoothed_and_weighted_cross_entropy_matches_its_definition():
  logits, targets = logits_and_targets()
  weights, smoothing = np.array([1.0, 2.0, 0.5, 0.0, 3.0]), 0.1
  apply = lambda x: (jnp.asarray(logits), {})
  batch = {"inputs": None, "targets": jnp.asarray(targets)}
  config = default_config("mlp")
  config.task.class_weights = tuple(weights)
  objective, logged = tasks.build(config).objective(apply, batch, {"label_smoothing": jnp.float32(smoothing)}, KEY)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  labels = (1 - smoothing) * np.eye(5)[targets] + smoothing / 5
  assert float(objective) == pytest.approx(np.mean(weights[targets] * -(labels * log_p).sum(axis=1)), rel=1e-5)
  assert float(logged["loss"]) == pytest.approx(-log_p[np.arange(40), targets].mean(), rel=1e-5)


def test_balanced_classes_have_equal_weight():
  config = default_config("mlp")
  config.task.balanced = True
  tasks.resolve(config.task, {"class_counts": [10, 30, 0, 20]})
  weights = np.array(config.task.class_weights)
  np.testing.assert_allclose(weights[[0, 1, 3]] * [10, 30, 20], 15)


def test_a_regression_of_quantiles_finds_them():
  """The constants of lowest loss are the quantiles of the targets, for three quantiles at once."""
  config = default_config("linear", "regression")
  config.task.quantiles = (0.1, 0.5, 0.9)
  task = tasks.build(config)
  target = np.random.default_rng(0).exponential(size=1000).astype(np.float32)
  batch, h = {"inputs": None, "targets": jnp.asarray(target)}, {}
  said = lambda x: lambda _: (jnp.broadcast_to(x, (1000, 3)), {})
  slope = jax.grad(lambda x: task.objective(said(x), batch, h, KEY)[0])
  true = np.quantile(target, config.task.quantiles)
  np.testing.assert_allclose(slope(jnp.asarray(true, jnp.float32)), 0, atol=1e-3)
  assert (np.abs(slope(jnp.asarray(true * 1.2, jnp.float32))) > 3e-3).all()
  values = {n: np.asarray(x, np.float64) for n, x in task.values(said(jnp.asarray(true)), batch, KEY).items()}
  found = task.measure(values)(np.ones((1000, 1)))
  assert found["coverage"] == pytest.approx(0.8, abs=0.01)
  assert found["mae"] == pytest.approx(np.abs(target - true[1]).mean(), rel=1e-5)


def test_tasks_and_models_that_do_not_fit_are_refused():
  from bigmodel import models
  from bigmodel.errors import UserError

  config = default_config("vit")
  config.task = default_config("decoder").task
  with pytest.raises(UserError, match="a vit is for classification, not causal_lm"):
    models.check(config)
  config = default_config("bert")
  config.task.masked_percent = 0
  with pytest.raises(UserError, match=r"config.task.masked_percent: 0%"):
    tasks.check(config)
  config = default_config("mlp")
  config.model.outputs, config.task.class_weights = 3, (1.0, 2.0)
  with pytest.raises(UserError, match="2 weights for 3 classes"):
    tasks.check(config)
