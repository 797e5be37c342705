"""Laws of fine-tuning: the loss by the number x of examples, where pretraining counts as some examples, too."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bigmodel.laws.law import POSITIVE, decay, in_units_of, law

SHARES = (0.3, 0.01, 1e-4)  # of the largest x: starts of what pretraining is worth


def _in_powers_of_x(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
  """Starts of `before`, whose grid has it as a share of x^beta at the largest x."""
  return (grid["before"] * largest["x"]) ** grid["beta"]


@law(
  "rectified",
  "Lin et al. 2024",
  linear=("E", "B"),
  E=POSITIVE,
  B=POSITIVE,
  before=POSITIVE,
  beta=(0, 3),
  grid={"before": SHARES, "beta": (0.2, 0.5, 0.9)},
  rescale={"before": _in_powers_of_x},
)
def rectified(p, x):
  """L = E + B / (before + x^beta)."""
  return p.E + p.B / (p.before + decay(x, -p.beta))


@law(
  "transferred",
  "Hernandez et al. 2021: effective data",
  linear=("E", "B"),
  E=POSITIVE,
  B=POSITIVE,
  before=POSITIVE,
  beta=(0, 3),
  grid={"before": SHARES, "beta": (0.1, 0.3, 0.8)},
  rescale={"before": in_units_of("before", "x")},
)
def transferred(p, x):
  """L = E + B / (before + x)^beta: pretraining is worth as many examples as `before`."""
  return p.E + p.B * jnp.exp(-p.beta * jnp.log(p.before + x))
