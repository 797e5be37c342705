"""Optimizers and schedules as functions of traced hyperparameters: a sweep over them compiles once."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigmodel import tasks
from bigmodel.config import Config, require, require_choice

SCHEDULES = ("cosine", "wsd")


def fields() -> dict[str, Any]:
  """The fields of `config.optim`, with defaults."""
  return {
    "lr": 3e-3,
    "schedule": "cosine",  # cosine | wsd (warm-up, stable, decay)
    "warmup": 0.1,  # share of the run's steps
    "decay": 0.2,  # wsd: share of the run's steps
    "final": 0.1,  # learning rate at the end, as a share of `lr`
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,  # of matrices, times the learning rate
    "clip": 1.0,  # global gradient norm
    "frozen": (),  # patterns of parameters that stay as they begin
  }


def check(config: Config) -> None:
  optim = config.optim
  require_choice("optim.schedule", optim.schedule, SCHEDULES)
  require(optim.lr > 0, f"config.optim.lr: {optim.lr} is not positive")
  require(optim.clip > 0, f"config.optim.clip: {optim.clip} is not positive")
  require(optim.weight_decay >= 0, f"config.optim.weight_decay: {optim.weight_decay} is negative")
  for name in ("warmup", "decay", "final"):
    require(0 <= optim[name] <= 1, f"config.optim.{name}: {optim[name]} is not a share between 0 and 1")
  for name in ("beta1", "beta2"):
    require(0 <= optim[name] < 1, f"config.optim.{name}: {optim[name]} is not in [0, 1)")
  require(
    optim.schedule != "wsd" or optim.warmup + optim.decay <= 1,
    f"config.optim: warmup {optim.warmup} and decay {optim.decay} are more than the whole run",
  )


class Hyperparameters(NamedTuple):
  """What changes no shape: scalars, traced."""

  lr: Any
  warmup: Any  # steps
  decay: Any  # steps; cosine decays over all that follows the warm-up
  steps: Any  # the horizon
  first: Any  # step of the run at which this schedule begins
  final: Any
  beta1: Any
  beta2: Any
  epsilon: Any
  weight_decay: Any
  clip: Any
  seed: Any  # of dropout, and of what a task draws
  task: Any  # the traced numbers of its loss, by name


def hyperparameters(config: Config, steps: int, first: int = 0) -> Hyperparameters:
  """The traced inputs of `steps` steps of a run, from its step `first` on."""
  optim = config.optim
  warmup = max(1, round(optim.warmup * steps)) if optim.warmup else 0
  decay = steps - warmup if optim.schedule == "cosine" else max(1, round(optim.decay * steps))
  values = dict(
    lr=optim.lr, warmup=warmup, decay=decay, steps=steps, final=optim.final, beta1=optim.beta1, beta2=optim.beta2,
    epsilon=optim.epsilon, weight_decay=optim.weight_decay, clip=optim.clip,
  )  # fmt: skip
  return Hyperparameters(
    **{name: jnp.float32(value) for name, value in values.items()},
    first=jnp.float32(first),
    seed=jnp.int32(config.seed),
    task={name: jnp.float32(value) for name, value in tasks.traced(config).items()},
  )


def learning_rate(schedule: str, step: jax.Array, h: Hyperparameters) -> jax.Array:
  """Linear warm-up, then cosine or stable-and-linear decay that ends at the run's own horizon."""
  step = step.astype(jnp.float32) - h.first
  rising = (step + 1) / jnp.maximum(h.warmup, 1)
  done = jnp.clip((step - (h.steps - h.decay)) / jnp.maximum(h.decay, 1), 0, 1)
  shape = 0.5 * (1 + jnp.cos(jnp.pi * done)) if schedule == "cosine" else 1 - done
  return h.lr * jnp.minimum(rising, h.final + (1 - h.final) * shape)


def optimizer(lr: jax.Array, h: Hyperparameters) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter 2019) with clipping; its state does not depend on `h`."""
  return optax.chain(
    optax.clip_by_global_norm(h.clip),
    optax.scale_by_adam(h.beta1, h.beta2, h.epsilon),
    optax.add_decayed_weights(h.weight_decay, mask=_matrices),
    optax.scale(-lr),
  )


def initial_state(params: Any) -> Any:
  """The optimizer's state before the first step: zeros, whatever its hyperparameters."""
  zero = Hyperparameters(*(0.0,) * len(Hyperparameters._fields))
  return optimizer(jnp.float32(0), zero).init(params)


def thaw(updates: Any, frozen: tuple[str, ...]) -> Any:
  """Gradients or updates, with zeros for parameters whose dotted name one of the patterns is found in."""
  if not frozen:
    return updates
  stays = lambda path: any(re.search(p, jax.tree_util.keystr(path, simple=True, separator=".")) for p in frozen)
  return jax.tree_util.tree_map_with_path(lambda path, x: jnp.zeros_like(x) if stays(path) else x, updates)


def _matrices(params: Any) -> Any:
  """True for parameters that are matrices; those of `blocks` are stacked over layers."""
  own = lambda path, p: p.ndim - any(str(getattr(key, "key", "")).endswith("blocks") for key in path) > 1
  return jax.tree_util.tree_map_with_path(own, params)
