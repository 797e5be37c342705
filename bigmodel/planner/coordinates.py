"""The coordinate check (Yang et al. 2022, appendix D.1): do steps change activations equally at every size?

Models of several sizes take some steps on one batch. The root mean square of the change of each layer's output since
the start is compared between sizes. If it grows or falls as a power of the width or the depth, a learning rate that is
right for one size is wrong for another.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigmodel import models, optim, tasks
from bigmodel.config import Config, require
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.layers.roles import Role
from bigmodel.train.statistics import activations
from bigmodel.train.step import Batch, applied
from bigmodel.types import Params

ROUNDING = 1e-5  # changes below this share of an output's size are taken for errors of float32 rounding
ROWS, TOKENS = 4, 8  # few, so that chance similarities between them do not depend on the width
Carry: TypeAlias = tuple[Params, optim.State]


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
  """Checks resolved configs that differ in one size, given by `sizes`.

  Of several modules of one kind, the last one is compared. Between depths only the outputs of the last norm and of the
  model are compared: deeper models are meant to add less per branch, and the residual stream, to which initial values
  also add less, is only read through norms. Raises `UserError` if no layer changes by more than rounding.
  """
  measurements = [_measure(config, steps, seeds) for config in configs]
  kinds = [measured.layers for measured in measurements]
  same_depth = len({len(layers) for layers in kinds}) == 1
  change, slopes, labels = {}, {}, models.labels(configs[0])
  last_norms = {name.split(".")[-2]: label for name, label in labels if label.role is Role.LAST_NORM}
  # The output of a divided last norm falls with the width by intent; in a stack it is also the block's output.
  divided = set(last_norms) if optim.parametrization.divides_last_norm(labels) else set()
  divided |= {"block" for norm in divided if last_norms[norm].in_stack}
  compared = {norm for norm, label in last_norms.items() if not label.in_stack} | {kinds[0][-1]}  # between depths
  for kind in dict.fromkeys(kinds[0]):
    if kind in divided if same_depth else kind not in compared:
      continue
    last = [len(layers) - 1 - layers[::-1].index(kind) for layers in kinds]
    change[kind] = np.stack([measured.change[i] for measured, i in zip(measurements, last, strict=True)])
    size = np.stack([measured.size[i] for measured, i in zip(measurements, last, strict=True)])
    # With a readout of zeros the first step only moves the readout; other layers change by rounding errors.
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


def _loss(config: Config) -> Callable[[Params, Batch, jax.Array], jax.Array]:
  """loss(parameters, rows, key), without dropout."""
  model, task, h = models.build(config), tasks.build(config), optim.hyperparameters(config, 1)

  def loss(params: Params, rows: Batch, key: jax.Array) -> jax.Array:
    return task.objective(applied(model.apply, params), rows, h.task, key)[0]

  return loss


def _measure(config: Config, steps: int, seeds: int) -> Measured:
  model, how, loss = models.build(config), optim.How.of(config), _loss(config)
  h = optim.hyperparameters(config, 1)._replace(warmup=jnp.float32(0), final=jnp.float32(1))
  layers: list[str] = []

  @jax.jit
  def run(key: jax.Array, rows: Batch) -> tuple[jax.Array, jax.Array]:
    params = nn.meta.unbox(model.init(key, *models.example(config)))["params"]
    params = optim.parametrization.scaled(params, how.multiples)
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: jnp.zeros_like(x) if how.labels.at(path).role in (Role.OUTPUT, Role.OUTPUT_TABLE) else x, params
    )

    def loss_and_outputs(params: Params) -> tuple[jax.Array, list[jax.Array]]:
      losses: list[jax.Array] = []
      outputs = activations(lambda: losses.append(loss(params, rows, key)))
      layers[:] = [name for name, _ in outputs]  # set while this function is traced
      return losses[0], [x for _, x in outputs]

    def step(carry: Carry, i: jax.Array) -> tuple[Carry, list[jax.Array]]:
      params, state = carry
      grads, outputs = jax.grad(loss_and_outputs, has_aux=True)(params)
      params, state, _ = optim.update(how, grads, state, params, i, h, lambda p: loss(p, rows, key))
      return (params, state), outputs

    # The additional last step is only taken for the outputs before it.
    _, outputs = jax.lax.scan(step, (params, optim.initial_state(how, params)), jnp.arange(steps + 1))
    size = [_root_mean_square(x[:1]) for x in outputs]
    return jnp.concatenate(size), jnp.stack([_root_mean_square(x[1:] - x[0]) for x in outputs])

  with exact_products(jnp.float32):  # as runs are traced
    runs = [run(jax.random.key(seed), _rows(config, seed)) for seed in range(seeds)]
  size, change = (np.mean([np.asarray(x) for x in each], axis=0) for each in zip(*runs, strict=True))
  return Measured(layers, size, change)


def _root_mean_square(x: jax.Array) -> jax.Array:
  """The root mean square over all axes but the first."""
  return jnp.sqrt(jnp.mean(x**2, axis=tuple(range(1, x.ndim))))


def _rows(config: Config, seed: int) -> Batch:
  rng = np.random.default_rng(seed)
  if config.data.kind == "text":
    return jnp.asarray(rng.integers(0, config.model.vocab, (ROWS, TOKENS + 1)), jnp.int32)
  inputs = rng.normal(size=(ROWS, *config.model.inputs)).astype(np.float32)
  targets = rng.integers(0, max(config.model.outputs, 2), ROWS).astype(np.int32)
  return {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}
