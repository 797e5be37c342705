"""Optimizers behave as they declare: how their steps scale, and which fields of `config.optim` they read."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from handmade import labels_of  # its folder is on the path of pytest

from bigmodel import optim
from bigmodel.config import with_overrides
from bigmodel.designs.spaces import Domain, Space, When
from bigmodel.errors import UserError
from bigmodel.models.layers.basic import exact_products
from bigmodel.optim import kronecker, optimizers, schedules
from bigmodel.optim.optimizers import Step
from bigmodel.study import default_config

LONGEST = 6  # in place of 4096, so that sides beyond it can be tested with small matrices
SHAPES = {
  "square": (6, 6), "tall": (6, 3), "wide": (3, 6), "tall_beyond": (8, 4), "wide_beyond": (4, 8), "both_beyond": (8, 8),
}  # fmt: skip
STEPS = 25
# Powers of two, which change no rounding: where gradients leave eigenvectors undetermined, they stay the same ones.
SCALES = (2.0**-10, 2.0**10)


def config_of(name, **fields):
  config = default_config()
  if name == "prodigy":
    config.optim.lr = 1e3  # its steps begin at 1e-6 of this
  config.optim.update({"name": name, "schedule": "constant", "warmup": 0.0, "clip": 1e30, "weight_decay": 0.0} | fields)
  return config


def step_sizes(name):
  """A function from the gradients' scale to the rms of each matrix's steps over the rate, [matrices, STEPS]."""
  small = {"epsilon": 1e-14} if "epsilon" in optimizers.BUILT_IN[name].reads else {}  # beside all gradients
  config = config_of(name, **small)
  begin = {k: jax.random.normal(jax.random.key(i), shape) for i, (k, shape) in enumerate(SHAPES.items())}
  how, h = optim.How.of(config, labels_of(begin)), optim.hyperparameters(config, STEPS)
  begin = {k: x / jnp.sqrt(jnp.mean(x**2)) for k, x in begin.items()}  # Adafactor's steps are relative to this

  @jax.jit
  def sizes(scale):
    def step(carry, i):
      params, state = carry
      keys = jax.random.split(jax.random.key(i), len(params))
      grads = {k: scale * jax.random.normal(key, params[k].shape) for k, key in zip(params, keys, strict=True)}
      loss = lambda p: scale * sum(jnp.sum(x**2) for x in p.values())  # for curvatures
      after, state, _ = optim.update(how, grads, state, begin, i, h, loss)
      # Each step begins at the same place, so that small steps are not lost to rounding.
      moved = jnp.stack([jnp.sqrt(jnp.mean(((after[k] - begin[k]) / h.lr) ** 2)) for k in SHAPES])
      return (begin, state), moved

    return jax.lax.scan(step, (begin, optim.initial_state(how, begin)), jnp.arange(STEPS))[1].T

  return sizes


@pytest.mark.parametrize("name", optim.NAMES)
def test_steps_scale_as_declared_at_every_shape_and_step(name, monkeypatch):
  monkeypatch.setattr(kronecker, "LONGEST", LONGEST)
  sizes, linear = step_sizes(name), optimizers.BUILT_IN[name].step is Step.GRADIENT
  plain = np.asarray(sizes(1.0))
  for scale in SCALES:
    # float32 resolves 1e-7 of the parameters, which is 3e-5 of a rate of .003.
    np.testing.assert_allclose(sizes(scale), plain * (scale if linear else 1.0), rtol=2e-3, atol=1e-4)
  moving = plain[:, plain.max(axis=0) > 0]  # SOAP's first gradient only gives a basis
  assert moving.shape[1] >= STEPS - 1
  # Random gradients of the same size: remaining differences between matrices are chance.
  assert (moving.max(axis=0) / moving.min(axis=0)).max() < 2.5, moving.round(3).tolist()
  assert (moving[:, 1:] / moving[:, :-1]).max() < 2.5, moving.round(3).tolist()


def test_soap_does_not_amplify_rounding_errors():
  """Gradients of rank 1 have one entry in their eigenbasis; all other entries there are rounding errors."""
  grads = {"w": jax.random.normal(jax.random.key(1), (24, 1)) @ jax.random.normal(jax.random.key(2), (1, 16))}
  soap = kronecker.scale_by_soap(0.9, 0.95, 1e-8)
  state = soap.init(grads)
  for i in range(12):
    updates, state = jax.jit(soap.update)(jax.tree.map(lambda g, i=i: (1 + 0.1 * i) * g, grads), state)
    assert i == 0 or 0.5 < jnp.linalg.norm(updates["w"]) < 1.5


RUN_STEPS = 30  # more than the 20 after which a spike can be skipped


def begin_of_runs():
  return {"w": jax.random.normal(jax.random.key(1), (3, 3)), "scale": jnp.ones(3)}


@functools.cache
def compiled(how):
  """The parameters that are evaluated after RUN_STEPS steps, as a function of traced hyperparameters."""
  keys, begin = jax.random.split(jax.random.key(0), RUN_STEPS), begin_of_runs()
  size = jnp.where(jnp.arange(RUN_STEPS) == 25, 1e3, 0.3 + 3.0 * (jnp.arange(RUN_STEPS) % 3))

  @jax.jit
  def run(h):
    def step(carry, inputs):
      params, state = carry
      key, size, i = inputs
      loss = lambda p: sum((jnp.sum((x - 0.3) ** 2 + jnp.sin(x)) for x in p.values()), jnp.float32(0))
      noise = {k: size * jax.random.normal(key, x.shape) for k, x in params.items()}
      grads = jax.tree.map(jnp.add, noise, jax.grad(loss)(params))
      params, state, _ = optim.update(how, grads, state, params, i, h, loss)
      return (params, state), None

    return jax.lax.scan(step, (begin, optim.initial_state(how, begin)), (keys, size, jnp.arange(RUN_STEPS)))[0]

  return run


def evaluated(config):
  params, state = compiled(optim.How.of(config, labels_of(begin_of_runs())))(optim.hyperparameters(config, RUN_STEPS))
  return jax.tree.map(np.asarray, optim.evaluated(config, params, state))


def others(value):
  """Other values to try for a numeric field; values that the check refuses as out of range are skipped."""
  return [not value] if isinstance(value, bool) else [0.5 if value != 0.5 else 0.25, 0.01, 3.0, 30.0]


def numeric_fields():
  return [name for name, value in optim.defaults().items() if isinstance(value, bool | int | float)]


def refusal(config):
  try:
    optim.check(config)
  except UserError as error:
    return str(error)
  return ""


def effects(config, names):
  """For each field that can be changed: (is it refused as without effect, does it have an effect)."""
  plain, found = evaluated(config), {}
  assert refusal(config) == ""
  for name in names:
    verdicts = []
    for value in others(config.optim[name]) if name != "update_scale" else optim.UPDATE_SCALES[1:]:
      changed = config.copy_and_resolve_references()
      changed.optim[name] = value
      refused = refusal(changed)
      if refused and "has no effect" not in refused:
        continue
      after = evaluated(changed)
      moved = any(not np.array_equal(a, b) for a, b in zip(plain.values(), after.values(), strict=True))
      verdicts.append((bool(refused), moved))
      if moved:
        break  # one value with an effect is enough
    if verdicts:
      found[name] = verdicts[-1]
  return found


@pytest.mark.parametrize("name", optim.NAMES)
def test_a_field_is_refused_exactly_if_the_optimizer_does_not_read_it(name):
  config = config_of(name, schedule="wsd", warmup=0.1, clip=1.0, weight_decay=0.1)
  found = effects(config, [*numeric_fields(), "update_scale"])
  assert {"lr", "final", "decay", "warmup", "clip", "weight_decay", "skip_above", *optimizers.SPECIFIC} <= set(found)
  assert {field: moved for field, (_, moved) in found.items()} == {
    field: not refused for field, (refused, _) in found.items()
  }
  assert {field for field in optimizers.SPECIFIC if found[field][1]} == set(optimizers.BUILT_IN[name].reads)


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_a_field_is_refused_exactly_if_the_schedule_does_not_read_it(schedule):
  found = effects(config_of("sgd", schedule=schedule, warmup=0.1), ["warmup", *schedules.SPECIFIC])
  assert all(moved != refused for refused, moved in found.values()), found
  assert {field for field in schedules.SPECIFIC if found[field][1]} == set(schedules.SCHEDULES[schedule].reads)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "sgd", "beta1": 0.5}, "config.optim.beta1: 0.5 has no effect on sgd; leave it at its default, 0.9"),
    ({"update_scale": "spectral"}, "config.optim.update_scale: 'spectral' has no effect on adamw"),
    ({"schedule": "constant", "final": 0.0}, "config.optim.final: 0.0 has no effect on the constant schedule"),
    ({"decay": 0.5}, "config.optim.decay: 0.5 has no effect on the cosine schedule"),
    ({"weight_decay": 0.0, "independent_decay": True}, "config.optim.independent_decay: True has no effect"),
    ({"weight_decay": 0.0, "decays": ("w=1",)}, "config.optim.decays: .* has no effect with weight_decay 0"),
    ({"name": "prodigy", "rates": ("w=1",)}, "config.optim.rates: .* has no effect on prodigy, which sets its steps"),
    ({"base": ("model.width=8",)}, "config.optim.base: .* has no effect on the standard parametrization"),
  ],
)
def test_a_field_without_effect_is_named_with_the_reason_and_its_default(fields, message):
  config = default_config()
  config.optim.update(fields)
  with pytest.raises(UserError, match=message):
    optim.check(config)


@pytest.mark.parametrize("name", optim.NAMES)
def test_products_have_the_highest_precision(name):
  """Only Muon's Newton-Schulz iteration has the precision of the run, which is the highest in float32."""
  config = config_of(name)
  params = {"blocks": {"w": jnp.ones((2, 6, 4))}, "embedding": jnp.ones((5, 4))}
  how, h = optim.How.of(config, labels_of(params)), optim.hyperparameters(config, 10)
  update = lambda p, state: optim.update(how, p, state, p, jnp.int32(0), h, lambda p: jnp.sum(p["embedding"] ** 2))
  text = jax.jit(update).lower(params, optim.initial_state(how, params)).as_text()
  products = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line)]
  if name in ("shampoo", "soap"):
    assert len(products) >= 5  # two statistics, two sides, and a root or an eigenbasis
  if name == "muon":
    assert products
    with exact_products(jnp.float32):
      text = jax.jit(lambda *arguments: update(*arguments)).lower(params, optim.initial_state(how, params)).as_text()
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|dot|convolution)\b", line)]
  assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products


def test_a_sweep_over_all_optimizers_can_set_the_fields_that_each_reads():
  readers = lambda field: [name for name, optimizer in optimizers.BUILT_IN.items() if field in optimizer.reads]
  axes: dict[str, Domain] = {"optim.name": optim.NAMES}
  for field in optimizers.SPECIFIC:
    axes[f"optim.{field}"] = When("optim.name", readers(field), ("spectral",) if field == "update_scale" else (0.5,))
  cells = Space(axes, 128).cells()
  assert {cell["optim.name"] for cell in cells} == set(optim.NAMES)
  for cell in cells:
    optim.check(with_overrides(default_config(), cell))
