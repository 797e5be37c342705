"""The coordinate check (Yang et al. 2022, appendix D.1): does a step change activations as much at every size?

Models of several sizes take some steps on one batch; the root of the mean square by which each layer's output has
changed since the start is compared between sizes. Where it grows or falls as a power of the width or the depth, a
learning rate that is right for one size is wrong for another.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import models, optim, tasks
from bigmodel.config import Config, require
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.layers.roles import Role
from bigmodel.train.statistics import activations

ROUNDING = 1e-5  # changes below this share of an output's size are taken for errors of float32 rounding
ROWS, TOKENS = 4, 8  # few, so that what they have in common by chance does not depend on the width


@dataclasses.dataclass(frozen=True)
class Check:
  """`change[layer]` is an array [sizes, steps]; `slopes[layer]` holds the slopes of its log over the log of the size.

  There is one slope for each step at which the layer changes by more than rounding.
  """

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
  less as well, is read through norms alone. Raises `UserError` where no layer changes by more than rounding.
  """
  found = [_measure(config, steps, seeds) for config in configs]
  kinds = [each.layers for each in found]
  same_depth = len({len(own) for own in kinds}) == 1
  change, slopes, labels = {}, {}, models.labels(configs[0])
  last_norms = {name.split(".")[-2]: label for name, label in labels if label.role is Role.LAST_NORM}
  # What comes out of a last norm that is divided falls with the width by intent; in a stack it comes out of the block.
  divided = set(last_norms) if optim.parametrization.divides_last_norm(labels) else set()
  divided |= {"block" for norm in divided if last_norms[norm].in_stack}
  compared = {norm for norm, label in last_norms.items() if not label.in_stack} | {kinds[0][-1]}  # between depths
  for kind in dict.fromkeys(kinds[0]):
    if kind in divided if same_depth else kind not in compared:
      continue
    last = [len(own) - 1 - own[::-1].index(kind) for own in kinds]
    change[kind] = np.stack([own.change[i] for own, i in zip(found, last, strict=True)])
    size = np.stack([own.size[i] for own, i in zip(found, last, strict=True)])
    # Behind a readout of zeros the first step only moves the readout; other layers differ in their last digits.
    moved = (change[kind] > ROUNDING * size[:, None]).all(axis=0)
    if moved.any():
      slopes[kind] = np.polyfit(np.log(sizes), np.log(change[kind][:, moved]), 1)[0]
  require(
    bool(slopes),
    f"config.optim.lr: {configs[0].optim.lr} is too small for a coordinate check: after {steps} steps no layer's output"
    f" has changed by more than {ROUNDING} of its size; use a larger rate",
  )
  return Check(tuple(map(float, sizes)), change, slopes)


@dataclasses.dataclass(frozen=True)
class Measured:
  """The layers of one config in the order in which they run, and root mean squares averaged over seeds.

  `size` [layers] is that of each layer's output at the start, `change` [layers, steps] that of the output's difference
  from the start after each step.
  """

  layers: list[str]
  size: np.ndarray
  change: np.ndarray


def _loss(config: Config) -> Callable[[Any, Any, jax.Array], jax.Array]:
  """loss(parameters, rows, key), without dropout."""
  model, task, h = models.build(config), tasks.build(config), optim.hyperparameters(config, 1)
  return lambda params, rows, key: task.objective(lambda *x: model.apply({"params": params}, *x), rows, h.task, key)[0]


def _measure(config: Config, steps: int, seeds: int) -> Measured:
  model, how, loss = models.build(config), optim.How.of(config), _loss(config)
  h = optim.hyperparameters(config, 1)._replace(warmup=jnp.float32(0), final=jnp.float32(1))
  layers: list[str] = []

  @jax.jit
  def run(key: jax.Array, rows: Any) -> tuple[jax.Array, jax.Array]:
    params = nn.meta.unbox(model.init(key, *models.example(config)))["params"]
    params = optim.parametrization.scaled(params, how.multiples)
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if how.labels.at(path).role in (Role.OUTPUT, Role.OUTPUT_TABLE) else x, params
    )

    def loss_and_outputs(params: Any) -> tuple[jax.Array, list[jax.Array]]:
      losses: list[jax.Array] = []
      outputs = activations(lambda: losses.append(loss(params, rows, key)))
      layers[:] = [name for name, _ in outputs]  # while this is traced
      return losses[0], [x for _, x in outputs]

    def step(carry: Any, i: Any) -> Any:
      params, state = carry
      grads, outputs = jax.grad(loss_and_outputs, has_aux=True)(params)
      params, state, _ = optim.update(how, grads, state, params, i, h, lambda p: loss(p, rows, key))
      return (params, state), outputs

    # The step after the last is only taken for the outputs before it.
    _, outputs = jax.lax.scan(step, (params, optim.initial_state(how, params)), jnp.arange(steps + 1))
    size = [_root_mean_square(x[:1]) for x in outputs]
    return jnp.concatenate(size), jnp.stack([_root_mean_square(x[1:] - x[0]) for x in outputs])

  with exact_products(jnp.float32):  # as runs are traced
    runs = [run(jax.random.key(seed), _rows(config, seed)) for seed in range(seeds)]
  size, change = (np.mean([np.asarray(x) for x in each], axis=0) for each in zip(*runs, strict=True))
  return Measured(layers, size, change)


def _root_mean_square(x: jax.Array) -> jax.Array:
  """Over all axes but the first."""
  return jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim))))


def _rows(config: Config, seed: int) -> Any:
  rng = np.random.default_rng(seed)
  if config.data.kind == "text":
    return jnp.asarray(rng.integers(0, config.model.vocab, (ROWS, TOKENS + 1)), jnp.int32)
  inputs = rng.normal(size=(ROWS, *config.model.inputs)).astype(np.float32)
  targets = rng.integers(0, max(config.model.outputs, 2), ROWS).astype(np.int32)
  return {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}
