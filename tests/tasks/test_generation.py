"""Decoding: with and without a cache, and beam search against all possible sequences."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigmodel.models.decoder import Decoder, Shape
from bigmodel.tasks.generation import beam_search, sample

V, P, LENGTH = 6, 3, 12


@pytest.fixture(scope="module")
def model():
  shape = Shape(V, 16, 2, 2, 1, 8, 32, "swiglu")
  module = Decoder(shape)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
  return module, jax.tree.map(lambda x: 4 * x, params)  # far from uniform


def whole(model, tokens):
  """Returns log-probabilities of the next tokens, computed without a cache."""
  module, params = model
  padded = jnp.pad(jnp.asarray(tokens), ((0, 0), (0, LENGTH - np.shape(tokens)[1])))  # what follows is not seen
  return np.asarray(_log_probabilities(module, params, padded))[:, : np.shape(tokens)[1]]


@functools.partial(jax.jit, static_argnames="module")
def _log_probabilities(module, params, tokens):
  return jax.nn.log_softmax(module.apply({"params": params}, tokens)[0])


def prompts(rows):
  return jax.random.randint(jax.random.key(5), (rows, P), 0, V)


def run(model, prompt, new, temperature, top_k=0, top_p=1.0, seed=0):
  said, chances = sample(*model, prompt, new, jax.random.key(seed), jnp.float32(temperature), jnp.float32(top_p), top_k)
  return np.asarray(said), np.asarray(chances)


def test_greedy_tokens_equal_those_without_a_cache(model):
  prompt, new = np.asarray(prompts(4)), 8
  said, chances = run(model, prompt, new, 0.0)
  rows = prompt
  for n in range(new):
    following = whole(model, rows)[:, -1]
    np.testing.assert_array_equal(said[:, n], following.argmax(axis=1))
    np.testing.assert_allclose(chances[:, n], following.max(axis=1), atol=1e-4)
    rows = np.concatenate([rows, said[:, n : n + 1]], axis=1)


@pytest.mark.parametrize(
  ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (2, 1.0, 1.0), (0, 0.7, 1.0), (0, 1.0, 0.5)]
)
def test_samples_come_from_the_restricted_distribution(model, top_k, top_p, temperature):
  prompt = jnp.repeat(prompts(1), 4000, axis=0)
  said, _ = run(model, prompt, 1, temperature, top_k, top_p)
  p = np.exp(whole(model, prompt[:1])[0, -1] / temperature)
  p /= p.sum()
  order = np.argsort(-p)
  kept = order[:top_k] if top_k else order[: 1 + int(np.sum(np.cumsum(p[order]) < top_p))]
  expected = np.where(np.isin(np.arange(V), kept), p, 0)
  expected /= expected.sum()
  drawn = np.bincount(said[:, 0], minlength=V) / 4000
  np.testing.assert_allclose(drawn, expected, atol=0.035)  # 4 standard errors
  assert drawn[expected == 0].sum() == 0


def test_enough_beams_find_the_likeliest_of_all_sequences(model):
  prompt, new, stop = prompts(1), 3, V - 1
  said, scores = beam_search(*model, prompt, new, V**2, jnp.int32(stop))
  every = np.array(list(itertools.product(range(V), repeat=new)))
  follow = whole(model, np.concatenate([np.repeat(prompt, len(every), axis=0), every], axis=1))[:, P - 1 : -1]
  best = {}
  for tokens, logp in zip(every.tolist(), follow, strict=True):
    end = tokens.index(stop) + 1 if stop in tokens else new
    best[tuple(tokens[:end])] = sum(logp[i, tokens[i]] for i in range(end))
  ranked = sorted(best.items(), key=lambda item: -item[1])
  for (tokens, score), row, found in zip(ranked[:5], np.asarray(said), np.asarray(scores), strict=False):
    np.testing.assert_array_equal(row, [*tokens, *[stop] * (new - len(tokens))])
    assert found == pytest.approx(score, abs=1e-4)


def test_half_precision_and_experts_can_decode():
  """Caches have the dtype of the model, and experts drop nothing for any group and capacity."""
  from bigmodel import models, study

  config = study.default_config()
  config.model.update(vocab=V, width=16, layers=1, head_size=8, experts=3, expert_group=4, expert_capacity=0.5)
  config = study.resolve_without_data(config)
  module = models.build(config, jnp.bfloat16)
  params = nn.meta.unbox(jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
  said, chances = run((module, params), prompts(2), 5, 0.0)
  follow = whole((models.build(config), params), np.concatenate([prompts(2), said], axis=1))[:, P - 1 : -1]
  np.testing.assert_allclose(np.take_along_axis(follow, said[..., None], 2)[..., 0], chances, atol=0.05)  # bfloat16
