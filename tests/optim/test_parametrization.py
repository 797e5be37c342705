"""muP and CompleteP: multiples follow from shapes, are 1 at the base size, and keep changes of activations equal."""

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.core import Tracer

from bigmodel import models, optim, study
from bigmodel.errors import UserError
from bigmodel.models import decoder
from bigmodel.models.layers import attention
from bigmodel.models.layers.roles import dotted
from bigmodel.optim import optimizers, parametrization
from bigmodel.optim.optimizers import Step
from bigmodel.planner import coordinates
from bigmodel.study import default_config

BASE = ("model.width=64", "model.layers=2")
HOW: dict[str, Any] = dict(schedule="constant", weight_decay=0.0, clip=1e9)
ACCEPTED = [name for name, optimizer in optimizers.BUILT_IN.items() if parametrization.transfers(optimizer)]


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


def test_all_multiples_are_one_at_the_base_size():
  assert multiples() == {}
  assert parametrization.multiples(resolved(config_of("standard", width=256))) == ()


def test_missing_fields_of_a_base_are_derived():
  base = resolved(config_of("mup", width=256)).optim.base
  assert "model.width=64" in base
  assert "model.heads=4" in base
  assert any(text.startswith("model.feed_forward=") for text in base)


def test_multiples_of_adam_agree_with_the_papers():
  """At four times the width, hidden rates and logits are a quarter, tables unchanged; branches fall with the depth."""
  found = multiples(width=256, layers=16)
  ratio = resolved(config_of("mup", width=256)).model.feed_forward / resolved(config_of("mup")).model.feed_forward
  init, rate, decay, epsilon = found["blocks.attention.query"]
  assert (init, rate, decay) == (1.0, 0.25, 4.0)
  assert epsilon == pytest.approx(0.25 / 8)  # gradients fall with the width that a matrix leads to, and the layers
  assert found["embedding"] == [2.0, 1.0, 1.0, 0.25]  # its own values shrink with the root of the width
  assert found["final_norm.scale"] == [0.25, 0.25, 1.0, 1.0]
  init, rate, _, epsilon = found["blocks.attention.out"]
  assert (init, rate, epsilon) == pytest.approx((8**-0.5, 0.25 / 8, 0.25))
  assert found["blocks.feed_forward.down"][1] == pytest.approx(1 / ratio / 8)
  assert found["blocks.attention_norm.scale"] == [1.0, 1.0, 1.0, pytest.approx(0.25 / 8)]


def test_epsilon_scales_as_gradients_do():
  """Compares the rms of each parameter's initial gradient, with a small readout, between two sizes."""
  sizes = []
  for width in (64, 256):
    config = resolved(config_of("mup", width=width))
    loss, key = coordinates._loss(config), jax.random.key(0)
    made = jax.jit(models.build(config).init)(key, *models.example(config))
    params = parametrization.scaled(nn.meta.unbox(made)["params"], parametrization.multiples(config))
    grads = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params, coordinates._rows(config, 0), key))
    sizes.append({dotted(path): float(np.sqrt(np.mean(g**2))) for path, g in grads})
  epsilon = {name: rest[-1] for name, *rest in parametrization.multiples(config)}
  # What is initialised at random adds to the signal; it falls by the root.
  for name in ("blocks.attention.out", "blocks.feed_forward.down", "embedding", "final_norm.scale"):
    assert sizes[1][name] / sizes[0][name] == pytest.approx(epsilon.get(name, 1.0), rel=0.6), name


def test_each_parameter_has_a_scaled_epsilon():
  """The first step of Adam is g / (|g| + epsilon), with epsilon times its multiple."""
  config = resolved(config_of("completep", width=256, layers=4, epsilon=1e-2, weight_decay=0.0, clip=1e9, warmup=0.0))
  how, found = optim.How.of(config), {name: rest for name, *rest in parametrization.multiples(config)}
  made = jax.eval_shape(models.build(config).init, jax.random.key(0), *models.example(config))
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), nn.meta.unbox(made)["params"])
  grads = jax.tree.map(lambda x: 1e-3 * x, params)
  h = optim.hyperparameters(config, 10)
  new, _, metrics = optim.update(how, grads, optim.initial_state(how, params), params, jnp.int32(0), h)
  for name in ("blocks.attention.query", "blocks.feed_forward.down", "embedding", "final_norm.scale"):
    _, rate, _, epsilon = found.get(name, (1.0, 1.0, 1.0, 1.0))
    assert isinstance(rate, float)
    assert isinstance(epsilon, float)
    after = new
    for key in name.split("."):
      after = after[key]
    expected = 1 - float(metrics["lr"]) * rate * 1e-3 / (1e-3 + 1e-2 * epsilon)
    np.testing.assert_allclose(after, expected, rtol=1e-5, err_msg=name)


