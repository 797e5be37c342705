"""The runs of a sweep by what they came to: means over seeds, and which differences between them are significant."""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from bigmodel.study import comparisons

Row = dict[str, Any]
SEEDS = ("seed", "data.seed")
# A parabola is fitted to between five and seven rates: it has three coefficients, and the points that are left over
# show whether it fits. More rates lie too far from the best one to say anything about it.
FEWEST, MOST = 5, 7
ACCEPTED = 0.8  # how often losses that do lie on a parabola pass the test of whether they do


def board(planned: list[Row], records: list[Row]) -> Row | None:
  """Cells of runs that differ in their seeds only, best first, and what the noise between seeds leaves open.

  A cell of which some runs diverged, or were stopped at a rung where others did better, ranks below all cells of which
  all runs finished, whatever the mean of the runs that are left: those survived because they had luck. Only cells whose
  runs all finished are compared (see `comparisons`): `may_be_best` and `worse` are None for the others, and for all
  cells where no setting has two seeds. `candidates` cells may be the best, `alike` are not worse than any other, and
  between two settings of the usual noise differences below `resolution` are not significant. Where all runs of a cell
  were stopped, it ranks by how far they came, and then by the held-out loss there.
  """
  by_id = {one["run_id"]: one for one in records}
  cells: dict[str, Row] = {}
  for row in planned:
    if (one := by_id.get(row["run_id"])) is None:
      continue
    shared = {name: value for name, value in row["overrides"].items() if name not in SEEDS}
    cell = cells.setdefault(repr(sorted(shared.items())), {"overrides": shared, "records": []})
    cell["records"].append(one)
  if not cells:
    return None
  found = sorted((_cell(cell) for cell in cells.values()), key=_rank)
  complete = [cell for cell in found if _is_complete(cell)]
  known = _noise(complete)
  facts: Row = {"noise": None, "resolution": None, "candidates": None, "alike": None}
  if known is not None:
    seeds = np.array([cell["finished"] for cell in complete])
    verdict = comparisons.compare(np.array([cell["loss"] for cell in complete]), seeds, known)
    for cell, may_be_best, worse in zip(complete, verdict.may_be_best, verdict.worse, strict=True):
      cell |= {"may_be_best": bool(may_be_best), "worse": bool(worse)}
    sd = math.sqrt(known.common)
    critical = comparisons.range_critical(len(complete), int(known.common_freedom))
    facts = {
      "noise": sd,
      "resolution": critical * sd / math.sqrt(seeds.min()),
      "candidates": int(verdict.may_be_best.sum()),
      "alike": int((~verdict.worse).sum()),
    }
  varied = _axes(found)
  return {"axes": varied, "cells": found, **facts, "learning_rates": learning_rates(found, varied, known)}


def _rank(cell: Row) -> tuple[int, int, float]:
  if cell["loss"] is not None:
    return (0 if _is_complete(cell) else 1), 0, cell["loss"]
  loss = cell["loss_at_stop"]
  return 2, -(cell["stopped_at"] or 0), math.inf if loss is None else loss


def _is_complete(cell: Row) -> bool:
  return cell["loss"] is not None and not cell["diverged"] and not cell["stopped"]


def _noise(cells: list[Row]) -> comparisons.Noise | None:
  variance = np.array([cell["std"] or 0.0 for cell in cells]) ** 2
  return comparisons.noise(variance, np.array([cell["finished"] for cell in cells])) if cells else None


def _axes(cells: list[Row]) -> list[str]:
  """What the cells differ in, but for settings of the optimizer that another axis decides."""
  names = list(dict.fromkeys(name for cell in cells for name in cell["overrides"]))
  values = {name: [repr(cell["overrides"].get(name)) for cell in cells] for name in names}
  varied = [name for name in names if len(set(values[name])) > 1]
  kinds = lambda *given: len(set(zip(*(values[name] for name in given), strict=True)))
  follows = lambda name, other: kinds(other) < len(cells) and kinds(other, name) == kinds(other)
  decided = lambda name: name.startswith("optim.") and name != "optim.lr" and any(
    follows(name, other) for other in varied if not other.startswith("optim."))  # fmt: skip
  return [name for name in varied if not decided(name)]


