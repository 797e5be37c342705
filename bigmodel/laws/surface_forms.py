"""Laws of parameters N, tokens D and FLOPs C, and of how the tokens are used: unique tokens U, optimizer steps S."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from bigmodel.laws.law import EXPONENTS, FEW, POSITIVE, REAL, Unit, at_largest, decay, in_units_of, law


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
  grid={"Nc": (1e1, 1e4, 1e7), "alpha": (0.05, 0.1, 0.3)},
  rescale={"Nc": in_units_of("Nc", "N")},
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
  grid={"Nc": (1e1, 1e4, 1e7), "Dc": (1e1, 1e4, 1e7), "alpha": (0.05, 0.1, 0.3), "beta": (0.05, 0.1, 0.3)},
  rescale={"Nc": in_units_of("Nc", "N"), "Dc": in_units_of("Dc", "D")},
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
  grid={"A": (0.1, 0.6), "B": (0.1, 0.6), "alpha": (0.2, 0.4), "beta": (0.2, 0.4), "rd": (10.0,), "rn": (4.0,)},
  rescale={"A": at_largest("A", "N", "alpha"), "B": at_largest("B", "D", "beta")},
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
  "nested",
  "2026",
  linear=("E",),
  E=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  k=(0, 5),
  grid={"A": (0.2, 0.8), "B": (0.2, 0.8), "alpha": (0.2, 0.5), "beta": (0.2, 0.5), "k": (0.5, 1.2)},
  rescale={"A": at_largest("A", "N", "alpha"), "B": at_largest("B", "D", "beta")},
)
def nested(p, N, D):
  """L = E + (A / N^alpha + B / D^beta)^k: Chinchilla's law for k = 1, and Kaplan's for E = 0 and k = beta."""
  return p.E + jnp.exp(p.k * jnp.log(p.A * decay(N, p.alpha) + p.B * decay(D, p.beta)))


@law(
  "separable",
  "Zhang et al. 2024, for fine-tuning",
  linear=("E", "A"),
  E=POSITIVE,
  A=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  grid={"alpha": FEW, "beta": FEW},
)
def separable(p, N, D):
  """L = E + A N^-alpha D^-beta: what more data are worth depends on the size of the model."""
  return p.E + p.A * decay(N, p.alpha) * decay(D, p.beta)


def _for_n(params: Mapping[str, np.ndarray], largest: np.ndarray) -> dict[str, np.ndarray]:
  """Each a of a N^power, from those for N in units of its largest value."""
  powers = {"a1": "alpha", "a2": "beta", "a3": "gamma"}
  return {name: params[name] * largest ** -params[power] for name, power in powers.items()}


def _log_of_data_term(grid: Mapping[str, np.ndarray], largest: Mapping[str, float]) -> np.ndarray:
  """Starts of b2, whose grid has the log of the data term at the largest N and D."""
  return grid["b2"] - grid["a2"] + np.exp(grid["a1"] + grid["b1"]) * np.log(largest["D"])


@law(
  "farseer",
  "Li et al. 2025 (Farseer)",
  a1=REAL,
  b1=REAL,
  a2=REAL,
  b2=REAL,
  a3=REAL,
  b3=REAL,
  alpha=(0, 2),
  beta=(0, 2),
  gamma=(0, 2),
  grid={
    "a1": (-0.3, 0.3),
    "b1": (-1.0,),
    "a2": (-1.0, 1.0),
    "b2": (-1.5,),
    "a3": (-1.0, -0.2),
    "b3": (1.0,),
    "alpha": (0.2,),
    "beta": (0.2,),
    "gamma": (0.2,),
  },
  rescale={"b2": _log_of_data_term},
  unit=Unit("N", _for_n),
)
def farseer(p, N, D):
  """L = exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1).

  Both the factor and the exponent of the data term depend on the size of the model. With D in another unit the law is
  another one.
  """
  exponent = jnp.exp(p.a1 * decay(N, -p.alpha) + p.b1)
  return jnp.exp(p.a3 * decay(N, -p.gamma) + p.b3) + jnp.exp(p.a2 * decay(N, -p.beta) + p.b2 - exponent * jnp.log(D))


@law(
  "steps",
  "Chinchilla's law with a term for optimizer steps",
  linear=("E", "A", "B", "G"),
  E=POSITIVE,
  A=POSITIVE,
  B=POSITIVE,
  G=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  gamma=(0, 3),
  grid={"alpha": FEW, "beta": FEW, "gamma": FEW},
)
def steps(p, N, D, S):
  """L = E + A / N^alpha + B / D^beta + G / S^gamma for S optimizer steps: few large batches cost loss."""
  return p.E + p.A * decay(N, p.alpha) + p.B * decay(D, p.beta) + p.G * decay(S, p.gamma)
