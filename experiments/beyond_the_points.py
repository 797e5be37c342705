"""Do laws forecast larger runs than those they were fitted to, and do their intervals hold?

Claim (usual practice): fit Chinchilla's law; a bootstrap of its parameters says how far to trust its forecasts.

Method: laws are fitted to the points of Hoffmann et al. 2022 (240 points, from Besiroglu et al. 2024) below 1e20, 3e20
and 1e21 FLOPs, and forecast the points above. The same is done for the runs of Porian et al. 2024 and Gadre et al.
2024, with the runs within a factor of 4 and of 16 of each set's largest compute hidden.

Result: 90% intervals of the bootstrap alone cover a third of the points or fewer. Adding the noise of single points,
and a discrepancy that grows with distance and is measured on smaller scales, raises this to about 90%. A mean of three
laws, weighted by their errors in such forecasts, has smaller errors than any of the three.

    bigmodel reproduce beyond_the_points
"""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.laws import forecast, points
from bigmodel.laws.forms import LAWS
from bigmodel.laws.points import Points
from bigmodel.laws.reproduce import Result
from bigmodel.laws.source import Source

CUTS = (1e20, 3e20, 1e21)
FACTORS = (4, 16)
DRAWS = 100
QUANTILES = (0.1, 0.5, 0.9)


def reproduce(data: Path) -> list[Result]:
  csv = str(data / "epoch" / "svg_extracted_data.csv")
  known = points.from_csv(Source(csv, {"N": "Model Size", "C": "Training FLOP"}, drop_largest=5))
  results = []
  for cut in CUTS:
    below, above = known[cut >= known.C], known[cut < known.C]
    chinchilla = forecast.fit(below, [LAWS["chinchilla"]])
    nothing = dataclasses.replace(chinchilla, spread=forecast.Spread(0.0, 0.0, 0))
    where = f"{len(above)} points above {cut:.0e}"
    alone = _covered(_predict(nothing, above), above.loss)
    results.append(Result(f"coverage at 90% by the bootstrap alone, {where}", None, alone))
    results += _said(_predict(chinchilla, above), above.loss, f"Chinchilla's law, {where}")
    combined = _predict(forecast.fit(below, bootstraps=DRAWS), above)
    results += _said(combined, above.loss, f"combined, {where}")
  return results + _elsewhere(data)


def _predict(forecaster: forecast.Forecaster, runs: Points) -> forecast.Prediction:
  return forecaster.predict(runs.N, runs.D, runs.C)


def _said(said: forecast.Prediction, loss: np.ndarray, what: str) -> list[Result]:
  return [
    Result(f"RMSLE, {what}", None, _rmsle(said, loss)),
    Result(f"coverage at 90%, {what}", 0.9, _covered(said, loss), 0.1),
  ]


def _rmsle(said: forecast.Prediction, loss: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.log(said.predicted / loss) ** 2)))


def _covered(said: forecast.Prediction, loss: np.ndarray) -> float:
  return float(np.mean((said.low <= loss) & (loss <= said.high)))


def _all(combined: forecast.Forecaster, above: Points) -> dict[str, forecast.Prediction]:
  """Forecasts by each law, and by all of them."""
  each = {fit.law.name: _predict(forecast.combine(combined.points, [fit]), above) for fit in combined.fits}
  return each | {"combined": _predict(combined, above)}


def _sets(data: Path) -> dict[str, Points]:
  """Other people's runs: of each training set, schedule and way of counting parameters."""
  found: dict[str, Points] = {}

  def take(table: pl.DataFrame, loss: str) -> Points:
    N, D, losses = (table[name].to_numpy().astype(float) for name in ("N", "D", loss))
    return Points(N, D, 6 * N * D, losses)

  for (name,), own in pl.read_csv(data / "gadre" / "overtraining_runs.csv").group_by("train_dataset"):
    found[f"gadre {name}"] = take(own, "loss_c4_val")
  keys = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
  for key, own in pl.read_csv(data / "porian" / "isoflop_points.csv").group_by(keys):
    found[f"porian {' '.join(map(str, key))}"] = take(own, "loss")
  return dict(sorted(found.items()))


def _elsewhere(data: Path) -> list[Result]:
  errors: dict[str, list[float]] = {}
  covered: dict[str, list[float]] = {}
  discrepancies: list[float] = []
  for runs in _sets(data).values():
    for factor in FACTORS:
      hidden = runs.C.max() / factor < runs.C
      if (~hidden).sum() < forecast.FEWEST or hidden.sum() < 2:
        continue
      combined = forecast.fit(runs[~hidden], bootstraps=DRAWS)
      if combined.spread.origins:
        discrepancies.append(combined.spread.discrepancy)
      for name, said in _all(combined, runs[hidden]).items():
        errors.setdefault(name, []).append(_rmsle(said, runs.loss[hidden]))
        covered.setdefault(name, []).append(_covered(said, runs.loss[hidden]))
  where = f"{len(errors['combined'])} splits of other runs"
  measured = f"{len(discrepancies)} splits of other runs"
  return [
    *(
      Result(f"geometric mean of RMSLE, {n}, {where}", None, float(np.exp(np.mean(np.log(e)))))
      for n, e in errors.items()
    ),
    *(Result(f"mean coverage at 90%, {name}, {where}", None, float(np.mean(c))) for name, c in covered.items()),
    *(
      Result(f"discrepancy for each unit of ln C, {share:.0%} quantile of {measured}", None, value)
      for share, value in zip(QUANTILES, np.quantile(discrepancies, QUANTILES).tolist(), strict=True)
    ),
  ]
