"""Cross-validation: means over folds, with intervals that account for overlapping training sets."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from scipy import special

from bigmodel.data import HELD_OUT
from bigmodel.declarations import Value
from bigmodel.record import Record
from bigmodel.study.plan import PlannedRun


class Measure(msgspec.Struct, frozen=True):
  """The mean of a loss or metric over folds and repetitions, with its 90% interval."""

  mean: float
  interval90: tuple[float, float]


class Cell(msgspec.Struct, frozen=True):
  """One config that ran on several folds or repetitions."""

  overrides: dict[str, Value]
  runs: int
  params_total: float  # this and the following fields are means over the runs
  tokens: float
  flops_6nd: float
  measures: dict[str, Measure]


def cells(planned: Sequence[PlannedRun], records: Sequence[Record], config: Mapping[str, object]) -> tuple[Cell, ...]:
  """Returns each config that ran on several folds or repetitions; `config` is the study's, flattened."""
  by_id = {one.run_id: one for one in records if one.finished}
  settings: dict[str, dict[str, Value]] = {}
  groups: dict[str, list[Record]] = {}
  for run in planned:
    if not any(_selects_fold(name) for name in run.overrides) or run.run_id not in by_id:
      continue
    shared = {name: value for name, value in run.overrides.items() if not _selects_fold(name)}
    key = repr(sorted(shared.items()))
    settings[key] = shared
    groups.setdefault(key, []).append(by_id[run.run_id])
  ratio = overlap(config)
  return tuple(_cell(settings[key], runs, ratio) for key, runs in groups.items() if len(runs) > 1)


def _selects_fold(name: str) -> bool:
  return name.removeprefix("data.") in HELD_OUT


def _cell(overrides: dict[str, Value], runs: Sequence[Record], ratio: float) -> Cell:
  return Cell(
    overrides=overrides,
    runs=len(runs),
    params_total=float(np.mean([one.params_total for one in runs])),
    tokens=float(np.mean([one.tokens for one in runs])),
    flops_6nd=float(np.mean([one.flops_6nd for one in runs])),
    measures=measures(runs, ratio),
  )


def overlap(config: Mapping[str, object]) -> float:
  """Returns the ratio of held-out to training examples, a mean over folds; `config` is flattened."""
  folds = config.get("data.folds", 0)
  assert isinstance(folds, int)
  if config.get("data.split") == "time" or config.get("data.window"):  # trains on 1, 2, ... periods
    return sum(1 / (k + 1) for k in range(folds)) / folds
  return 1 / (folds - 1) if folds > 1 else 0.0


def measures(runs: Sequence[Record], ratio: float) -> dict[str, Measure]:
  """Returns the loss and each metric that all runs have, over the runs; `ratio` is their `overlap`."""
  columns = {"loss_eval": [one.loss for one in runs]}
  names = set.intersection(*(set(one.metrics) for one in runs))
  columns |= {name: [one.metrics[name] for one in runs] for name in sorted(names)}
  return {name: measure(values, ratio) for name, values in columns.items()}


def measure(values: Sequence[float], ratio: float, level: float = 0.9) -> Measure:
  """Returns the mean over folds and repetitions, with its interval.

  Training sets overlap, so the values are not independent: the variance of the mean has the factor 1/n + `ratio` (test
  over training examples) instead of 1/n (Nadeau and Bengio 2003, section 3).
  """
  x = np.asarray(values, float)
  n, mean = len(x), float(np.mean(x))
  half = float(special.stdtrit(n - 1, (1 + level) / 2)) * math.sqrt((1 / n + ratio) * x.var(ddof=1))
  return Measure(mean, (mean - half, mean + half))