def test_the_last_norm_of_a_stack_is_divided_in_its_last_layer():
  """If blocks end in a norm, that of the last layer comes before the logits."""
  config = config_of("mup", width=256)
  config.model.norm_first = False
  found = {name: rest for name, *rest in parametrization.multiples(resolved(config))}
  assert found["blocks.feed_forward_norm.scale"] == [(1.0, 0.25), (1.0, 0.25), (1.0, 1.0), (0.25, 1.0)]
  params = {"blocks": {"feed_forward_norm": {"scale": np.ones((2, 256))}}}
  scaled = parametrization.scaled(params, parametrization.multiples(resolved(config)))
  np.testing.assert_allclose(scaled["blocks"]["feed_forward_norm"]["scale"][:, 0], (1.0, 0.25))
  found = {
    name: rest for name, *rest in parametrization.multiples(resolved(config_of("mup", width=256, family="transformer")))
  }
  assert found["embedding"][:2] == [1.0, 0.5]  # multiplied by the root of the width
  assert found["decoder_blocks.feed_forward_norm.scale"][0] == (1.0, 0.5)
  assert found["encoder_blocks.feed_forward_norm.scale"][0] == 1.0


def test_multiples_of_other_optimizers_and_heads():
  assert multiples(width=256, optimizer="sgd")["embedding"][1] == 4.0
  assert multiples(width=256, optimizer="sgd")["blocks.attention.query"][:3] == [1.0, 1.0, 1.0]
  spectral = multiples(width=256, optimizer="muon", update_scale="spectral")
  assert spectral["blocks.attention.query"][:3] == [1.0, 1.0, 1.0]
  matched = multiples(width=256, optimizer="muon")["blocks.attention.query"]
  assert matched[1] == pytest.approx(0.5)  # match_rms_adamw grows with the root of the width


@pytest.mark.parametrize("name", [name for name in ACCEPTED if optimizers.BUILT_IN[name].step is Step.GRADIENT])
def test_gradient_steps_compensate_for_smaller_gradients_in_deeper_models(name):
  """At eight times the depth, gradients of blocks are an eighth, and outputs of branches are scaled by an eighth."""
  found = multiples(layers=16, optimizer=name)
  for inner in ("attention.query", "feed_forward.up", "attention_norm.scale", "feed_forward_norm.scale"):
    assert found[f"blocks.{inner}"][1] == 8.0
  assert found["blocks.attention.out"][1] == found["blocks.feed_forward.down"][1] == 8 / 8**2
  assert not {"embedding", "final_norm.scale"} & set(found)


def test_scores_of_larger_heads_are_divided_by_their_size():
  """Scores are divided by head_size instead of its root: queries start smaller and learn slower by the ratio's root."""
  config = config_of("mup", base=("model.head_size=16",))
  config.model.head_size = 64
  found = {name: rest for name, *rest in parametrization.multiples(resolved(config))}
  assert found["blocks.attention.query"][:2] == pytest.approx([0.5, 0.5])
  assert "blocks.attention.key" not in found
  config.model.qk_norm = True
  found = {name: rest for name, *rest in parametrization.multiples(resolved(config))}
  assert found["blocks.attention.query_norm.scale"][:2] == pytest.approx([0.5, 0.5])


def attentions():
  """Every family with heads, and the decoder with each kind of positions, norms of queries and biases."""
  options = itertools.product(decoder.POSITIONS, (False, True), (False, True))
  of_decoder = [{"positions": positions, "qk_norm": norm, "bias": bias} for positions, norm, bias in options]
  others = [name for name in models.FAMILIES if "head_size" in models.declared(name) and name != "decoder"]
  return [("decoder", fields) for fields in of_decoder] + [(name, {}) for name in others]


