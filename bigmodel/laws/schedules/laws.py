"""Laws of whole loss curves: the loss at a step as a function of the learning rates up to it.

A law is a `laws.law.Law` whose columns are those of `sums.Sums`: rates in units of the highest of the fitted curves,
and steps in units of the longest curve, so that its starts fit every set of curves. `published` gives the parameters in
the units of the papers.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws.law import POSITIVE, Law, decay, law

ALPHAS = (0.2, 0.5, 1.0)
# The effect of a fall saturates within the longest curve: beyond it, a slower one would be extrapolated without limit.
LONGEST = (0.0, 1.0)


@law(
  "multi_power",
  "Luo et al. 2025",
  grid={
    "alpha": ALPHAS,
    "C": (30.0, 300.0, 3000.0, 30000.0),
    "beta": (0.3, 0.6, 1.2),
    "gamma": (0.2, 0.6, 1.0),
  },
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0.0, 3.0),
  C=POSITIVE,
  beta=POSITIVE,
  gamma=(0.0, 3.0),
)
def multi_power(p, total, fall, rate, after):
  """L0 + A S^-alpha - B sum_k fall_k (1 - (1 + C rate_k^-gamma S_k)^-beta)."""
  reduction = -jnp.expm1(-p.beta * jnp.log1p(p.C * after * decay(rate, p.gamma)))
  return p.L0 + p.A * decay(total, p.alpha) - p.B * jnp.sum(fall * reduction, axis=-1)


@law(
  "annealing",
  "Tissue et al. 2024",
  grid={"alpha": ALPHAS, "memory": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0.0, 3.0),
  memory=LONGEST,
)
def annealing(p, total, fall, since):
  """L0 + A S^-alpha - B sum_k fall_k (1 - exp(-n_k / memory)), where n_k are the steps since the fall."""
  return p.L0 + p.A * decay(total, p.alpha) - p.B * jnp.sum(-fall * jnp.expm1(-since / p.memory), axis=-1)


@law(
  "progress_annealing",
  "Tissue et al. 2024, with progress that slows less than the rate",
  grid={"alpha": ALPHAS, "memory": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)},
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0.0, 3.0),
  memory=LONGEST,
)
def progress_annealing(p, progress, fall, since):
  """As `annealing`, with the sum of rates to the power of `PROGRESS` for S."""
  return p.L0 + p.A * decay(progress, p.alpha) - p.B * jnp.sum(-fall * jnp.expm1(-since / p.memory), axis=-1)


@law(
  "progress_multi_power",
  "Luo et al. 2025, with beta = gamma = 1 and progress that slows less than the rate",
  grid={"alpha": ALPHAS, "C": (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)},
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0.0, 3.0),
  C=(1.0, math.inf),
)
def progress_multi_power(p, progress, fall, rate, after):
  """As `multi_power` with beta = gamma = 1, with the sum of rates to the power of `PROGRESS` in the power law."""
  reduction = 1 - 1 / (1 + p.C * after / rate)
  return p.L0 + p.A * decay(progress, p.alpha) - p.B * jnp.sum(fall * reduction, axis=-1)


@law(
  "power_of_sum",
  "a power law with an offset, of the sum of learning rates",
  grid={"alpha": ALPHAS},
  linear=("L0", "A"),
  L0=POSITIVE,
  A=POSITIVE,
  alpha=(0.0, 3.0),
)
def power_of_sum(p, total):
  """L0 + A S^-alpha."""
  return p.L0 + p.A * decay(total, p.alpha)


@law(
  "power_of_steps",
  "a power law with an offset, of steps",
  grid={"alpha": ALPHAS},
  linear=("L0", "A"),
  L0=POSITIVE,
  A=POSITIVE,
  alpha=(0.0, 3.0),
)
def power_of_steps(p, step):
  """L0 + A t^-alpha."""
  return p.L0 + p.A * decay(step, p.alpha)


LAWS: dict[str, Law] = {each.name: each for each in list(globals().values()) if isinstance(each, Law)}


def find(names: Sequence[str], where: str) -> list[Law]:
  """The laws of these names; `where` begins messages."""
  for name in names:
    if name not in LAWS:
      raise UserError(f"{where}: no law of schedules {name!r}{nearest(name, LAWS)}; known: {', '.join(LAWS)}")
  return [LAWS[name] for name in names]
