"""Learning rates over a run, as functions of traced numbers: linear warm-up, then one of several shapes."""

from typing import Any

import jax
import jax.numpy as jnp

READS: dict[str, tuple[str, ...]] = {  # of SPECIFIC, the fields of `config.optim` that change each schedule
  "cosine": ("final",),
  "wsd": ("decay", "final"),
  "linear": ("final",),
  "inverse_sqrt": (),
  "constant": (),
}
SCHEDULES = tuple(READS)
SPECIFIC = ("decay", "final")  # that only some schedules read


def decay_steps(schedule: str, steps: int, warmup: int, share: float) -> int:
  """Steps at the end over which the rate falls: `share` of the run for wsd, all that follows the warm-up otherwise."""
  return max(1, round(share * steps)) if schedule == "wsd" else steps - warmup


def factor(schedule: str, step: jax.Array, h: Any) -> jax.Array:
  """The learning rate as a share of its peak at a step of the run.

  Warm-up is linear; then `wsd` stays and falls linearly at the end (Hu et al. 2024), `cosine` and `linear` fall over
  all the rest, to `final` of the peak at the run's own horizon; `inverse_sqrt` falls with the root of the steps since
  the start (Vaswani et al. 2017) and `constant` does not fall.
  """
  step = step.astype(jnp.float32) - h.first
  rising = (step + 1) / jnp.maximum(h.warmup, 1)
  done = jnp.clip((step - (h.steps - h.decay)) / jnp.maximum(h.decay, 1), 0, 1)
  ending = lambda shape: h.final + (1 - h.final) * shape
  falling = {
    "cosine": lambda: ending(0.5 * (1 + jnp.cos(jnp.pi * done))),
    "wsd": lambda: ending(1 - done),
    "linear": lambda: ending(1 - done),
    "inverse_sqrt": lambda: jnp.sqrt(jnp.maximum(h.warmup, 1) / jnp.maximum(step + 1, 1)),
    "constant": lambda: jnp.float32(1),
  }[schedule]()
  return jnp.minimum(rising, falling)
