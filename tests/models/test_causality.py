"""Decoders are causal in training and evaluation, and evaluation gives the logits of decoding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_published import published  # its folder is on the path of pytest

from bigmodel import models, study
from bigmodel.config import load
from bigmodel.models import decoder
from bigmodel.models.layers.basic import NORMS
from bigmodel.tasks import generation

ROWS, T, VOCAB, SEPARATOR = 4, 12, 31, 0
# Float32 sums of a row may be taken in another order where other rows, or more of a row, are computed beside them.
ROUNDING = 1e-5
EXPERTS = dict(experts=5, experts_per_token=2)
VARIANTS = {
  "qk_norm": dict(qk_norm=True, norm_first=False),
  "experts, few slots": dict(**EXPERTS, expert_capacity=0.5),
  "experts, as many slots as asked for": dict(**EXPERTS, expert_capacity=0.0),
  "experts, groups": dict(**EXPERTS, expert_group=4),
  "experts, one of many": dict(experts=8, experts_per_token=1, expert_group=6, positions="relative", norm_first=False),
}


def reduced(config):
  """A tiny decoder with the options of a config: everything except sizes and constants."""
  config = config.copy_and_resolve_references()
  model = config.model
  grouped = 0 < model.kv_heads < model.heads
  group = 4 if 0 < model.expert_group < config.data.context else 0
  model.update(vocab=VOCAB, width=16, layers=2, heads=2, kv_heads=1 if grouped else 2, head_size=8, feed_forward=24)
  model.update(expert_group=group, epsilon=1e-6, rotary_base=10_000.0)
  config.data.context = T
  return study.resolve_without_data(config)


def variant(changes):
  config = study.default_config("decoder")
  config.data.context = T
  config.model.update(vocab=VOCAB, width=16, layers=2, head_size=8, feed_forward=24, **changes)
  return study.resolve_without_data(config)


@functools.cache
def registry():
  """One config for each distinct tiny shape of the published decoders and the options above, by its first name."""
  papers = {name: published.get_config(name) for name in published.NAMES}
  every = {name: reduced(config) for name, config in papers.items() if config.model.family == "decoder"}
  every["configs/moe.py"] = reduced(load("configs/moe.py")[0])
  every |= {name: variant(changes) for name, changes in VARIANTS.items()}
  for option, values in {"positions": decoder.POSITIONS, "norm": NORMS}.items():
    for value in set(values) - {config.model[option] for config in every.values()}:
      every[f"{option}={value}"] = variant({option: value})
  first: dict[decoder.Shape, str] = {}
  for name, config in every.items():
    first.setdefault(decoder.shape_of(config), name)
  return {name: every[name] for name in first.values()}


def tokens_of(documents):
  """Returns rows of one document, or of several with separators between them."""
  tokens = np.random.default_rng(documents).integers(1, VOCAB, (ROWS, T), dtype=np.int32)
  if documents > 1:
    tokens[:, 3::4] = SEPARATOR
  return tokens


@functools.cache
def initial(name):
  """Returns the registry's config of that name, its model and initial parameters."""
  config = registry()[name]
  model = decoder.build(config, jnp.float32)
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
  return config, model, params


@pytest.mark.parametrize("name", registry())
def test_no_position_sees_later_tokens(name):
  """Changing all tokens after a position does not change its logits."""
  config, model, params = initial(name)
  for training in (False, True):
    rngs = {"dropout": jax.random.key(2)} if training else None
    apply = jax.jit(lambda tokens, rngs=rngs: model.apply({"params": params}, tokens, rngs=rngs))
    for documents in (1, 3):
      tokens, others = tokens_of(documents), tokens_of(1)[::-1]
      logits, auxiliary = jax.device_get(apply(tokens))
      for t in range(1, T):
        changed, _ = jax.device_get(apply(np.where(np.arange(T) < t, tokens, others)))
        np.testing.assert_allclose(changed[:, :t], logits[:, :t], atol=ROUNDING, err_msg=f"training: {training}, {t}")
        assert np.abs(changed - logits)[:, t:].max() > 100 * ROUNDING
      if training and 0 < config.model.expert_capacity < 1 and config.model.experts:
        assert float(auxiliary["dropped_choices"]) > 0.1  # so there was something to be seen


@pytest.mark.parametrize("name", registry())
def test_evaluation_equals_decoding_token_by_token(name):
  """For prompts of any length."""
  _, model, params = initial(name)
  tokens = tokens_of(3)
  whole = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])(tokens)
  layers, caches = generation.by_layer(params), generation.empty_caches(model, ROWS, T)
  step = jax.jit(lambda tokens, caches, start: model.apply({"params": layers}, tokens, caches, start))
  parts, start = [], 0
  for stop in (5, *range(6, T + 1)):
    logits, caches = step(tokens[:, start:stop], caches, jnp.int32(start))
    parts.append(logits)
    start = stop
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=ROUNDING)


def test_the_registry_covers_every_option_of_a_decoder():
  shapes = {models.shape_of(config) for config in registry().values()}
  for option, values in {
    "positions": decoder.POSITIONS, "norm": NORMS, "norm_first": (False, True), "qk_norm": (False, True),
    "experts": (0, 5), "expert_group": (0, 4), "tie_embeddings": (False, True), "kv_heads": (1, 2),
  }.items():  # fmt: skip
    assert {getattr(shape, option) for shape in shapes} >= set(values), option
