"""Laws of parameters N, tokens D and FLOPs C, and of what else a model is given: unique tokens U, experts E."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from bigmodel.laws.law import EXPONENTS, POSITIVE, REAL, decay, law


@law(
  "chinchilla",
  "Hoffmann et al. 2022, equation 2",
  linear=("A", "B", "E"),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": EXPONENTS, "beta": EXPONENTS},
)
def chinchilla(p, N, D):
  return p.E + p.A * decay(N, p.alpha) + p.B * decay(D, p.beta)


@law(
  "kaplan_n",
  "Kaplan et al. 2020, equation 1.1",
  grid={"Nc": (1e8, 1e11, 1e14), "alpha": (0.05, 0.1, 0.3)},
  Nc=POSITIVE,
  alpha=(0, 3),
)
def kaplan_n(p, N):
  return decay(N / p.Nc, p.alpha)


@law(
  "kaplan_nd",
  "Kaplan et al. 2020, equation 1.5",
  Nc=POSITIVE,
  Dc=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"Nc": (1e8, 1e11, 1e14), "Dc": (1e9, 1e12, 1e15), "alpha": (0.05, 0.1, 0.3), "beta": (0.05, 0.1, 0.3)},
)
def kaplan_nd(p, N, D):
  return jnp.exp(p.beta * jnp.logaddexp(-p.alpha / p.beta * jnp.log(N / p.Nc), -jnp.log(D / p.Dc)))


@law(
  "kaplan_nc",
  "Kaplan et al. 2020, equation 1.6, with steps in proportion to C / N",
  linear=("A", "B"),
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": EXPONENTS, "beta": EXPONENTS},
)
def kaplan_nc(p, N, C):
  return p.A * decay(N, p.alpha) + p.B * decay(C / N, p.beta)


@law(
  "overtraining",
  "Gadre et al. 2024, equation 4",
  linear=("E", "a", "b"),
  E=POSITIVE,
  a=POSITIVE,
  b=POSITIVE,
  eta=(0, 3),
  grid={"eta": (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)},
)
def overtraining(p, N, D):
  """L = E + (a M^eta + b M^-eta) C^-eta with M = D / N tokens per parameter and C = 6 N D."""
  C, M = 6 * N * D, D / N
  return p.E + p.a * decay(C / M, p.eta) + p.b * decay(C * M, p.eta)


@law(
  "data_constrained",
  "Muennighoff et al. 2023, equations 5 and 6",
  linear=("E",),
  A=POSITIVE,
  B=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  rd=POSITIVE,
  rn=POSITIVE,
  grid={"A": (30.0, 500.0), "B": (100.0, 2000.0), "alpha": (0.2, 0.4), "beta": (0.2, 0.4), "rd": (10.0,), "rn": (4.0,)},
)
def data_constrained(p, N, D, U):
  """Chinchilla's law of effective tokens and parameters, for U unique tokens.

  Each repetition of the data is worth less than the one before, and so are parameters beyond the optimum for U.
  """
  repeats = jnp.maximum(D / jnp.minimum(U, D) - 1, 0)
  unique = jnp.minimum(U, D)
  effective = unique * (1 + p.rd * -jnp.expm1(-repeats / p.rd))
  # The compute-optimal N for U tokens under the same law.
  best = jnp.exp((jnp.log(p.alpha * p.A) - jnp.log(p.beta * p.B) + p.beta * jnp.log(unique)) / p.alpha)
  base = jnp.minimum(best, N)
  excess = jnp.maximum(N / base - 1, 0)
  size = base * (1 + p.rn * -jnp.expm1(-excess / p.rn))
  return p.E + p.A * decay(size, p.alpha) + p.B * decay(effective, p.beta)


@law(
  "routed",
  "Clark et al. 2022, equations 8 and 9",
  a=REAL,
  b=REAL,
  c=REAL,
  d=REAL,
  start=(1, 100),
  limit=(10, 1e4),
  grid={"a": (-0.08,), "b": (-0.1,), "c": (0.01,), "d": (1.1,), "start": (1.5, 4.0), "limit": (100.0, 500.0)},
)
def routed(p, N, E):
  """log10 L = a log10 N + b log10 F + c log10 N log10 F + d, where F is `saturating` of the number of experts E."""
  n, f = jnp.log10(N), jnp.log10(saturating(E, p.start, p.limit))
  return 10 ** (p.a * n + p.b * f + p.c * n * f + p.d)


def saturating(E: ArrayLike, start: ArrayLike, limit: ArrayLike) -> ArrayLike:
  """The effective number F of experts, with 1 / F = 1 / (E - 1 + 1 / (1 / start - 1 / limit)) + 1 / limit."""
  return 1 / (1 / (E - 1 + 1 / (1 / start - 1 / limit)) + 1 / limit)
