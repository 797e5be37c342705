"""Do laws foretell larger runs than they were fitted to, and do intervals hold?

Claim (usual practice): fit Chinchilla's law, and a bootstrap of its parameters says how far to trust its forecasts.
Here: the 240 points of Hoffmann et al. 2022 (Besiroglu et al. 2024) below 1e20, 3e20 and 1e21 FLOPs, asked about
those above; and the runs of Porian et al. 2024 and Gadre et al. 2024, those within a factor of 4 and of 16 of each
set's largest compute hidden.

What came out: the bootstrap alone covers a third of the points and fewer. With the noise of points, and a
discrepancy that grows with distance and is measured on smaller scales, 90% intervals cover as much. A mean of three
laws, weighted by their own errors at such forecasts, is wrong by less than any one of them.

    bigmodel reproduce beyond_the_points
"""

from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.laws import chinchilla, fitting, forecast, points, uncertainty
from bigmodel.laws.forms import LAWS
from bigmodel.laws.reproduce import Result

CUTS = (1e20, 3e20, 1e21)
FACTORS = (4, 16)
DRAWS = 100
Runs = tuple[np.ndarray, np.ndarray, np.ndarray]  # N, D, loss


def reproduce(data: Path) -> list[Result]:
  csv = str(data / "epoch" / "svg_extracted_data.csv")
  known = points.from_csv(csv, "Model Size", None, "Training FLOP", "loss", 5)
  results = []
  for cut in CUTS:
    fit = chinchilla.fit(known[cut >= known.C]).known
    above = known[cut < known.C]
    nothing = forecast.Mixture((fit,), np.ones(1), forecast.Spread(0.0, 0.0, 0))
    alone = nothing.at((above.N, above.D))
    where = f"{len(above)} points above {cut:.0e}"
    results.append(Result(f"coverage at 90% by the bootstrap alone, {where}", None, _covered(alone, above.loss)))
    said = forecast.mixture(fit).at((above.N, above.D))
    results += _said(said, above.loss, f"Chinchilla's law, {where}")
    below = (known.N[cut >= known.C], known.D[cut >= known.C], known.loss[cut >= known.C])
    results += _said(_all(below, (above.N, above.D))["combined"], above.loss, f"combined, {where}")
  return results + _elsewhere(data)


def _said(said: dict, loss: np.ndarray, what: str) -> list[Result]:
  return [
    Result(f"RMSLE, {what}", None, _rmsle(said, loss)),
    Result(f"coverage at 90%, {what}", 0.9, _covered(said, loss), 0.1),
  ]


def _rmsle(said: dict, loss: np.ndarray) -> float:
  return float(np.sqrt(np.mean(np.log(said["predicted"] / loss) ** 2)))


def _covered(said: dict, loss: np.ndarray) -> float:
  return float(np.mean((said["low"] <= loss) & (loss <= said["high"])))


def _all(below: Runs, columns: tuple[np.ndarray, np.ndarray]) -> dict[str, dict]:
  """Forecasts by each law, and by all of them."""
  laws = [LAWS[name] for name in forecast.MIXED]
  fits = [uncertainty.bootstrap(fitting.fit(law, below[:2], below[2]), DRAWS) for law in laws]
  each = {law.name: forecast.mixture(fit).at(columns) for law, fit in zip(laws, fits, strict=True)}
  return each | {"combined": forecast.mixture(*fits).at(columns)}


def _sets(data: Path) -> dict[str, Runs]:
  """Other people's runs: of each training set, schedule and way of counting parameters."""
  found: dict[str, Runs] = {}
  take = lambda own, *names: tuple(own[name].to_numpy().astype(float) for name in names)
  for (name,), own in pl.read_csv(data / "gadre" / "overtraining_runs.csv").group_by("train_dataset"):
    found[f"gadre {name}"] = take(own, "N", "D", "loss_c4_val")
  keys = ["dataset", "hparams", "warmup", "decay", "param_count", "val"]
  for key, own in pl.read_csv(data / "porian" / "isoflop_points.csv").group_by(keys):
    found[f"porian {' '.join(map(str, key))}"] = take(own, "N", "D", "loss")
  return dict(sorted(found.items()))


def _elsewhere(data: Path) -> list[Result]:
  errors: dict[str, list[float]] = {}
  covered: dict[str, list[float]] = {}
  splits = 0
  for N, D, loss in _sets(data).values():
    for factor in FACTORS:
      hidden = (N * D).max() / factor < N * D
      if (~hidden).sum() < forecast.FEWEST or hidden.sum() < 2:
        continue
      splits += 1
      for name, said in _all((N[~hidden], D[~hidden], loss[~hidden]), (N[hidden], D[hidden])).items():
        errors.setdefault(name, []).append(_rmsle(said, loss[hidden]))
        covered.setdefault(name, []).append(_covered(said, loss[hidden]))
  where = f"{splits} splits of other runs"
  return [
    *(
      Result(f"geometric mean of RMSLE, {n}, {where}", None, float(np.exp(np.mean(np.log(e)))))
      for n, e in errors.items()
    ),
    *(Result(f"mean coverage at 90%, {name}, {where}", None, float(np.mean(c))) for name, c in covered.items()),
  ]