@pytest.mark.parametrize(("family", "fields"), attentions(), ids=str)
def test_everything_in_the_scores_is_scaled_for_larger_heads(family, fields, monkeypatch):
  """At four times the head size, multiples halve scores for all parameters, also for vectors that start as zeros."""
  config = default_config(family)
  config.model.update(width=16, layers=1, head_size=16, **fields)
  config.optim.update(parametrization="mup", base=("model.head_size=4",))
  if "inputs" in config.model:
    config.model.update(inputs=(4,) if family == "tabular" else (8, 8, 1), outputs=2)
  if "data" in config and "context" in config.data:
    config.data.context = 8
  config = study.resolve_without_data(config)
  scores, plain = [], attention.attend

  def attend(q, k, v, start=0, causal=True, bias_BxHxTxS=0.0):
    keys = attention.repeat_heads(k, q.shape[2])
    here = jnp.einsum("bthk,bshk->bhts", q * q.shape[-1] ** -0.5, keys) + bias_BxHxTxS
    if not isinstance(here, Tracer):  # of initial values, whose shapes are traced
      scores.append(here)
    return plain(q, k, v, start, causal, bias_BxHxTxS)

  if fields.get("positions") == "relative":  # which use their module's function, whatever the model is given
    monkeypatch.setattr(attention, "attend", attend)
  model, example = models.build(config, attend=attend), models.example(config)
  shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), *example)["params"])
  leaves, structure = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  params = structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
  found = parametrization.multiples(config)
  scaled = parametrization.scaled(params, found)
  model.apply({"params": params}, *example)
  model.apply({"params": scaled}, *example)
  assert len(scores) == 2
  np.testing.assert_allclose(scores[1], 0.5 * scores[0], rtol=1e-4, atol=1e-5)  # float32
  rates = {name: (init, rate) for name, init, rate, *_ in found}
  assert all(init == rate for name, (init, rate) in rates.items() if re.search(r"query|\.[uv]$", name))


def test_scaled_initial_values_are_the_unscaled_ones_times_the_multiple():
  config = resolved(config_of("completep", width=128, layers=4))
  model, found = models.build(config), parametrization.multiples(config)
  boxed = model.init(jax.random.key(0), *models.example(config))["params"]
  plain, scaled = nn.meta.unbox(boxed), nn.meta.unbox(parametrization.scaled(boxed, found))
  times = {name: init for name, init, *_ in found}
  for path, x in jax.tree_util.tree_leaves_with_path(plain):
    own = scaled
    for key in path:
      own = own[key.key]
    np.testing.assert_allclose(own, x * times.get(dotted(path), 1.0), rtol=1e-6)


def test_parametrizations_without_rules_are_refused():
  for base, message in (((), "say a base size"), (("width=64",), "is not model.FIELD=VALUE")):
    with pytest.raises(UserError, match=message):
      optim.check(config_of("mup", base=base))
  for family in ("transformer", "bert"):
    with pytest.raises(UserError, match="blocks with their norms first"):
      optim.check(config_of("completep", family=family))


def test_a_check_is_traced_at_the_precision_of_float32_runs(monkeypatch):
  precisions, plain = [], optim.update

  def update(*arguments):
    precisions.append(jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]
    return plain(*arguments)

  monkeypatch.setattr(optim, "update", update)
  coordinates._measure(resolved(config_of("standard", width=16, layers=1)), 1, 1)
  assert precisions
  assert set(precisions) == {"highest"}


def test_layers_that_change_only_by_rounding_have_no_slope():
  """With a readout of zeros the first step only moves the readout; with a tiny rate nothing moves."""
  sizes = (16, 32)
  configs = [resolved(config_of("mup", width=size, layers=1, optimizer="sgd", lr=1e-3, **HOW)) for size in sizes]
  for config in configs:
    config.model.tie_embeddings = False
  assert set(coordinates.check(configs, sizes, 1, 1).slopes) == {"decoder"}
  for config in configs:
    config.model.tie_embeddings, config.optim.lr = True, 1e-7
  with pytest.raises(UserError, match=r"config.optim.lr: 1e-07 is too small for a coordinate check: after 1 steps"):
    coordinates.check(configs, sizes, 1, 1)


# At this base tables are of unit size, so that the stream does not begin as the branches' noise, which depth averages.
UNIT_TABLES = ("model.width=1", "model.layers=2", "model.head_size=16")


def checked(kind, axis, sizes, steps, seeds=2, family="decoder", lr=2e-3, base=BASE, **fields):
  """The check of an untied model, whose readout can be zero, with few tokens, so that chance plays no role."""
  configs = []
  for size in sizes:
    base = () if kind == "standard" else base
    config = resolved(config_of(kind, family=family, **{axis: size}, **HOW, lr=lr, base=base, **fields))
    config.model.vocab = 4
    if family == "decoder":
      config.model.tie_embeddings = False
    configs.append(config)
  return coordinates.check(configs, sizes, steps, seeds)


@pytest.mark.parametrize(("kind", "low", "high"), [("standard", 0.3, 2.0), ("mup", 0.0, 0.1)])
def test_a_step_changes_activations_equally_at_every_width(kind, low, high):
  found = checked(kind, "width", (64, 256), 3)
  assert all(np.isfinite(x).all() for x in found.change.values())
  assert {"attention", "feed_forward", "block", "decoder"} <= set(found.slopes)
  assert low < found.steepest < high, found.slopes


