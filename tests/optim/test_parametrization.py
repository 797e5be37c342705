"""muP and CompleteP: multiples follow from shapes, are 1 at the base size, and keep changes of activations alike."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from bigmodel import models, optim, study
from bigmodel.files import UserError
from bigmodel.optim import parametrization
from bigmodel.plan import coordinates
from bigmodel.study import default_config

BASE = ("model.width=64", "model.layers=2")


def config_of(kind, width=64, layers=2, optimizer="adamw", family="decoder", **fields):
  config = default_config(family)
  config.model.update(width=width, layers=layers, head_size=16)
  config.optim.update(name=optimizer, parametrization=kind, base=() if kind == "standard" else BASE)
  config.optim.update(fields)
  config.data.context = 8
  return config


def resolved(config):
  config = study.resolve_without_data(config)
  config.model.vocab = 16
  optim.check(config)
  return config


def multiples(**fields):
  return {name: rest for name, *rest in parametrization.multiples(resolved(config_of("completep", **fields)))}


def test_nothing_is_multiplied_at_the_base():
  assert multiples() == {}
  assert parametrization.multiples(resolved(config_of("standard", width=256))) == ()


def test_a_base_is_filled_up_with_what_follows_from_it():
  base = resolved(config_of("mup", width=256)).optim.base
  assert "model.width=64" in base
  assert "model.heads=4" in base
  assert any(text.startswith("model.feed_forward=") for text in base)


def test_multiples_of_adam_are_those_of_the_papers():
  """Four times as wide: hidden rates a quarter, tables as before, logits a quarter; eight times as deep: branches."""
  found = multiples(width=256, layers=16)
  ratio = resolved(config_of("mup", width=256)).model.feed_forward / resolved(config_of("mup")).model.feed_forward
  init, rate, decay = found["blocks.attention.query"]
  assert (init, rate, decay) == (1.0, 0.25, 4.0)
  assert found["embedding"] == [2.0, 1.0, 1.0]  # its own values shrink with the root of the width
  assert found["final_norm.scale"] == [0.25, 0.25, 1.0]
  init, rate, _ = found["blocks.attention.out"]
  assert (init, rate) == pytest.approx((8**-0.5, 0.25 / 8))
  assert found["blocks.feed_forward.down"][1] == pytest.approx(1 / ratio / 8)
  assert "blocks.attention_norm.scale" not in found


def test_multiples_of_other_optimizers_and_heads():
  assert multiples(width=256, optimizer="sgd")["embedding"][1] == 4.0
  assert "blocks.attention.query" not in multiples(width=256, optimizer="sgd")
  spectral = multiples(width=256, optimizer="muon", update_scale="spectral")
  assert "blocks.attention.query" not in spectral
  matched = multiples(width=256, optimizer="muon")["blocks.attention.query"]
  assert matched[1] == pytest.approx(0.5)  # match_rms_adamw grows with the root of the width


def test_scores_of_larger_heads_are_divided_by_their_size():
  """1 / head_size in place of its root: queries begin smaller, and learn slower, by the root of the ratio."""
  config = config_of("mup", base=("model.head_size=16",))
  config.model.head_size = 64
  found = {name: rest for name, *rest in parametrization.multiples(resolved(config))}
  assert found["blocks.attention.query"][:2] == pytest.approx([0.5, 0.5])
  assert "blocks.attention.key" not in found
  config.model.qk_norm = True
  found = {name: rest for name, *rest in parametrization.multiples(resolved(config))}
  assert found["blocks.attention.query_norm.scale"][:2] == pytest.approx([0.5, 0.5])


def test_scaled_initial_values_are_the_models_own_times_the_multiple():
  config = resolved(config_of("completep", width=128, layers=4))
  model, found = models.build(config), parametrization.multiples(config)
  boxed = model.init(jax.random.key(0), *models.example(config))["params"]
  plain, scaled = nn.meta.unbox(boxed), nn.meta.unbox(parametrization.scaled(boxed, found))
  times = {name: init for name, init, _, _ in found}
  for path, x in jax.tree_util.tree_leaves_with_path(plain):
    own = scaled
    for key in path:
      own = own[key.key]
    np.testing.assert_allclose(own, x * times.get(optim.names.dotted(path), 1.0), rtol=1e-6)


def test_what_cannot_be_carried_over_is_refused():
  for fields, message in (
    ({"base": ()}, "say a base size"),
    ({"base": ("width=64",)}, "is not model.FIELD=VALUE"),
    ({"optimizer": "prodigy"}, "not for prodigy"),
  ):
    with pytest.raises(UserError, match=message):
      optim.check(config_of("mup", **fields))
  with pytest.raises(UserError, match="no norm before its logits"):
    optim.check(config_of("mup", family="transformer"))


@pytest.mark.parametrize(("kind", "low", "high"), [("standard", 0.3, 2.0), ("mup", 0.0, 0.2)])
def test_a_step_changes_activations_as_much_at_every_width(kind, low, high):
  how = dict(lr=2e-3, schedule="constant", weight_decay=0.0, epsilon=1e-20, clip=1e9)
  configs = [resolved(config_of(kind, width=width, **how)) for width in (64, 256)]
  for config in configs:
    config.model.tie_embeddings = False  # so that the readout can be zero
  found = coordinates.check(configs, (64, 256), steps=3, seeds=1)
  assert all(np.isfinite(x).all() for x in found.change.values())
  assert {"attention", "feed_forward", "block", "decoder"} <= set(found.slopes)
  assert low < found.steepest < high, found.slopes
