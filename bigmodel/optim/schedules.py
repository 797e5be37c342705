"""Learning rates over a run, as functions of traced numbers: linear warm-up, then one of several shapes.

A new schedule is one more entry of SCHEDULES.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from bigmodel.optim.traced import Hyperparameters

SPECIFIC = ("decay", "final")  # fields of `config.optim` that only some schedules read


@dataclasses.dataclass(frozen=True)
class Schedule:
  """`shape(step, done, h)` is the learning rate after the warm-up, as a share of its peak.

  `step` counts from the schedule's first step; `done` is the share of the decay that has passed, in [0, 1].
  """

  shape: Callable[[jax.Array, jax.Array, Hyperparameters], jax.Array]
  reads: tuple[str, ...] = ()  # of SPECIFIC


def _to_final(h: Hyperparameters, falling: jax.Array) -> jax.Array:
  """`falling`, which goes from 1 to 0, stretched to end at `final`."""
  return h.final + (1 - h.final) * falling


def _cosine(step: jax.Array, done: jax.Array, h: Hyperparameters) -> jax.Array:
  del step
  return _to_final(h, 0.5 * (1 + jnp.cos(jnp.pi * done)))


def _linear(step: jax.Array, done: jax.Array, h: Hyperparameters) -> jax.Array:
  del step
  return _to_final(h, 1 - done)


def _inverse_sqrt(step: jax.Array, done: jax.Array, h: Hyperparameters) -> jax.Array:
  """Falls with the root of the steps since the start (Vaswani et al. 2017)."""
  del done
  return jnp.sqrt(jnp.maximum(h.warmup, 1) / jnp.maximum(step + 1, 1))


def _constant(step: jax.Array, done: jax.Array, h: Hyperparameters) -> jax.Array:
  del step, done, h
  return jnp.float32(1)


SCHEDULES = {
  "cosine": Schedule(_cosine, ("final",)),
  "wsd": Schedule(_linear, ("decay", "final")),  # warm-up, stable, decay (Hu et al. 2024): see `decay_steps`
  "linear": Schedule(_linear, ("final",)),
  "inverse_sqrt": Schedule(_inverse_sqrt),
  "constant": Schedule(_constant),
}


def decay_steps(schedule: str, steps: int, warmup: int, share: float) -> int:
  """Steps at the end over which the rate falls: `share` of the run for wsd, otherwise all after the warm-up."""
  return max(1, round(share * steps)) if schedule == "wsd" else steps - warmup


def factor(schedule: str, step: jax.Array, h: Hyperparameters) -> jax.Array:
  """The learning rate at a step of the run, as a share of its peak."""
  step = step.astype(jnp.float32) - h.first
  rising = (step + 1) / jnp.maximum(h.warmup, 1)
  done = jnp.clip((step - (h.steps - h.decay)) / jnp.maximum(h.decay, 1), 0, 1)
  return jnp.minimum(rising, SCHEDULES[schedule].shape(step, done, h))
