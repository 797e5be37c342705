"""Laws of data mixtures: the loss on one domain by the shares r1, r2, ... of all domains in the training data.

They have as many columns as there are domains, so this file has families of laws: `mixing(5)` is the law `mixing5`.
"""

import functools
import re

import jax.numpy as jnp
import numpy as np

from bigmodel.laws.law import POSITIVE, REAL, Bounds, Law, Value, at_largest, decay, law

LEAST_SHARES = 2


def is_share(column: str) -> bool:
  """Whether a column of a law is the share of one of several domains, which may be 0."""
  return re.fullmatch(r"r[1-9]\d*", column) is not None


def shares(count: int) -> tuple[str, ...]:
  """The columns of a mixture of so many domains."""
  return tuple(f"r{i}" for i in range(1, count + 1))


@functools.cache
def mixing(count: int) -> Law:
  """The exponential mixing law, L = E + k exp(sum_j t_j r_j) (Ye et al. 2024)."""
  names = tuple(f"t{i}" for i in range(1, count + 1))

  def value(p, *r):
    return p.E + p.k * jnp.exp(sum(getattr(p, name) * share for name, share in zip(names, r, strict=True)))

  # The loss falls with the share of one domain, which is not known, or with none.
  rows = np.concatenate([-3.0 * np.eye(count), -0.1 * np.ones((1, count))])
  bounds: dict[str, Bounds] = {"E": POSITIVE, "k": POSITIVE} | dict.fromkeys(names, REAL)
  return _law(f"mixing{count}", "Ye et al. 2024", value, bounds, ("E", "k"), rows)


@functools.cache
def mixing_power(count: int) -> Law:
  """A power law of effective data, L = E + B / (before + sum_j w_j r_j)^beta.

  A share of a domain is worth w_j shares of the domain that is evaluated, so the first examples of it count most.
  """
  names = tuple(f"w{i}" for i in range(1, count + 1))

  def value(p, *r):
    effective = p.before + sum(getattr(p, name) * share for name, share in zip(names, r, strict=True))
    return p.E + p.B * decay(effective, p.beta)

  weights = np.concatenate([np.where(np.eye(count) > 0, 1.0, 0.03), np.full((1, count), 0.3)])
  rows = np.concatenate(
    [np.column_stack([np.full(count + 1, start), np.full(count + 1, beta), weights])
     for start, beta in ((0.01, 0.15), (0.1, 0.4))]
  )  # fmt: skip
  bounds: dict[str, Bounds] = {"E": POSITIVE, "B": POSITIVE, "before": POSITIVE, "beta": (0, 3)}
  bounds |= dict.fromkeys(names, POSITIVE)
  return _law(f"mixing_power{count}", "here: effective data of shares", value, bounds, ("E", "B"), rows)


def _law(
  name: str, source: str, value: Value, bounds: dict[str, Bounds], linear: tuple[str, ...], rows: np.ndarray
) -> Law:
  columns = shares(sum(each not in ("E", "k", "B", "before", "beta") for each in bounds))
  return Law(name, source, value, columns, bounds, {}, linear, rows=rows)


FAMILIES = {"mixing": mixing, "mixing_power": mixing_power}


@law(
  "bimix",
  "Ge et al. 2024 (BiMix), equation 3",
  linear=("A", "E"),
  A=POSITIVE,
  E=POSITIVE,
  alpha=(0, 3),
  beta=(0, 3),
  G=POSITIVE,
  grid={"alpha": (0.05, 0.2, 0.5), "beta": (0.05, 0.2, 0.5), "G": (0.3, 3.0)},
  rescale={"G": at_largest("G", "S", "beta")},
)
def bimix(p, r, S):
  """L = A r^-alpha (G S^-beta + 1) of a domain's positive share r and the steps S; E makes room for an offset."""
  return p.E + p.A * decay(r, p.alpha) * (p.G * decay(S, p.beta) + 1)
