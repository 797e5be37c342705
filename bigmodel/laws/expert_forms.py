"""Laws of models with experts: parameters N of the dense model, number E of experts, tokens D."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from bigmodel.laws.law import FEW, POSITIVE, REAL, decay, law


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


@law(
  "experts",
  "a power law in E, as an effective size",
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": FEW, "beta": FEW},
)
def experts(p, N, E):
  """L = L0 + N^-alpha (A + B E^-beta): infinitely many experts are worth a finitely larger dense model."""
  return p.L0 + decay(N, p.alpha) * (p.A + p.B * decay(E, p.beta))


@law(
  "experts_joint",
  "Ludziejewski et al. 2025",
  linear=("L0", "A", "B"),
  L0=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  gamma=REAL,
  delta=REAL,
  zeta=REAL,
  omega=REAL,
  start=(1, 100),
  limit=(10, 1e4),
  grid={
    "alpha": (0.15, 0.4),
    "beta": (0.15, 0.4),
    "gamma": (0.0,),
    "delta": (-0.1,),
    "zeta": (0.0,),
    "omega": (0.0,),
    "start": (1.5, 4.0),
    "limit": (300.0,),
  },
)
def experts_joint(p, N, D, E):
  """L = L0 + A F^delta N^(-alpha + gamma ln F) + B F^omega D^(-beta + zeta ln F), with F as in `routed`."""
  f = jnp.log(saturating(E, p.start, p.limit))
  size = jnp.exp(p.delta * f + (p.gamma * f - p.alpha) * jnp.log(N))
  data = jnp.exp(p.omega * f + (p.zeta * f - p.beta) * jnp.log(D))
  return p.L0 + p.A * size + p.B * data
