"""Each optimizer agrees with a reference over 20 steps: optax, or its paper's equations in NumPy, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from handmade import labels_of  # its folder is on the path of pytest
from optax import contrib

from bigmodel import models, optim
from bigmodel.errors import UserError
from bigmodel.study import default_config
from bigmodel.train import weights

STEPS = 20
LR = {"sgd": 0.1, "momentum": 0.02, "prodigy": 1.0, "adafactor": 0.05}


@pytest.fixture
def float64():
  """Computes in float64, because roots, eigenbases and iterations amplify float32 rounding errors."""
  with jax.enable_x64(True):
    yield


def exact(params):
  return jax.tree.map(lambda x: x.astype(jnp.float64), params)


def start(width=8):
  """Initial parameters: a stack of two layers with a matrix and a vector each, and a table."""
  keys = jax.random.split(jax.random.key(0), 3)
  return {
    "blocks": {"w": jax.random.normal(keys[0], (2, 6, width)), "scale": jnp.ones((2, 6))},
    "embedding": jax.random.normal(keys[2], (10, 6)),
  }


def loss(params):
  """A loss whose curvature varies."""
  parts = [jnp.sum(jnp.cos(1.0 + jnp.arange(x.size)).reshape(x.shape) ** 2 * (x - 0.3) ** 2 + 0.1 * jnp.sin(x))
           for x in jax.tree.leaves(params)]  # fmt: skip
  return sum(parts, jnp.float32(0))


def config_of(name, **fields):
  config = default_config()
  config.optim.update(name=name, lr=LR.get(name, 0.01), schedule="constant", warmup=0.0, clip=1e9, weight_decay=0.0)
  config.optim.update(fields)
  optim.check(config)
  return config


def our_run(config, params=None, steps=STEPS):
  params = start() if params is None else params
  how, h = optim.How.of(config, labels_of(params)), optim.hyperparameters(config, steps)
  state = optim.initial_state(how, params)
  step = jax.jit(lambda p, s, i: optim.update(how, jax.grad(loss)(p), s, p, i, h, loss))
  metrics = {}
  for i in range(steps):
    params, state, metrics = step(params, state, jnp.int32(i))
  return params, state, metrics


def reference_run(transformation, params=None):
  params = start() if params is None else params
  state = transformation.init(params)

  @jax.jit
  def step(p, s):
    extra = {"obj_fn": loss} if isinstance(transformation, optax.GradientTransformationExtraArgs) else {}
    updates, s = transformation.update(jax.grad(loss)(p), s, p, **extra)
    return optax.apply_updates(p, updates), s

  for _ in range(STEPS):
    params, state = step(params, state)
  return params, state


def close(one, other, rtol=1e-5):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


REFERENCES = {
  "adamw": optax.adam(0.01, 0.9, 0.95),
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.02, momentum=0.95),
  "lion": optax.lion(0.01, 0.9, 0.95, weight_decay=0.0),
  "sophia": contrib.sophia(0.01, 0.9, 0.95, weight_decay=0.0),
  "prodigy": contrib.prodigy(1.0, (0.9, 0.95)),
  "schedule_free": contrib.schedule_free(optax.adam(0.01, 0.0, 0.95), 0.01, 0.9),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_elementwise_optimizers_equal_those_of_optax(name):
  params, state, _ = our_run(config_of(name))
  expected, reference = reference_run(REFERENCES[name])
  close(params, expected)
  if name == "schedule_free":
    averaged = optim.evaluated(config_of(name), params, state)
    close(averaged, contrib.schedule_free_eval_params(reference, expected))


def layers(params):
  """The same parameters, with each layer unstacked."""
  split = {f"{name}_{i}": x[i] for name, x in params["blocks"].items() for i in range(2)}
  return {**split, "embedding": params["embedding"]}


def by_layer(transformation, begin=None):
  """Trains the reference with each layer as a separate parameter and the same loss; returns its parameters."""

  def whole(own):
    return {"blocks": {n: jnp.stack([own[f"{n}_0"], own[f"{n}_1"]]) for n in ("w", "scale")},
            "embedding": own["embedding"]}  # fmt: skip

  params = layers(start() if begin is None else begin)
  state = transformation.init(params)

  @jax.jit
  def step(params, state):
    updates, state = transformation.update(jax.grad(lambda p: loss(whole(p)))(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(STEPS):
    params, state = step(params, state)
  return params


def test_adafactor_equals_that_of_optax_in_every_layer():
  params, _, _ = our_run(config_of("adafactor"))
  close(layers(params), by_layer(optax.adafactor(0.05)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("scale", optim.UPDATE_SCALES)
def test_muon_equals_that_of_optax_on_hidden_matrices(scale):
  params, _, _ = our_run(config_of("muon", update_scale=scale), exact(start()))
  size = {"match_rms_adamw": 0.2 * 8**0.5, "spectral": (8 / 6) ** 0.5, "original": (8 / 6) ** 0.5}[scale]
  label = lambda p: {name: "muon" if name.startswith("w_") else "adam" for name in p}
  muon = optax.chain(contrib.scale_by_muon(beta=0.95, weight_dimension_numbers=lambda p: jax.tree.map(
    lambda x: contrib.MuonDimensionNumbers(), p)), optax.scale(-0.01 * size))  # fmt: skip
  expected = by_layer(optax.partition({"muon": muon, "adam": optax.adam(0.01, 0.9, 0.95)}, label), exact(start()))
  close(layers(params), expected)


def numpy_steps(update, width):
  """Computes the layers of w by equations in float64, with gradients by JAX at these values."""
  begin = start(width)
  params = layers(begin)
  params = {name: np.asarray(x, np.float64) for name, x in params.items() if name.startswith("w_")}
  stack = lambda: {**begin, "blocks": {**begin["blocks"], "w": jnp.stack([params["w_0"], params["w_1"]])}}
  memory = {name: {} for name in params}
  for t in range(STEPS):
    grads = np.asarray(jax.grad(loss)(stack())["blocks"]["w"], np.float64)
    for i, name in enumerate(params):
      params[name] = params[name] - 0.01 * update(grads[i], memory[name], t)
  return params


def averages(memory, G, b1, b2):
  for key, new, decay in (("m", G, b1), ("L", G @ G.T, b2), ("R", G.T @ G, b2)):
    memory[key] = decay * memory.get(key, 0 * new) + (1 - decay) * new


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("longest", [8, 6, 5])
def test_shampoo_equals_its_equations(longest, monkeypatch):
  """For 6 x 8 matrices with both sides preconditioned, one side, and none, which leaves Adam."""
  monkeypatch.setattr(optim.optimizers.kronecker, "LONGEST", longest)
  sides = [side for side, size in (("L", 6), ("R", 8)) if size <= longest]

  def update(G, memory, t, b1=0.9, b2=0.95, epsilon=1e-8):
    averages(memory, G, b1, b2)
    memory["v"] = b2 * memory.get("v", 0 * G) + (1 - b2) * G**2
    if t < optim.optimizers.INTERVAL or t % optim.optimizers.INTERVAL == 0:
      for side in sides:
        S = memory[side] / (1 - b2 ** (t + 1))
        values, vectors = np.linalg.eigh(S)
        values = np.maximum(values, 0) + 1e-6 * values.max()
        memory[f"{side}root"] = vectors @ np.diag(values ** (-1 / (2 * len(sides)))) @ vectors.T
    M = memory["m"] / (1 - b1 ** (t + 1))
    adam = M / (np.sqrt(memory["v"] / (1 - b2 ** (t + 1))) + epsilon)
    if not sides:
      return adam
    step = memory.get("Lroot", np.eye(6)) @ M @ memory.get("Rroot", np.eye(8))
    return step * np.linalg.norm(adam) / np.linalg.norm(step)

  expected = numpy_steps(update, 8)
  params, _, _ = our_run(config_of("shampoo"), exact(start()))
  for i in range(2):
    np.testing.assert_allclose(params["blocks"]["w"][i], expected[f"w_{i}"], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("float64")
def test_soap_equals_its_equations():
  """For square matrices, because eigenvectors of zero eigenvalues are arbitrary."""

  def update(G, memory, t, b1=0.9, b2=0.95, epsilon=1e-8):
    step = 0 * G
    if t:
      turn = lambda x: memory["LQ"].T @ x @ memory["RQ"]
      memory["m"] = b1 * memory.get("m", 0 * G) + (1 - b1) * G
      memory["v"] = b2 * memory.get("v", 0 * G) + (1 - b2) * turn(G) ** 2
      adam = turn(memory["m"]) / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + epsilon)
      step = memory["LQ"] @ adam @ memory["RQ"].T
    for side, new in (("L", G @ G.T), ("R", G.T @ G)):
      S = memory[side] = b2 * memory.get(side, 0 * new) + (1 - b2) * new
      if t == 0:
        memory[f"{side}Q"] = np.linalg.eigh(S)[1][:, ::-1]
      elif t % optim.optimizers.INTERVAL == 0:
        memory[f"{side}Q"] = np.linalg.qr(S @ memory[f"{side}Q"])[0]
    return step

  expected = numpy_steps(update, 6)
  params, _, _ = our_run(config_of("soap"), exact(start(6)))
  for i in range(2):
    np.testing.assert_allclose(params["blocks"]["w"][i], expected[f"w_{i}"], rtol=1e-5, atol=1e-5)


def test_weight_decay_of_matrices_follows_the_rate_or_the_schedule():
  """With gradients of zero only decay is left: (1 - lr wd)^steps, or (1 - wd)^steps where it is independent."""
  how = lambda config: optim.How.of(config, labels_of(start()))
  for independent, share in ((False, 1 - 0.01 * 0.1), (True, 1 - 0.1)):
    config = config_of("adamw", weight_decay=0.1, independent_decay=independent)
    h = optim.hyperparameters(config, 5)
    params = start()
    state = optim.initial_state(how(config), params)
    for i in range(5):
      zero = jax.tree.map(jnp.zeros_like, params)
      params, state, _ = optim.update(how(config), zero, state, params, jnp.int32(i), h)
    np.testing.assert_allclose(params["embedding"], share**5 * start()["embedding"], rtol=1e-5)
    np.testing.assert_array_equal(params["blocks"]["scale"], start()["blocks"]["scale"])


def test_rules_set_rates_and_decay_of_single_parameters():
  plain, _, _ = our_run(config_of("sgd"), steps=1)
  rules = {"rates": ("blocks.w=0.5", "embedding=0"), "decays": ("w$=0", "scale=1")}
  ruled, _, _ = our_run(config_of("sgd", weight_decay=0.1, **rules), steps=1)
  moved = lambda params, name: params["blocks"][name] - start()["blocks"][name]
  np.testing.assert_allclose(moved(ruled, "w"), 0.5 * moved(plain, "w"), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(moved(ruled, "scale"), moved(plain, "scale") - 0.1 * 0.1, rtol=1e-4)
  np.testing.assert_array_equal(ruled["embedding"], start()["embedding"])
  config = default_config()
  models.resolve(config.model, {"vocab": 50})
  config.optim.rates = ("embeding=0.1",)
  with pytest.raises(UserError, match=r"config.optim.rates: no parameter matches 'embeding'"):
    weights.check(config)
  config.optim.rates = ("embedding",)
  with pytest.raises(UserError, match="is not PATTERN=NUMBER"):
    optim.check(config)


def test_the_average_of_the_parameters_is_evaluated():
  config = config_of("sgd", average=0.9)
  params = start()
  how, h = optim.How.of(config, labels_of(params)), optim.hyperparameters(config, STEPS)
  state, seen = optim.initial_state(how, params), []
  for i in range(STEPS):
    params, state, _ = optim.update(how, jax.grad(loss)(params), state, params, jnp.int32(i), h)
    seen.append(params["embedding"])
  shares = 0.9 ** np.arange(STEPS)[::-1]
  expected = np.tensordot(shares / shares.sum(), np.stack(seen), 1)
  np.testing.assert_allclose(optim.evaluated(config, params, state)["embedding"], expected, rtol=1e-4)
  assert optim.evaluated(config_of("sgd"), params, state) is params


@pytest.mark.parametrize("name", optim.NAMES)
def test_state_is_named_after_its_parameters_axes(name):
  config = config_of(name, average=0.0 if name == "schedule_free" else 0.9, skip_above=3.0)
  config.model.update(width=16, layers=2, head_size=8, experts=2, feed_forward=32)
  models.resolve(config.model, {"vocab": 50})
  model = models.build(config)

  def both():
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return params, optim.initial_state(optim.How.of(config), params)

  params, state = jax.eval_shape(both)
  specs, shapes = nn.get_partition_spec(state), nn.meta.unbox(state)
  is_spec = lambda x: isinstance(x, jax.sharding.PartitionSpec)
  for spec, x in zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(shapes), strict=True):
    assert x.ndim == 0 or len(spec) == x.ndim
  named = {str(tuple(s)) for s in jax.tree.leaves(specs, is_leaf=is_spec)}
  if name in ("shampoo", "soap"):
    pairs = zip(jax.tree.leaves(specs, is_leaf=is_spec), jax.tree.leaves(shapes), strict=True)
    factors = {x.shape[-1]: tuple(spec) for spec, x in pairs if x.ndim == 4 and x.shape[-2] == x.shape[-1] > 1}
    assert factors == {16: ("layers", "expert", "embed", None), 32: ("layers", "expert", "mlp", "embed")}
  if name not in ("sgd",):
    assert "('vocab', 'embed')" in named
  assert params is not None


def test_hidden_matrices_are_those_between_layers():
  config = default_config()
  models.resolve(config.model, {"vocab": 50})
  config.model.update(experts=2)
  labels = models.labels(config)
  hidden = {name for name, label in labels if label.is_hidden}
  assert {"blocks.attention.query", "blocks.experts.down", "blocks.experts.router"} <= hidden
  assert not any("norm" in name or name == "embedding" for name in hidden)
