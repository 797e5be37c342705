"""Which run to do next: the one that narrows the forecast of a target most, for its compute.

A forecast's variance (`laws.forecast.Mixture`) is that of the law's parameters, and a discrepancy that grows with
the distance of the target from the largest run. One more run at (N, D) lowers the first as a measurement lowers the
variance of what it is correlated with, by the draws of the fit, and the second where it lies beyond all others.
"""

import math
from typing import Any

import numpy as np

from bigmodel.laws import chinchilla, isoflop, optimum, summary
from bigmodel.laws.forecast import Spread
from bigmodel.laws.points import Points

Run = tuple[float, float, float]  # N, D, C
BUDGETS = 9  # of candidates, from the smallest that was run to the cap
WORTH = 0.05  # of the variance: what the next run should take off it at least
RATIOS = np.geomspace(1 / 8, 8, 13)  # of candidates' sizes to the best one


def variance(fit: chinchilla.Fit, known: Spread, target: Run, added: Run | None = None) -> dict[str, float]:
  """Parts of the variance of ln loss at `target` (N, D, C), as it is or with a run added."""
  N, D, C = target
  draws = lambda n, d: chinchilla.log_loss(fit.draws.T, np.log(n), np.log(d))
  at = draws(N, D)
  usable = np.isfinite(at)
  parameters = float(np.var(at[usable]))
  largest = fit.points.C.max()
  if added is not None:
    n, d, c = added
    own = draws(n, d)
    usable &= np.isfinite(own)
    shared = np.cov(at[usable], own[usable])
    parameters -= float(shared[0, 1] ** 2 / (shared[1, 1] + known.noise**2))
    largest = max(largest, c)
  distance = max(math.log(C / largest), 0.0)
  return {"parameters": max(parameters, 0.0), "discrepancy": (known.discrepancy * distance) ** 2}


def candidates(fit: chinchilla.Fit, known: Spread, target: Run, cap: float) -> list[dict[str, Any]]:
  """At each of some budgets up to `cap` the run that lowers the variance most, with what it lowers it by."""
  k = summary.flops_per_nd(fit)
  before = sum(variance(fit, known, target).values())
  rows = []
  for C in np.geomspace(min(fit.points.C.min(), cap), cap, BUDGETS):
    N_best, _, _ = optimum.best(fit.theta[None], C, k)
    tried = []
    for N in N_best[0] * RATIOS:
      D = C / (k * N)
      after = sum(variance(fit, known, target, (N, D, C)).values())
      tried.append({"C": float(C), "N": float(N), "D": float(D), "reduction": 1 - after / before})
    rows.append(max(tried, key=lambda row: row["reduction"]))
  for row in rows:
    row["reduction_per_flop"] = row["reduction"] / row["C"]
  return rows


def edges(points: Points) -> list[dict[str, Any]]:
  """Of each budget with enough sizes, whether its best size lies within them."""
  return [
    {
      "C": profile.C,
      "smallest": float(own.N.min()),
      "largest": float(own.N.max()),
      "N": profile.N if math.isfinite(profile.N) else None,
      "inside": profile.inside,
    }
    for profile in isoflop.fit(points).profiles
    for own in [points[np.abs(np.log(points.budgets() / profile.C)) < 0.01]]
  ]


def design(fit: chinchilla.Fit, known: Spread, C: float, cap: float) -> dict[str, Any]:
  """Candidates for the next run, where the target is the optimum at C; and the edges of the runs so far."""
  (N,), (D,), _ = optimum.best(fit.theta[None], C, summary.flops_per_nd(fit))
  target = (float(N), float(D), float(C))
  parts = variance(fit, known, target)
  rows = candidates(fit, known, target, cap)
  worth = [row for row in rows if row["reduction"] >= WORTH]
  facts = {
    "target": dict(zip("NDC", target, strict=True)),
    "predicted": float(fit.predict(N, D)),
    "sd": math.sqrt(sum(parts.values())),
    "parts": {name: math.sqrt(value) for name, value in parts.items()},
    "noise": known.noise,
    "candidates": rows,
    "next": max(worth, key=lambda row: row["reduction_per_flop"]) if worth else None,
    "edges": edges(fit.points),
  }
  return summary.plain(facts)
