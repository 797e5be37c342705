"""The coordinate check (Yang et al. 2022, appendix D.1): does a step change activations as much at every size?

Models of several sizes take some steps on one batch; the root of the mean square by which each layer's output has
changed since the start is compared between sizes. Where it grows or falls as a power of the width or the depth, a
learning rate that is right for one size is wrong for another.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import models, optim, tasks
from bigmodel.config import Config
from bigmodel.models.layers.basic import exact_products
from bigmodel.train.statistics import activations

LAST = ("final_norm", "transform_norm")
ROUNDING = 1e-5  # of a layer's largest change
ROWS, TOKENS = 4, 8  # few, so that what they have in common by chance does not depend on the width


@dataclasses.dataclass(frozen=True)
class Check:
  """`change[layer]` is an array [sizes, steps]; `slopes[layer]` that of its log in the log of the size,
  at each step at which it changes at all."""

  sizes: tuple[float, ...]
  change: dict[str, np.ndarray]
  slopes: dict[str, np.ndarray]

  @property
  def steepest(self) -> float:
    return max(float(np.abs(slope).max()) for slope in self.slopes.values())


def check(configs: Sequence[Config], sizes: Sequence[float], steps: int = 10, seeds: int = 2) -> Check:
  """Of resolved configs that differ in one size.

  Of the modules of one kind the last counts. Between depths only what comes out of the last norm and of the model
  can be compared: a branch is meant to add less where there are more, and the stream, to which initial values add
  less as well, is read through norms alone.
  """
  found = [_measure(config, steps, seeds) for config in configs]
  kinds = [_kinds(config) for config in configs]
  same_depth = len({len(own) for own in kinds}) == 1
  change, divided = {}, optim.parametrization.last_norm_of(configs[0])
  for kind in dict.fromkeys(kinds[0]):
    # What comes out of the norm before the logits falls with the width by intent.
    scaled = divided.endswith(f"{kind}.") or ("blocks." in divided and kind == "block")
    if scaled if same_depth else kind not in (*LAST, kinds[0][-1]):
      continue
    last = [len(own) - 1 - own[::-1].index(kind) for own in kinds]
    change[kind] = np.stack([own[i] for own, i in zip(found, last, strict=True)])
  # Behind a readout of zeros nothing moves at the first step but the last digits.
  moved = {kind: (values > ROUNDING * values.max(axis=1, keepdims=True)).all(axis=0) for kind, values in change.items()}
  slope = lambda values: np.polyfit(np.log(sizes), np.log(values), 1)[0]
  slopes = {kind: slope(values[:, moved[kind]]) for kind, values in change.items() if moved[kind].any()}
  return Check(tuple(map(float, sizes)), change, slopes)


def _kinds(config: Config) -> list[str]:
  names: list[str] = []
  loss, rows = _loss(config), _rows(config, 0)

  def forward(key: jax.Array) -> None:
    params = models.build(config).init(key, *models.example(config))["params"]
    names.extend(name for name, _ in activations(lambda: loss(params, rows, key)))

  jax.eval_shape(forward, jax.random.key(0))
  return names


def _loss(config: Config) -> Callable[[Any, Any, jax.Array], jax.Array]:
  """loss(parameters, rows, key), without dropout."""
  model, task, h = models.build(config), tasks.build(config), optim.hyperparameters(config, 1)
  return lambda params, rows, key: task.objective(lambda *x: model.apply({"params": params}, *x), rows, h.task, key)[0]


def _measure(config: Config, steps: int, seeds: int) -> np.ndarray:
  """[layers, steps]: how far the outputs of each layer are from those at the start, the mean over seeds."""
  model, how, loss = models.build(config), optim.How.of(config), _loss(config)
  h = optim.hyperparameters(config, 1)._replace(warmup=jnp.float32(0), final=jnp.float32(1))

  @jax.jit
  def run(key: jax.Array, rows: Any) -> jax.Array:
    params = nn.meta.unbox(model.init(key, *models.example(config)))["params"]
    params = optim.parametrization.scaled(params, how.multiples)
    params = {name: jnp.zeros_like(x) if re.fullmatch(r"output(_bias)?", name) else x for name, x in params.items()}
    outputs = lambda p: [x for _, x in activations(lambda: loss(p, rows, key))]
    begin = outputs(params)

    def step(carry: Any, i: Any) -> Any:
      params, state = carry
      of = lambda p: loss(p, rows, key)
      params, state, _ = optim.update(how, jax.grad(of)(params), state, params, i, h, of)
      moved = zip(outputs(params), begin, strict=True)
      return (params, state), jnp.stack([jnp.sqrt(jnp.mean((a - b) ** 2)) for a, b in moved])

    return jax.lax.scan(step, (params, optim.initial_state(how, params)), jnp.arange(steps))[1]

  with exact_products(model.dtype):  # as runs are traced
    return np.mean([np.asarray(run(jax.random.key(seed), _rows(config, seed))).T for seed in range(seeds)], axis=0)


def _rows(config: Config, seed: int) -> Any:
  rng = np.random.default_rng(seed)
  if config.data.kind == "text":
    return jnp.asarray(rng.integers(0, config.model.vocab, (ROWS, TOKENS + 1)), jnp.int32)
  inputs = rng.normal(size=(ROWS, *config.model.inputs)).astype(np.float32)
  targets = rng.integers(0, max(config.model.outputs, 2), ROWS).astype(np.int32)
  return {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}
