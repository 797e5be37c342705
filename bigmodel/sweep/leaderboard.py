"""The runs of a sweep by what they came to: means over seeds, and which differences between them are significant."""

import dataclasses
import math
from typing import Any

import numpy as np
from scipy import special

from bigmodel.sweep import comparisons

Row = dict[str, Any]
SEEDS = ("seed", "data.seed")
FITTED = 5  # rates around the best to which a parabola is fitted: two more than it has coefficients show a lack of fit
PLACES = 801  # between two rates, at which the slope of the curve is looked at
FITS = 0.8  # how often losses that do lie on a parabola are taken to do so
SKEWED = 0.2  # the most that the third-order term of the curve may be, as a share of the second-order term


def board(planned: list[Row], records: list[Row]) -> Row | None:
  """Cells of runs that differ in their seeds only, best first, and what the noise between seeds leaves open.

  A cell of which some runs diverged, or were stopped at a rung where others did better, ranks below all cells of which
  all runs finished, whatever the mean of the runs that are left: those survived because they had luck. Only cells whose
  runs all finished are compared (see `comparisons`): `may_be_best` and `worse` are None for the others, and for all
  cells where no setting has two seeds. `candidates` cells may be the best, `alike` are not worse than any other, and
  differences below `resolution` are not significant.
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


def _rank(cell: Row) -> tuple[int, float]:
  return (0 if _is_complete(cell) else 1 if cell["loss"] is not None else 2), cell["loss"] or 0.0


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
    "stopped": sum(one["status"] == "stopped" for one in records),
    "may_be_best": None,
    "worse": None,
    "run_ids": [one["run_id"] for one in records],
  }


def learning_rates(cells: list[Row], varied: list[str], known: comparisons.Noise | None) -> list[Row]:
  """Of every setting of the other axes: the best learning rate with its interval, and how much a wrong one costs.

  Where the noise between seeds is `known`, the rates that may be the best are those that multiple comparisons leave
  (`comparisons.compare`), and the optimum lies between the rates next to them if the loss falls up to it and rises
  beyond it. That is `interval90`, whatever the curve. It is narrower only where the five rates around the best lie on
  a parabola in the log of the rate up to the noise: then it spans Fieller's intervals of the minima of a parabola and
  of a cubic. `best` is the minimum of that parabola, else of the parabola through the best rate and its
  neighbours. Where noise leaves the minimum open
  (`flat`) there is no `best`, and the optimum is anywhere between two of the rates that were tried, or beyond them
  where the least or the largest rate may be the best (`edge`). Without repeated seeds there is no interval.

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
  flat: Row = {"flat": True, "edge": bool(candidates[0] == 0 or candidates[-1] == last)}
  flat["interval90"] = [float(rates[first]), float(rates[end])]
  if flat["edge"]:
    return flat
  low, high = first, end
  while high - low + 1 < min(FITTED, len(rates)):  # the lower side is nearer to the minimum
    below = losses[low - 1] if low else math.inf
    above = losses[high + 1] if high < last else math.inf
    low, high = (low - 1, high) if below < above else (low, high + 1)
  x, near = np.log(rates), slice(low, high + 1)
  squared = known.variance[near] / seeds[near]
  fitted = _minimum(x[near], losses[near], squared, float(known.freedom[near].min()), x[[first, end]])
  if (fitted is None and len(candidates) > 1) or (len(candidates) > 2 and not (fitted and fitted.fits)):
    return flat
  if fitted is not None and fitted.fits:
    return {"best": math.exp(fitted.best), "interval90": [math.exp(fitted.low), math.exp(fitted.high)]}
  return {"best": _lowest(x, losses), "interval90": flat["interval90"]}


def _lowest(x: np.ndarray, losses: np.ndarray) -> float | None:
  """The rate at the minimum of the parabola through the least loss and those next to it; `x` are logs of rates."""
  least = int(np.argmin(losses))
  bend, slope, _ = np.polyfit(x[least - 1 : least + 2], losses[least - 1 : least + 2], 2)
  return float(np.exp(-slope / (2 * bend))) if bend > 0 else None


@dataclasses.dataclass(frozen=True)
class Minimum:
  """Of a parabola, with an interval of at least 90%; `fits` where nothing but noise parts it from the points."""

  best: float
  low: float
  high: float
  fits: bool


def _minimum(x: np.ndarray, y: np.ndarray, squared: np.ndarray, freedom: float, within: np.ndarray) -> Minimum | None:
  """The minimum of a parabola through points with squared standard errors (its interval after Fieller 1954).

  The interval has the places at which the slope of the parabola, or of a cubic, is not significantly different from 0.
  None where those of the parabola are not one interval inside of `within`. Where losses rise faster on one side, the
  minimum is off by what the noise does not say. So the parabola `fits` only if there are `FITTED` points, the distance
  of the points is one that noise leaves in a share `FITS` of cases, and the cubic's third-order term is surely small.
  """
  center, scale = float(x.mean()), float(np.ptp(x)) / 2
  root = 1 / np.sqrt(np.maximum(squared, 1e-300))
  places = np.linspace(within[0], within[1], PLACES)
  best, ends, lack = math.nan, [], math.inf
  for terms in (3, 4) if len(x) == FITTED else (3,):
    scaled, target = np.vander((x - center) / scale, terms, increasing=True) * root[:, None], y * root
    coefficients = np.linalg.lstsq(scaled, target, rcond=None)[0]
    covariance = np.linalg.pinv(scaled.T @ scaled)
    powers = np.arange(1, terms)
    slopes = powers * ((places[:, None] - center) / scale) ** (powers - 1)  # of each term
    slope = slopes @ coefficients[1:]
    error = np.sqrt(np.einsum("pi,ij,pj->p", slopes, covariance[1:, 1:], slopes))
    open_ = slope[0] >= 0 or slope[-1] <= 0
    k = 0 if open_ else int(np.flatnonzero(slope < 0)[-1])  # the slope passes 0 between this place and the next
    level = np.abs(slope) <= special.stdtrit(freedom, 0.95) * error
    level[k : k + 2] = True  # where there is next to no noise, these are all
    first, last = np.flatnonzero(level)[[0, -1]]
    bounded = not open_ and first > 0 and last < PLACES - 1 and bool(level[first : last + 1].all())
    if terms == 3:
      if not bounded:
        return None
      best = float(places[k] + (places[k + 1] - places[k]) * slope[k] / (slope[k] - slope[k + 1]))
      left = max(len(x) - terms, 1)
      lack = float(np.sum((target - scaled @ coefficients) ** 2)) / left / float(special.fdtri(left, freedom, FITS))
    else:
      skew = abs(coefficients[3]) + special.stdtrit(freedom, 0.95) * math.sqrt(covariance[3, 3])
      if not bounded or skew > SKEWED * coefficients[2]:
        lack = math.inf
    ends += [float(places[first]), float(places[last])]
  return Minimum(best, min(ends), max(ends), len(x) == FITTED and lack <= 1)
