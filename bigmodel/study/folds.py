"""Cross-validation: runs of a study that differ in what they hold out, as means with intervals that respect it."""

import math
from typing import Any

import numpy as np
from scipy import special

from bigmodel.data import HELD_OUT

Row = dict[str, Any]


def cells(planned: list[Row], records: list[Row], config: Row) -> list[Row]:
  """One row for each config that was run on several folds or repetitions: means and 90% intervals."""
  by_id = {one["run_id"]: one for one in records if one["status"] == "finished"}
  groups: dict[str, list[Row]] = {}
  shared: dict[str, Row] = {}
  for row in planned:
    if not any(name.removeprefix("data.") in HELD_OUT for name in row["overrides"]) or row["run_id"] not in by_id:
      continue
    same = {name: x for name, x in row["overrides"].items() if name.removeprefix("data.") not in HELD_OUT}
    key = repr(sorted(same.items()))
    groups.setdefault(key, []).append(by_id[row["run_id"]])
    shared[key] = same
  return [
    {"overrides": shared[key], "runs": len(runs), **_common(runs), "measures": measures(runs, overlap(config))}
    for key, runs in groups.items()
    if len(runs) > 1
  ]


def _common(runs: list[Row]) -> Row:
  return {name: float(np.mean([one[name] for one in runs])) for name in ("params_total", "tokens", "flops_6nd")}


def overlap(config: Row) -> float:
  """Held-out over training examples of a fold, as the mean over folds; `config` has flat names."""
  folds = config.get("data.folds", 0)
  if config.get("data.split") == "time" or config.get("data.window"):  # after 1 to `folds` periods comes one
    return sum(1 / (k + 1) for k in range(folds)) / folds
  return 1 / (folds - 1) if folds > 1 else 0.0


def measures(runs: list[Row], ratio: float) -> dict[str, Row]:
  """Of the loss and of each metric that all runs have: the mean over runs and its 90% interval."""
  columns = {"loss_eval": [one["loss_eval"] for one in runs]}
  names = set.intersection(*(set(one["metrics"]) for one in runs))
  columns |= {name: [one["metrics"][name] for one in runs] for name in sorted(names)}
  found = {name: interval(values, ratio) for name, values in columns.items()}
  return {name: {"mean": mean, "interval90": pair} for name, (mean, pair) in found.items()}


def interval(values: list[float], ratio: float, level: float = 0.9) -> tuple[float, list[float]]:
  """`(mean, interval)` over folds and repetitions.

  Training sets overlap, so the variance of the mean is not that of independent values:
  1/n + test/train, which is `ratio`, in place of 1/n (Nadeau and Bengio 2003, section 3).
  """
  x = np.asarray(values, float)
  n = len(x)
  half = special.stdtrit(n - 1, (1 + level) / 2) * math.sqrt((1 / n + ratio) * x.var(ddof=1))
  return float(x.mean()), [float(x.mean() - half), float(x.mean() + half)]