def _cell(cell: Row) -> Row:
  records = cell["records"]
  losses = [one["loss_eval"] for one in records if one["status"] == "finished"]
  stopped = [one for one in records if one["status"] == "stopped"]
  last = max((one["steps"] for one in stopped), default=None)
  losses_there = [one["loss_eval"] for one in stopped if one["steps"] == last and one["loss_eval"] is not None]
  return {
    "overrides": cell["overrides"],
    "runs": len(records),
    "finished": len(losses),
    "loss": float(np.mean(losses)) if losses else None,
    "std": float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
    "params_total": records[0]["params_total"],
    "tokens": max(one["tokens"] for one in records),
    "seconds": sum(one["seconds"] for one in records),
    "diverged": sum(one["status"] == "diverged" for one in records),
    "stopped": len(stopped),
    "stopped_at": last,
    "loss_at_stop": float(np.mean(losses_there)) if losses_there else None,
    "may_be_best": None,
    "worse": None,
    "run_ids": [one["run_id"] for one in records],
  }


def learning_rates(cells: list[Row], varied: list[str], known: comparisons.Noise | None) -> list[Row]:
  """Of every setting of the other axes: the best learning rate with its interval, and how much a wrong one costs.

  Where the noise between seeds is `known`, multiple comparisons (`comparisons.compare`) leave some rates that may be
  the best, and the optimum lies between the rates next to those if the loss falls up to it and rises beyond it. That
  is `interval90`, whatever the curve. The optimum is `flat`, with no `best`, where three or more rates may be the best:
  it is anywhere between two of the rates that were tried, or beyond them where the least or the largest rate may be
  the best (`edge`). Where it is sharp, `best` is the minimum of a parabola in the log of the rate. If that parabola
  fits the rates around the best one, `interval90` is the 90% interval of its minimum (see `_parabola`). Such an
  interval has the optimum in about 90% of sweeps if the curve is a parabola, and in fewer if it is skewed by less than
  noise shows (in simulations, 81% of all sharp intervals); one between rates has it in nearly all. Without repeated
  seeds there is no interval.

  The sensitivity (Wortsman et al. 2023) is the mean over all rates of the loss less the least; a rate with a run that
  diverged counts as the worst of the others.
  """
  if "optim.lr" not in varied:
    return []
  complete = [cell for cell in cells if _is_complete(cell)]
  groups: dict[str, list[Row]] = {}
  for cell in cells:
    if "optim.lr" not in cell["overrides"]:
      continue  # which has the config's own
    others = {name: x for name, x in cell["overrides"].items() if name != "optim.lr" and name in varied}
    groups.setdefault(repr(sorted(others.items())), []).append({"others": others, "cell": cell})
  rows = []
  for group in groups.values():
    members = [one["cell"] for one in group]
    tried = sorted((c for c in members if _is_complete(c)), key=lambda c: c["overrides"]["optim.lr"])
    if len(tried) < 3:
      continue
    rates, losses = (np.array(x) for x in zip(*((c["overrides"]["optim.lr"], c["loss"]) for c in tried), strict=True))
    least = int(np.argmin(losses))
    diverged = sum(cell["diverged"] > 0 for cell in members)
    lost = np.append(losses, [losses.max()] * diverged) - losses.min()
    row = {
      "others": group[0]["others"],
      "best_tried": float(rates[least]),
      "loss": float(losses[least]),
      "edge": least in (0, len(rates) - 1),
      "best": None,
      "interval90": None,
      "flat": False,
      "sensitivity": float(lost.mean()),
    }
    if known is None:
      if not row["edge"]:
        row["best"] = _lowest(np.log(rates), losses)
    else:
      places = [next(i for i, cell in enumerate(complete) if cell is one) for one in tried]
      row |= _best_rate(rates, losses, np.array([c["finished"] for c in tried]), known.of(places))
    rows.append(row)
  return rows


