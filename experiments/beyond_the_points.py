"""Do laws forecast larger runs than those they were fitted to, and do their intervals hold?

Claim (usual practice): fit Chinchilla's law; a bootstrap of its parameters says how far to trust its forecasts.

Method: laws are fitted to the points of Hoffmann et al. 2022 (240 points, from Besiroglu et al. 2024) below 1e20, 3e20
and 1e21 FLOPs, and forecast the points above. The same is done for the runs of Porian et al. 2024, of Gadre et al. 2024
and of Bhagia et al. 2024, with the runs within a factor of 4 and of 16 of each set's largest compute hidden. Small
isoFLOP designs, of 5 successive budgets with the 5 sizes nearest to each budget's best, are taken from the runs of
Porian et al. and forecast the runs at 4, 8 and 32 times the largest of the 5 budgets, within a factor of 2 of the best
size there.

Result: 90% intervals of the bootstrap alone cover a third of the points or fewer. Adding the noise of single points,
and a discrepancy that grows with distance, raises this to about 90%. Fits of three laws with different emphases on the
largest runs, weighted by their errors in such forecasts, have less than half the errors of any of the laws fitted once
to all runs alike. Intervals cover less at 32 times the compute of small isoFLOP designs, and in a few sets.

    bigmodel reproduce beyond_the_points
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.laws import fitting, forecast, points, scoring, uncertainty
from bigmodel.laws.forms import LAWS
from bigmodel.laws.law import Law
from bigmodel.laws.points import Points
from bigmodel.laws.reproduce import Result
from bigmodel.laws.scoring import Judged
from bigmodel.laws.source import Source

CUTS = (1e20, 3e20, 1e21)
FACTORS = (4, 16)  # runs within such a factor of the largest compute are hidden
FEWEST = 16  # runs that are left to fit
ALONE = ("chinchilla", "overtraining", "kaplan_nd")  # laws that forecast by themselves, for comparison
DRAWS = 100
LOW = 0.7  # sets whose intervals cover less are listed
BUDGETS = 5  # of a small isoFLOP design, and the sizes of each
BEYOND = (4, 8, 32)  # multiples of its largest budget
OLMO_LOSS = "eval/c4_en-validation/CrossEntropyLoss"


def reproduce(data: Path) -> list[Result]:
  sets = read_sets(data)
  results = chinchilla_points(sets["epoch"])
  results += stated({where: judge(fitted, hidden) for where, fitted, hidden in splits(sets)})
  for name in ALONE:
    each = [judge(fitted, hidden, [LAWS[name]]) for _, fitted, hidden in splits(sets)]
    results += _over_splits(f"{name} alone", each)
  return results + isoflop_stated([design for name, runs in sets.items() for design in isoflop_designs(name, runs)])


def judge(fitted: Points, hidden: Points, laws: Sequence[Law] = ()) -> Judged:
  """Forecasts of the hidden runs, by the forecaster with its usual laws or with these."""
  predict = forecast.fit(fitted, laws, bootstraps=DRAWS).predict
  return scoring.judge(predict, hidden.N, hidden.D, hidden.C, hidden.loss)


def chinchilla_points(known: Points) -> list[Result]:
  results = []
  for cut in CUTS:
    below, above = known[cut >= known.C], known[cut < known.C]
    where = f"{len(above)} points above {cut:.0e}"
    fit = uncertainty.bootstrap(fitting.fit(LAWS["chinchilla"], (below.N, below.D), below.loss))
    drawn = np.log(fit.predict(above.N, above.D, theta=fit.draws)).std(axis=0)
    errors = np.abs(np.log(above.loss / fit.predict(above.N, above.D)))
    results.append(
      Result(f"coverage at 90% by the bootstrap alone, {where}", None, float(np.mean(errors < 1.6449 * drawn)))
    )
    for what, laws in (("Chinchilla's law", [LAWS["chinchilla"]]), ("combined", ())):
      judged = judge(below, above, laws)
      results.append(Result(f"RMSLE, {what}, {where}", None, judged.rmsle))
      results.append(Result(f"coverage at 90%, {what}, {where}", 0.9, judged.coverage(), 0.1))
  return results


def read_sets(data: Path) -> dict[str, Points]:
  """Other people's runs: of each paper, training set, schedule and way of counting parameters."""
  found: dict[str, Points] = {}

  def take(table: pl.DataFrame, loss: str) -> Points:
    N, D, losses = (table[name].to_numpy().astype(float) for name in ("N", "D", loss))
    return Points(N, D, 6 * N * D, losses)

  csv = str(data / "epoch" / "svg_extracted_data.csv")
  found["epoch"] = points.from_csv(Source(csv, {"N": "Model Size", "C": "Training FLOP"}, drop_largest=5))
  for (name,), runs in pl.read_csv(data / "gadre" / "overtraining_runs.csv").group_by("train_dataset"):
    found[f"gadre {name}"] = take(runs, "loss_c4_val")
  keys = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
  for key, runs in pl.read_csv(data / "porian" / "isoflop_points.csv").group_by(keys):
    found[f"porian {' '.join(map(str, key))}"] = take(runs, "loss")
  evaluations = pl.read_csv(data / "olmo_ladder" / "ladder_last5.csv")
  last = evaluations.group_by("run", maintain_order=True).agg(
    pl.col("N").first(), pl.col("D_tokens").max().alias("D"), pl.col(OLMO_LOSS).mean().alias("loss")
  )
  found["olmo_ladder"] = take(last, "loss")
  return dict(sorted(found.items()))


