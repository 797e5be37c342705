"""The training state, and one step of one run."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import optax

from bigmodel import optim
from bigmodel.models.layers.experts import Auxiliary
from bigmodel.parallel import hosts
from bigmodel.tasks import Apply, Measured, Task
from bigmodel.types import Params

EMA = 0.98  # decay of the average training loss: about the last 50 steps
NOISE_EMA = 0.99  # decay of the averages in the gradient noise scale, which are noisier

# Rows of a batch: tokens [B, T + 1], or arrays [B, ...] by name.
Batch: TypeAlias = "jax.Array | dict[str, jax.Array]"
Metrics: TypeAlias = "dict[str, jax.Array]"
# Averages of the squared norm of the gradient and of its variance over rows; () where they are not measured.
Noise: TypeAlias = "tuple[jax.Array, ...]"
Sums: TypeAlias = tuple[Measured, Params]  # over microbatches, of the logged values and of the gradients


@flax.struct.dataclass
class State:
  """The state of a run at one step.

  The leaves are arrays on devices or on the host; in descriptions of a state, abstract arrays or shardings.
  """

  step: jax.Array  # int32, steps done
  params: Params
  opt_state: optim.State
  loss_ema: jax.Array  # exponential average of the loss, not yet divided by 1 - EMA^step
  # int32: the first step at which the loss or a parameter is not finite, or the first of `optim.MOST_SKIPPED` steps
  # that were skipped in a row; -1 while the run has not diverged.
  diverged_at: jax.Array
  noise: Noise = ()


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The parts of a run that are compiled into its training step."""

  apply: Apply  # of the model, with its variables before its inputs
  task: Task
  how: optim.How
  accumulate: int  # microbatches


def applied(apply: Apply, params: Params, key: jax.Array | None = None) -> Apply:
  """The model as a task calls it; with a key, with dropout as in training."""

  def call(*inputs: jax.Array) -> tuple[jax.Array, Auxiliary]:
    return apply({"params": params}, *inputs, rngs=None if key is None else {"dropout": key})

  return call


def objective(
  recipe: Recipe, h: optim.Hyperparameters, params: Params, rows: Batch, key: jax.Array
) -> tuple[jax.Array, Measured]:
  """Returns `(objective, logged values)` in training. `key` draws dropout masks and the task's random numbers."""
  for_task, for_dropout = jax.random.split(key)
  return recipe.task.objective(applied(recipe.apply, params, for_dropout), rows, h.task, for_task)


@dataclasses.dataclass(frozen=True)
class Gradients:
  """The gradients of a step, and the values that are computed with them."""

  measured: Measured  # means over the batch, the loss among them
  of_params: Params  # of the trainable parameters
  squares: jax.Array | None  # [K]: the squared norm of each microbatch's gradient, where it is measured
  first: tuple[Batch, jax.Array]  # the rows of the first microbatch, and the key of its objective


def gradients(recipe: Recipe, state: State, rows: Batch, h: optim.Hyperparameters) -> Gradients:
  """The gradients of the next step of `state`, over all of its microbatches."""

  def of_part(part: Params, rows: Batch, key: jax.Array) -> tuple[jax.Array, Measured]:
    return objective(recipe, h, optim.merged(state.params, part), rows, key)

  accumulate = recipe.accumulate
  gradient = jax.value_and_grad(of_part, has_aux=True)
  part = optim.trainable(state.params, recipe.how.frozen)
  key = jax.random.fold_in(jax.random.key(h.seed), state.step)
  if accumulate == 1:
    (_, measured), grads = gradient(part, rows, key)
    return Gradients(measured, grads, None, (rows, key))
  # Row b goes to microbatch b % accumulate, so that no row leaves its device.
  micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)

  def add(total: Sums, microbatch: tuple[Batch, jax.Array]) -> tuple[Sums, jax.Array | None]:
    (_, measured), grads = gradient(part, *microbatch)
    square = optax.tree.norm(grads, squared=True) if state.noise else None
    return jax.tree.map(jnp.add, total, (measured, grads)), square

  keys = jax.random.split(key, accumulate)
  first = jax.tree.map(lambda x: x[0], (micro, keys))
  shapes = jax.eval_shape(of_part, part, *first)[1], part
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, squares = jax.lax.scan(add, zero, (micro, keys))
  measured, grads = jax.tree.map(lambda x: x / accumulate, total)
  return Gradients(measured, grads, squares, first)