@pytest.mark.parametrize(("kind", "low", "high"), [("mup", 0.3, 2.0), ("completep", 0.0, 0.1)])
def test_a_step_changes_activations_equally_at_every_depth(kind, low, high):
  found = checked(kind, "layers", (2, 8), 3, lr=1e-2, base=UNIT_TABLES)
  assert set(found.slopes) == {"final_norm", "decoder"}
  assert low < found.steepest < high, found.slopes


@pytest.mark.parametrize("name", optim.NAMES)
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_an_optimizer_without_a_rule_is_refused(name, kind):
  if name in ACCEPTED:
    optim.check(config_of(kind, optimizer=name))
  else:
    with pytest.raises(UserError, match=f"{kind} has no rule for {name}, .* or one of {', '.join(ACCEPTED)}"):
      optim.check(config_of(kind, optimizer=name))


# Small rates, at which a step changes activations in proportion to itself: of Adam's size, and of the gradients'.
SMALL_RATES = {Step.ENTRY: 1e-3, Step.SPECTRAL: 1e-3, Step.GRADIENT: 0.005}


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_steps_of_every_accepted_optimizer_change_activations_equally_at_every_width(name, kind):
  """Under completep with twice the base's layers, so that its multiples are others than mup's.

  Finite widths make the changes of one seed differ from the mean: by 10% for steps of Adam's size, and by 25 to 40%
  for gradient steps, which are products of more random matrices. The seeds and widths here make the standard error of
  a slope .03 to .06; with 32 seeds sgd's slopes under mup were -.06 from 64 to 256, and -.05 from 64 to 512.
  Eigenvectors of Shampoo and SOAP take long, so these have fewer seeds, and SOAP smaller widths. Shampoo's slope under
  completep was -.15 from 32 to 128, and -.10 from 64 to 256.
  """
  step = optimizers.BUILT_IN[name].step
  assert step is not None
  widths, steps, seeds = (64, 256), 4, 8
  if step is Step.GRADIENT:
    steps, seeds = 3, 32
  if name in ("shampoo", "soap"):
    steps, seeds = 3, 4
  if name == "soap":
    widths = (32, 128)
  layers = 4 if kind == "completep" else 2
  found = checked(kind, "width", widths, steps, seeds, lr=SMALL_RATES[step], optimizer=name, layers=layers)
  assert {"attention", "feed_forward", "block", "decoder"} <= set(found.slopes)
  assert found.steepest <= 0.1, found.slopes


def slopes_of_blocks(name, depths, steps, seeds):
  """The slope over depths of the last norm's change at each step, with only blocks trained; others would hide them.

  The readout is the frozen table of embeddings: with a readout of zeros, blocks would have no gradients.
  """
  step = optimizers.BUILT_IN[name].step
  assert step is not None
  how = {"lr": SMALL_RATES[step], "frozen": ("^embedding", "^final_norm"), **HOW}
  configs = [resolved(config_of("completep", layers=n, optimizer=name, base=UNIT_TABLES, **how)) for n in depths]
  for config in configs:
    config.model.vocab = 4
  return coordinates.check(configs, depths, steps, seeds).slopes["final_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_blocks_change_activations_equally_at_every_depth_with_every_accepted_optimizer(name):
  """The first step of SOAP is ignored: its first gradient only gives the eigenbases, so no matrix moves.

  Only scales of norms move, which this test is not about: their slope was -.18 from 2 to 4 layers, -.1 from 4 to 8.
  """
  first = 1 if name == "soap" else 0
  slopes = slopes_of_blocks(name, (2, 4, 8, 16), 2 + first, 2)[first:]
  assert len(slopes) == 2
  assert np.abs(slopes).max() <= 0.1, slopes


@pytest.mark.slow
def test_changes_of_activations_agree_up_to_width_1024_over_ten_steps():
  widths = (64, 128, 256, 512, 1024)
  assert checked("mup", "width", widths, 10, 3).steepest <= 0.1
  assert checked("standard", "width", widths, 10, 1).steepest >= 0.3


@pytest.mark.slow
def test_changes_of_activations_agree_up_to_depth_16_over_ten_steps():
  depths, how = (2, 4, 8, 16), {"lr": 1e-2, "base": UNIT_TABLES}
  assert checked("completep", "layers", depths, 10, **how).steepest <= 0.1
  assert checked("mup", "layers", depths, 10, **how).steepest >= 0.3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["transformer", "bert"])
def test_changes_of_activations_agree_for_blocks_that_end_in_norms(family):
  assert checked("mup", "width", (64, 256), 3, family=family).steepest <= 0.25  # their readout is not zero
  assert checked("standard", "width", (64, 256), 3, family=family).steepest >= 0.3