def splits(sets: dict[str, Points]) -> Iterator[tuple[str, Points, Points]]:
  """The name of each split of a set, the runs to fit and the hidden ones; splits that leave too few are skipped."""
  for name, runs in sets.items():
    before = -1
    for factor in FACTORS:
      hidden = runs.C.max() / factor < runs.C
      # Of a ladder with a gap both factors may hide the same runs.
      if (~hidden).sum() < FEWEST or hidden.sum() < 2 or hidden.sum() == before:
        continue
      before = hidden.sum()
      print(f"beyond_the_points: {name}, factor {factor}", file=sys.stderr, flush=True)
      yield f"{name}, factor {factor}", runs[~hidden], runs[hidden]


def stated(judged: dict[str, Judged]) -> list[Result]:
  """Every split, the means over splits, and the sets whose intervals cover too little."""
  results = []
  covered: dict[str, list[float]] = {}
  for where, split in judged.items():
    covered.setdefault(where.rpartition(",")[0], []).append(split.coverage())
    results += [
      Result(f"RMSLE, {where}", None, split.rmsle),
      Result(f"coverage at 90%, {where}", None, split.coverage()),
      Result(f"interval score at 90%, {where}", None, float(np.mean(split.score))),
      Result(f"mean width at 90%, {where}", None, float(np.mean(split.width))),
    ]
  results += _over_splits("combined", list(judged.values()))
  means = {name: float(np.mean(shares)) for name, shares in covered.items()}
  return results + [
    Result(f"set that 90% intervals cover less than {LOW:.0%}: {name}", None, mean)
    for name, mean in means.items()
    if mean < LOW
  ]


def _over_splits(what: str, judged: Sequence[Judged]) -> list[Result]:
  where = f"{what}, {len(judged)} splits"
  scores = [float(np.mean(split.score)) for split in judged]
  return [
    Result(f"geometric mean of RMSLE, {where}", None, _geometric_mean([split.rmsle for split in judged])),
    Result(f"mean coverage at 90%, {where}", 0.9, float(np.mean([split.coverage() for split in judged])), 0.03),
    Result(f"geometric mean of interval scores at 90%, {where}", None, _geometric_mean(scores)),
    Result(f"mean of interval scores at 90%, {where}", None, float(np.mean(scores))),
    Result(f"mean width at 90%, {where}", None, float(np.mean([np.mean(split.width) for split in judged]))),
  ]


def _geometric_mean(values: Sequence[float]) -> float:
  return float(np.exp(np.mean(np.log(values))))


def isoflop_designs(name: str, runs: Points) -> Iterator[tuple[Points, Points]]:
  """Small isoFLOP designs of a set of Porian et al., and the runs beyond that they forecast."""
  if not name.startswith("porian"):
    return
  budget, aside = runs.budgets(), np.zeros(len(runs))  # in ln N from the best size of the same budget
  nearest = []
  for each in np.unique(budget):
    (rows,) = np.nonzero(budget == each)
    aside[rows] = np.abs(np.log(runs.N[rows] / runs.N[rows[np.argmin(runs.loss[rows])]]))
    nearest.append(rows[np.argsort(aside[rows], kind="stable")[:BUDGETS]])
  for first in range(len(nearest) - BUDGETS):
    chosen = np.concatenate(nearest[first : first + BUDGETS])
    multiples = budget / budget[chosen].max()
    beyond = np.any([np.abs(multiples / multiple - 1) < 0.1 for multiple in BEYOND], axis=0)
    if beyond.any():
      yield runs[chosen], runs[beyond & (aside <= np.log(2))]


def isoflop_stated(designs: Sequence[tuple[Points, Points]]) -> list[Result]:
  """By distance, with each design counted as one."""
  judged: dict[int, list[Judged]] = {}
  for i, (fitted, hidden) in enumerate(designs):
    if i % 10 == 0:
      print(f"beyond_the_points: isoFLOP design {i} of {len(designs)}", file=sys.stderr, flush=True)
    each = judge(fitted, hidden)
    multiples = hidden.C / fitted.C.max()
    for multiple in BEYOND:
      there = np.abs(multiples / multiple - 1) < 0.2
      if there.any():
        judged.setdefault(multiple, []).append(each[there])
  return [
    result
    for multiple, each in sorted(judged.items())
    for result in _over_splits(f"{BUDGETS} budgets of {BUDGETS} sizes, {multiple}x", each)
  ]