def _best_rate(rates: np.ndarray, losses: np.ndarray, seeds: np.ndarray, known: comparisons.Noise) -> Row:
  """`best`, `interval90` and `flat` of one scan over at least three rates, in rising order."""
  candidates = np.flatnonzero(comparisons.compare(losses, seeds, known).may_be_best)
  last = len(rates) - 1
  first, end = max(int(candidates[0]) - 1, 0), min(int(candidates[-1]) + 1, last)
  if candidates[0] == candidates[-1] and candidates[0] in (0, last):
    return {}  # the loss falls up to an edge: the optimum may lie beyond it
  between = [float(rates[first]), float(rates[end])]
  edge = bool(candidates[0] == 0 or candidates[-1] == last)
  if edge or len(candidates) > 2:
    return {"flat": True, "edge": edge, "interval90": between}
  low, high = first, end
  while high - low + 1 < min(MOST, len(rates)):  # the lower side is nearer to the minimum
    below = losses[low - 1] if low else math.inf
    above = losses[high + 1] if high < last else math.inf
    low, high = (low - 1, high) if below < above else (low, high + 1)
  x, near = np.log(rates), slice(low, high + 1)
  squared = known.variance[near] / seeds[near]
  minimum = _parabola(x[near], losses[near], squared, float(known.freedom[near].min()))
  if minimum is not None and x[first] < minimum.low and minimum.high < x[end]:
    return {"best": math.exp(minimum.best), "interval90": [math.exp(minimum.low), math.exp(minimum.high)]}
  return {"best": _lowest(x, losses), "interval90": between}


def _lowest(x: np.ndarray, losses: np.ndarray) -> float | None:
  """The rate at the minimum of the parabola through the least loss and those next to it; `x` are logs of rates."""
  least = int(np.argmin(losses))
  bend, slope, _ = np.polyfit(x[least - 1 : least + 2], losses[least - 1 : least + 2], 2)
  return float(np.exp(-slope / (2 * bend))) if bend > 0 else None


@dataclasses.dataclass(frozen=True)
class Minimum:
  """Where a parabola is lowest, with its 90% interval."""

  best: float
  low: float
  high: float


def _parabola(x: np.ndarray, y: np.ndarray, squared: np.ndarray, freedom: float) -> Minimum | None:
  """The minimum of the parabola through points whose means have the standard errors squared `squared`.

  The interval has the places at which the slope is not significantly different from 0 (Fieller 1954). That holds for
  losses that do lie on a parabola. A curve that rises faster on one side moves the minimum by as much as the interval
  is wide before noise lets anybody see it, so the interval reaches to the minimum of a cubic, too. None where fewer
  than `FEWEST` points leave too little to test, where the points are farther from the parabola than noise alone leaves
  in a share `ACCEPTED` of cases (an F test against the noise between seeds, with `freedom` degrees of freedom), and
  where the interval has no end.
  """
  left = len(x) - 3
  if len(x) < FEWEST:
    return None
  center, scale = float(x.mean()), float(np.ptp(x)) / 2
  root = 1 / np.sqrt(np.maximum(squared, 1e-300))
  scaled, target = np.vander((x - center) / scale, 3, increasing=True) * root[:, None], y * root
  coefficients = np.linalg.lstsq(scaled, target, rcond=None)[0]
  lack_of_fit = float(np.sum((target - scaled @ coefficients) ** 2)) / left
  if lack_of_fit > special.fdtri(left, freedom, ACCEPTED):
    return None
  covariance = special.stdtrit(freedom, 0.95) ** 2 * np.linalg.pinv(scaled.T @ scaled)
  _, slope, bend = coefficients.tolist()
  # The slope c1 + 2 c2 t is significant where (c1 + 2 c2 t)^2 exceeds its variance times the squared quantile.
  a = 4 * (bend**2 - covariance[2, 2])
  b = 4 * (slope * bend - covariance[1, 2])
  c = slope**2 - covariance[1, 1]
  if bend <= 0 or a <= 0:
    return None
  half = math.sqrt(max(b**2 - 4 * a * c, 0.0)) / (2 * a)
  low, high = (center + scale * (-b / (2 * a) + side * half) for side in (-1, 1))
  skewed = _minimum_of_cubic((x - center) / scale, y, root)
  if skewed is None:
    return None
  low, high = min(low, center + scale * skewed), max(high, center + scale * skewed)
  return Minimum(center - scale * slope / (2 * bend), low, high)


def _minimum_of_cubic(t: np.ndarray, y: np.ndarray, root: np.ndarray) -> float | None:
  """Where the cubic through points of weights `root` squared is lowest between them, if it has a minimum there."""
  scaled = np.vander(t, 4, increasing=True) * root[:, None]
  _, slope, bend, third = np.linalg.lstsq(scaled, y * root, rcond=None)[0].tolist()
  # Of slope + 2 bend t + 3 third t^2 = 0 the root at which the curve bends upwards, without cancellation.
  inside = bend**2 - 3 * third * slope
  if inside < 0 or bend + math.sqrt(inside) <= 0:
    return None
  lowest = -slope / (bend + math.sqrt(inside))
  return lowest if t[0] <= lowest <= t[-1] else None
