"""Which run to do next: the one that narrows the forecast of a target most, for its compute.

A forecast's variance (`laws.forecast.Forecaster`) is that of the laws' parameters, and a discrepancy that grows with
the distance of the target from the largest run. One more run at (N, D) lowers the first as a measurement lowers the
variance of what it is correlated with, by the draws of the fits, and the second where it lies beyond all others.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from bigmodel.laws import chinchilla, isoflop, optimum, summary
from bigmodel.laws.forecast import Forecaster, Scale
from bigmodel.laws.points import Points

BUDGETS = 9  # of candidates, from the smallest that was run to the cap
WORTH = 0.05  # of the variance: what the next run should take off it at least
RATIOS = np.geomspace(1 / 8, 8, 13)  # of candidates' sizes to the best one


def variance(forecaster: Forecaster, target: Scale) -> dict[str, float]:
  """Parts of the variance of ln loss at `target`."""
  parts = forecaster.predict([target.N], [target.D], [target.C])
  return {"parameters": float(parts.parameters[0] ** 2), "discrepancy": float(parts.discrepancy[0] ** 2)}


def variance_with(forecaster: Forecaster, target: Scale, added: Points) -> dict[str, np.ndarray]:
  """The same parts if one of some runs were added, for each of them; `added.loss` is not read."""
  columns = (np.append(getattr(target, name), getattr(added, name)) for name in "NDC")
  at_target, *at_added = forecaster.draws(*columns).T
  parameters = np.var(at_target)
  covariance = np.array([np.mean((at_target - at_target.mean()) * (own - own.mean())) for own in at_added])
  measured = np.var(at_added, axis=1) + forecaster.spread.noise**2
  reach = forecaster.distance(added.N, added.D)  # the largest run would lie so much farther out
  left = np.maximum(forecaster.distance(target.N, target.D) - reach, 0.0)
  return {
    "parameters": np.maximum(parameters - covariance**2 / np.maximum(measured, 1e-300), 0.0),
    "discrepancy": (forecaster.spread.discrepancy * left) ** 2,
  }


def candidates(fit: chinchilla.Fit, forecaster: Forecaster, target: Scale, cap: float) -> list[dict[str, Any]]:
  """At each of some budgets up to `cap` the run that lowers the variance most, with what it lowers it by."""
  k = summary.flops_per_nd(fit)
  budgets = np.geomspace(min(fit.points.C.min(), cap), cap, BUDGETS)
  N = np.concatenate([optimum.best(fit.theta[None], C, k)[0] * RATIOS for C in budgets])
  C = np.repeat(budgets, len(RATIOS))
  runs = Points(N, C / (k * N), C, np.ones_like(N))
  parts = variance_with(forecaster, target, runs)
  reduction = 1 - (parts["parameters"] + parts["discrepancy"]) / sum(variance(forecaster, target).values())
  rows = []
  for first in range(0, len(N), len(RATIOS)):
    best = first + int(np.argmax(reduction[first : first + len(RATIOS)]))
    run = {"C": float(C[best]), "N": float(N[best]), "D": float(runs.D[best]), "reduction": float(reduction[best])}
    rows.append(run | {"reduction_per_flop": run["reduction"] / run["C"]})
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


def design(fit: chinchilla.Fit, forecaster: Forecaster, C: float, cap: float) -> dict[str, Any]:
  """Candidates for the next run, where the target is the optimum at C by `fit`; and the edges of the runs so far."""
  (N,), (D,), _ = optimum.best(fit.theta[None], C, summary.flops_per_nd(fit))
  target = Scale(float(N), float(D), float(C))
  parts = variance(forecaster, target)
  rows = candidates(fit, forecaster, target, cap)
  worth = [row for row in rows if row["reduction"] >= WORTH]
  facts = {
    "target": dataclasses.asdict(target),
    "forecaster": forecaster.facts(),
    "predicted": math.exp(forecaster.log_loss([N], [D], [C])[0]),
    "sd": math.sqrt(sum(parts.values())),
    "parts": {name: math.sqrt(value) for name, value in parts.items()},
    "noise": forecaster.spread.noise,
    "candidates": rows,
    "next": max(worth, key=lambda row: row["reduction_per_flop"]) if worth else None,
    "edges": edges(fit.points),
  }
  return summary.plain(facts)
