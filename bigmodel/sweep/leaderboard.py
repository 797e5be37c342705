"""The runs of a sweep by what they came to: means over seeds, and how small a difference the sweep can see."""

import math
from typing import Any

import numpy as np
from scipy import special

Row = dict[str, Any]
SEEDS = ("seed", "data.seed")


def board(planned: list[Row], records: list[Row]) -> Row | None:
  """Cells of runs that differ in their seeds only, best first; with the noise between seeds, where it is known.

  Two cells whose means differ by less than `resolution` are alike: a 90% interval of their difference holds 0.
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
  found = sorted((_cell(cell) for cell in cells.values()), key=lambda c: (c["loss"] is None, c["loss"] or 0.0))
  spreads = [(c["finished"] - 1, c["std"]) for c in found if c["std"] is not None]
  degrees = sum(n for n, _ in spreads)
  noise = math.sqrt(sum(n * s**2 for n, s in spreads) / degrees) if degrees else None
  seeds = min((c["finished"] for c in found if c["finished"]), default=1)
  resolution = None if noise is None else float(special.stdtrit(degrees, 0.95) * noise * math.sqrt(2 / seeds))
  best = found[0]["loss"]
  alike = (
    sum(c["loss"] is not None and c["loss"] - best <= resolution for c in found) if resolution is not None else None
  )
  varied = _axes(found)
  return {
    "axes": varied,
    "cells": found,
    "noise": noise,
    "resolution": resolution,
    "alike": alike,
    "learning_rates": learning_rates(found, varied, noise),
  }


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
    "diverged": any(one["status"] == "diverged" for one in records),
    "run_ids": [one["run_id"] for one in records],
  }


def learning_rates(cells: list[Row], varied: list[str], noise: float | None) -> list[Row]:
  """Of every setting of the other axes: the best learning rate with its interval, and how much a wrong one costs.

  The best is the minimum of a parabola through the best rate and its neighbours, in logs; its interval follows from the
  noise between seeds. The sensitivity (Wortsman et al. 2023) is the mean over all rates of the loss less the least; a
  rate that diverged counts as the worst that did not.
  """
  if "optim.lr" not in varied:
    return []
  groups: dict[str, list[Row]] = {}
  for cell in cells:
    if "optim.lr" not in cell["overrides"]:
      continue  # which has the config's own
    others = {name: x for name, x in cell["overrides"].items() if name != "optim.lr" and name in varied}
    groups.setdefault(repr(sorted(others.items())), []).append({"others": others, **cell})
  found = []
  for group in groups.values():
    known = sorted((c for c in group if c["loss"] is not None), key=lambda c: c["overrides"]["optim.lr"])
    if len(known) < 3:
      continue
    rates, losses = (np.array(x) for x in zip(*((c["overrides"]["optim.lr"], c["loss"]) for c in known), strict=True))
    at = int(np.argmin(losses))
    row = {"others": group[0]["others"], "best_tried": float(rates[at]), "loss": float(losses[at])}
    diverged = sum(c["loss"] is None and c["diverged"] for c in group)
    lost = np.append(losses, [losses.max()] * diverged) - losses.min()
    row |= {"edge": at in (0, len(rates) - 1), "best": None, "interval90": None, "sensitivity": float(lost.mean())}
    near = slice(at - 1, at + 2)
    x = np.log(rates[near])
    if not row["edge"] and (bend := np.polyfit(x, losses[near], 2))[0] > 0:
      row["best"] = float(np.exp(-bend[1] / (2 * bend[0])))
      if noise is not None:
        error = noise / math.sqrt(max(1, known[at]["finished"]))
        row["interval90"] = _interval(x, losses[near], error)
    found.append(row)
  return found


def _interval(x: np.ndarray, losses: np.ndarray, error: float, draws: int = 1000) -> list[float]:
  """90% of the minima of parabolas through losses that are off by normal errors, within the rates at hand."""
  drawn = losses + error * np.random.default_rng(0).normal(size=(draws, len(x)))
  a, b, _ = np.polyfit(x, drawn.T, 2)
  ends = x[np.argmin(drawn, axis=1)]  # where it bends the other way, an end is the least
  minima = np.clip(np.where(a > 0, -b / (2 * np.where(a > 0, a, 1.0)), ends), x[0], x[-1])
  return [float(value) for value in np.exp(np.quantile(minima, (0.05, 0.95)))]