def train_step(recipe: Recipe, state: State, rows: Batch, h: optim.Hyperparameters) -> tuple[State, Metrics]:
  """Returns the state and the metrics after one step of one run. Pure; the same for every mesh."""
  how, gradient = recipe.how, gradients(recipe, state, rows, h)
  loss, noise = gradient.measured["loss"], state.noise
  if gradient.squares is not None:
    estimates = _noise(gradient.squares, gradient.of_params, jax.tree.leaves(rows)[0].shape[0])
    noise = jax.tree.map(_mixed, noise, estimates)

  def loss_of(params: Params) -> jax.Array:
    return objective(recipe, h, params, *gradient.first)[0]

  params, opt_state, logged = optim.update(
    how, gradient.of_params, state.opt_state, state.params, state.step, h, loss_of, jnp.isfinite(loss)
  )
  loss_ema, norm = EMA * state.loss_ema + (1 - EMA) * loss, optax.tree.norm(params)
  if how.skips:

    def unless_skipped(old: jax.Array, new: jax.Array) -> jax.Array:
      return jnp.where(opt_state.skipped_in_a_row > 0, old, new)

    loss_ema, noise = jax.tree.map(unless_skipped, (state.loss_ema, state.noise), (loss_ema, noise))
    gave_up = opt_state.skipped_in_a_row >= optim.MOST_SKIPPED
    diverged_now = jnp.where(gave_up, state.step + 1 - optim.MOST_SKIPPED, -1)
  else:
    diverged_now = jnp.where(jnp.isfinite(loss), jnp.where(jnp.isfinite(norm), -1, state.step + 1), state.step)
  diverged = jnp.where(state.diverged_at < 0, diverged_now, state.diverged_at)
  new = State(state.step + 1, params, opt_state, loss_ema, diverged, noise)
  metrics = {**gradient.measured, "param_norm": norm, "diverged_at": diverged, **logged}
  if gradient.squares is not None:
    metrics["noise_scale"] = noise_scale(noise)
  return new, metrics


def _mixed(old: jax.Array, new: jax.Array) -> jax.Array:
  """The running average updated with a new value, unless that is not finite."""
  return jnp.where(jnp.isfinite(new), NOISE_EMA * old + (1 - NOISE_EMA) * new, old)


def _noise(squares_K: jax.Array, grads: Params, rows: int) -> tuple[jax.Array, jax.Array]:
  """Unbiased estimates of the squared norm of the true gradient, and of the variance of one row's gradient.

  From the squared norms of microbatches' gradients and that of their mean (McCandlish et al. 2018, appendix A.1).
  """
  K, small, large = len(squares_K), jnp.mean(squares_K), optax.tree.norm(grads, squared=True)
  return (K * large - small) / (K - 1), rows * (small - large) / (K - 1)


def noise_scale(noise: Noise) -> jax.Array:
  """The batch size, in rows, at which noise and gradient are equally large; larger batches have diminishing returns.

  NaN if the noise is too large to estimate the gradient's size.
  """
  return jnp.where(noise[0] > 0, noise[1] / noise[0], jnp.nan)


def loss_train(state: State, first: int = 0) -> float:
  """The debiased average of the training loss over the last steps that were not skipped, since `first`."""
  skipped = state.opt_state.skipped
  steps = int(state.step) - first - (0 if isinstance(skipped, tuple) else int(skipped))
  return float(state.loss_ema) / (1 - EMA**steps) if steps > 0 else float("nan")


def params_sha256(params: Params, of_state: Mapping[str, str] | None = None) -> str:
  """sha256 over names, shapes and fingerprints of all parameters; the same on every mesh.

  `of_state` are the fingerprints of a state that has these parameters, where they have been computed before.
  """
  named = {name.removeprefix("params."): mark for name, mark in (of_state or {}).items() if name.startswith("params.")}
  return hashlib.sha256(json.dumps(named or hosts.fingerprints(params), sort_keys=True).encode()).hexdigest()
