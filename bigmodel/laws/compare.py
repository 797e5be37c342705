"""Two recipes: how much compute one is worth in terms of the other, where that grows, and where they cross.

Each has Chinchilla's law of its own. Along its compute-optimal sizes the loss is E + K (C / k)^-g with
g = alpha beta / (alpha + beta), so the compute at which one reaches the other's loss is known in closed form.
"""

import math
from typing import Any

import numpy as np

from bigmodel.errors import UserError
from bigmodel.laws import chinchilla, summary
from bigmodel.laws.points import Points

SCALES = 5  # budgets at which the multiplier is said
DRAWN = 40  # budgets of the curves on the page
REACH = 1e3  # times the smallest and the largest budget, within which a crossing is looked for


def frontier(fit: chinchilla.Fit) -> np.ndarray:
  """(E, K, g) of the compute-optimal loss, for the fit and for every draw [1 + S, 3]."""
  k = summary.flops_per_nd(fit)
  log_a, log_b, log_e, alpha, beta = np.vstack([fit.theta, fit.draws]).T
  with np.errstate(all="ignore"):
    log_g = (np.log(alpha) + log_a - np.log(beta) - log_b) / (alpha + beta)
    g = alpha * beta / (alpha + beta)
    K = (np.exp(log_a - alpha * log_g) + np.exp(log_b + beta * log_g)) * k**g
  return np.stack([np.exp(log_e), K, g], axis=-1)


def loss(law: np.ndarray, C: Any) -> np.ndarray:
  """[S, budgets]"""
  E, K, g = (law[:, i : i + 1] for i in range(3))
  return E + K * np.asarray(C, np.float64) ** -g


def multiplier(of: np.ndarray, terms: np.ndarray, C: Any) -> np.ndarray:
  """Compute that `terms` needs for what `of` reaches with C, over C; infinite where it never gets there."""
  E, K, g = (terms[:, i : i + 1] for i in range(3))
  with np.errstate(all="ignore"):
    needed = (K / (loss(of, C) - E)) ** (1 / g)
  return np.where(loss(of, C) > E, needed, np.inf) / np.asarray(C)


def compare(a: Points, b: Points, bootstraps: int = 400, level: float = 0.9) -> dict[str, Any]:
  """What B is worth in terms of A: multipliers by budget, their growth with scale, and the crossing."""
  if a.convention != b.convention:
    raise UserError(f"compare: A counts FLOPs as {a.convention}, B as {b.convention}")
  fits = [chinchilla.fit(points, bootstraps, seed) for seed, points in enumerate((a, b))]
  law_a, law_b = map(frontier, fits)
  C = np.geomspace(max(a.C.min(), b.C.min()), max(a.C.max(), b.C.max()), SCALES)
  tails = [(1 - level) / 2, (1 + level) / 2]
  interval = lambda draws: [float(x) for x in np.quantile(draws, tails, method="nearest")]  # some are infinite
  worth = multiplier(law_b, law_a, C)
  rows = [
    {
      "C": float(C[i]),
      "loss_a": float(loss(law_a, C)[0, i]),
      "loss_b": float(loss(law_b, C)[0, i]),
      "multiplier": float(worth[0, i]),
      "interval90": interval(worth[1:, i]),
      "beyond": bool(C[i] > min(a.C.max(), b.C.max())),  # where one of them has not been run
    }
    for i in range(SCALES)
  ]
  drawn = np.geomspace(C[0], C[-1], DRAWN)
  of = lambda values: {"value": [float(x) for x in values[0]], "interval90": [interval(x) for x in values[1:].T]}
  curves = {"C": drawn.tolist(), "a": of(loss(law_a, drawn)), "b": of(loss(law_b, drawn)),
            "multiplier": of(multiplier(law_b, law_a, drawn))}  # fmt: skip
  with np.errstate(all="ignore"):
    trend = np.log(worth[:, -1] / worth[:, 0]) / np.log(C[-1] / C[0])
  trend = np.where(np.isnan(trend), 0.0, trend)  # never reached at either end
  grid = np.geomspace(C[0] / REACH, C[-1] * REACH, 400)
  ahead = loss(law_a, grid) > loss(law_b, grid)  # B is
  crossings = [float(grid[np.flatnonzero(np.diff(row))[-1]]) if np.diff(row).any() else math.inf for row in ahead]
  known = [c for c in crossings[1:] if math.isfinite(c)]
  return summary.plain(
    {
      "rows": rows,
      "growth": {"exponent": float(trend[0]), "interval90": interval(trend[1:])},
      "crossing": {
        "C": crossings[0],
        "interval90": interval(np.array(known)) if known else None,
        "share_of_draws": len(known) / max(len(crossings) - 1, 1),
      },
      "verdict": verdict(rows, interval(trend[1:])),
      "curves": curves,
      "points": [{"C": p.C.tolist(), "loss": p.loss.tolist()} for p in (a, b)],
      "laws": [summary.chinchilla_facts(fit) for fit in fits],
    }
  )


def verdict(rows: list[dict[str, Any]], growth: list[float]) -> str:
  """One sentence: who is ahead at the largest budget, and whether that grows."""
  low, high = rows[-1]["interval90"]
  C = rows[-1]["C"]
  if low > 1 and math.isinf(rows[-1]["multiplier"]):
    first = f"B is worth {low:.3g} times its compute and more in A's terms at {C:.3g} FLOPs: A's law never gets there"
  elif low > 1:
    first = f"B is worth {rows[-1]['multiplier']:.3g} times its compute in A's terms at {C:.3g} FLOPs"
  elif high < 1:
    first = f"B is worth only {rows[-1]['multiplier']:.3g} times its compute in A's terms at {C:.3g} FLOPs"
  else:
    first = f"no difference beyond the noise at {C:.3g} FLOPs"
  if growth[0] > 0:
    return f"{first}; what it is worth grows with scale"
  if growth[1] < 0:
    return f"{first}; what it is worth shrinks with scale"
  return f"{first}; that it changes with scale is not shown"
