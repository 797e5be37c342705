"""Chinchilla's parametric law, L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022, equation 2, fitted as their equation 3 says: the sum over
points of Huber's loss (delta 1e-3) on the log of the loss, from a grid of starts.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigmodel.files import UserError
from bigmodel.laws.points import Points
from bigmodel.laws.solver import Solution, minimize

NAMES = ("A", "B", "E", "alpha", "beta")
DELTA = 1e-3
SCALE = 1e3  # the objective is about 1e-3 at its minimum
# Epoch's grid (Besiroglu et al. 2024): 4,500 starts of (log A, log B, log E, alpha, beta).
GRID = ((0, 5, 10, 15, 20, 25), (0, 5, 10, 15, 20, 25), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))
POLISHED = 64  # starts that are carried to convergence


@dataclasses.dataclass(frozen=True)
class Fit:
  """Parameters as `theta` = (log A, log B, log E, alpha, beta), and draws of their uncertainty."""

  points: Points
  theta: np.ndarray
  objective: float
  starts_at_optimum: int
  draws: np.ndarray  # [S, 5], Bayesian bootstrap

  @property
  def params(self) -> dict[str, float]:
    return readable(self.theta)

  def intervals(self, level: float = 0.9) -> dict[str, list[float]]:
    """Percentile intervals of the bootstrap for every parameter."""
    values = [readable(draw) for draw in self.draws]
    tail = (1 - level) / 2
    return {name: [float(x) for x in np.quantile([v[name] for v in values], [tail, 1 - tail])] for name in NAMES}

  def predict(self, N: Any, D: Any) -> np.ndarray:
    return np.exp(log_loss(self.theta, np.log(N), np.log(D)))

  def optimum(self, C: float, flops_per_nd: float = 6.0, theta: np.ndarray | None = None) -> tuple[float, float]:
    """Compute-optimal (N, D) with flops_per_nd N D = C (their equation 4)."""
    log_a, log_b, _, alpha, beta = self.theta if theta is None else theta
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    log_n = log_g + beta / (alpha + beta) * np.log(C / flops_per_nd)
    return float(np.exp(log_n)), float(C / flops_per_nd / np.exp(log_n))


def readable(theta: np.ndarray) -> dict[str, float]:
  log_a, log_b, log_e, alpha, beta = (float(x) for x in theta)
  return {"A": float(np.exp(log_a)), "B": float(np.exp(log_b)), "E": float(np.exp(log_e)), "alpha": alpha, "beta": beta}


def log_loss(theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
  log_a, log_b, log_e, alpha, beta = theta
  return np.logaddexp(np.logaddexp(log_a - alpha * log_n, log_b - beta * log_d), log_e)


def _objective(theta: jax.Array, log_n: jax.Array, log_d: jax.Array, log_l: jax.Array, weights: jax.Array) -> jax.Array:
  log_a, log_b, log_e, alpha, beta = theta
  terms = jnp.stack([log_a - alpha * log_n, log_b - beta * log_d, jnp.broadcast_to(log_e, log_n.shape)])
  size = jnp.abs(jax.nn.logsumexp(terms, axis=0) - log_l)
  huber = jnp.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
  return SCALE * jnp.sum(weights * huber)


def fit(points: Points, bootstraps: int = 400, seed: int = 0) -> Fit:
  """Fits the law; raises `UserError` with fewer points than parameters."""
  if len(points) <= len(NAMES):
    raise UserError(f"law chinchilla has {len(NAMES)} parameters and {len(points)} points; it needs more points")
  data = tuple(np.log(x).astype(np.float64) for x in (points.N, points.D, points.loss))
  with jax.enable_x64(True):
    starts = np.array(list(itertools.product(*GRID)), np.float64)
    ones = np.ones(len(points))
    rough = _solve(starts, data, ones, 12)
    best = np.argsort(np.where(np.isfinite(rough.value), rough.value, np.inf))[:POLISHED]
    fine = _solve(rough.theta[best], data, ones, 400)
    winner = int(np.argmin(fine.value))
    theta = fine.theta[winner]
    reached = int(np.sum(fine.value < fine.value[winner] * (1 + 1e-6) + 1e-12))
    draws = _bootstrap(theta, data, bootstraps, seed)
  return Fit(points, theta, float(fine.value[winner]) / SCALE, reached, draws)


def _bootstrap(theta: np.ndarray, data: tuple[np.ndarray, ...], draws: int, seed: int) -> np.ndarray:
  """Draws of theta by the Bayesian bootstrap (Rubin 1981): every point stays in, with a random weight.

  Each resample starts at the fit and at two other irreducible losses, and keeps the
  best: where E is at its bound, no gradient would lead away from there.
  """
  if not draws:
    return np.empty((0, len(NAMES)))
  weights = np.random.default_rng(seed).exponential(size=(draws, len(data[0])))
  weights /= weights.mean(axis=1, keepdims=True)
  lowest = data[2].min()
  starts = np.array([theta, *((*theta[:2], lowest + np.log(share), *theta[3:]) for share in (0.3, 0.8))])
  found = _solve(np.tile(starts, (draws, 1)), data, np.repeat(weights, len(starts), axis=0), 100)
  best = np.argmin(found.value.reshape(draws, -1), axis=1)
  return found.theta.reshape(draws, len(starts), -1)[np.arange(draws), best]


def _solve(starts: np.ndarray, data: tuple[np.ndarray, ...], weights: np.ndarray, iterations: int) -> Solution:
  """Solves for every start; `weights` is [points] or [starts, points].

  Points are padded with weight zero to a multiple of 64, so that fits of fewer
  points (rolling origins, subsets) reuse the compiled program.
  """
  pad = -len(data[0]) % 64
  rows = len(starts)
  columns = [np.broadcast_to(np.pad(x, (0, pad), mode="edge"), (rows, len(x) + pad)) for x in data]
  weights = np.broadcast_to(np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, pad)]), columns[0].shape)
  solution = minimize(_objective, jnp.asarray(starts), *map(jnp.asarray, (*columns, weights)), iterations=iterations)
  return Solution(*map(np.asarray, solution))
