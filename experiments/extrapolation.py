"""Which estimator extrapolates a learning curve best, and whose intervals hold?

Claim (Alabdulmohsin et al. 2022; Caballero et al. 2023): forms that bend (M4, broken power laws) extrapolate better
than power laws.

Method: 56 curves of language and vision, each fitted on its training part and scored on the rest by RMSLE, compared
with the errors of M1 to M4 and of a one-break broken power law (BNSL1). Intervals are calibrated on the other 55
curves. Points are weighted so that each curve counts as one.

Result: a robust mean of two simple forms that gives more weight to later points (`bigmodel.laws.curves`) has smaller
errors than all five, and its intervals hold. How the points are weighted matters more than the form.

    bigmodel reproduce extrapolation
"""

from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.laws import curves, fitting, uncertainty
from bigmodel.laws.forms import LAWS
from bigmodel.laws.reproduce import Result

FILES = ("language.csv", "vision.csv")
THEIRS = ("M1", "M2", "M3", "M4", "BNSL1")


def read(data: Path) -> tuple[dict[tuple[str, str, str], tuple], pl.DataFrame]:
  """`({curve: (x, y, hidden x, hidden y)}, their errors)`; no errors where only the curves are there."""
  folder = data / "revisiting"
  table = pl.concat([pl.read_csv(folder / name, schema_overrides={"Model": pl.String}) for name in FILES])
  found = {}
  for key, own in table.group_by(["Domain", "Task", "Model"], maintain_order=True):
    parts = [own.filter(pl.col("Training") == flag) for flag in (1, 0)]
    found[tuple(map(str, key))] = tuple(
      column for part in parts for column in curves.tidy(part["Seen Examples"].to_numpy(), part["Loss"].to_numpy())
    )
  path = folder / "baseline_rmsle.csv"
  return found, pl.read_csv(path, schema_overrides={"model": pl.String}) if path.exists() else pl.DataFrame()


def rmsle(curve: curves.Curve, x: np.ndarray, y: np.ndarray) -> float:
  return float(np.sqrt(np.mean((curve.logs(x)[0] - np.log(y)) ** 2)))


def interval_score(y: np.ndarray, low: np.ndarray, high: np.ndarray, level: float) -> float:
  """Gneiting and Raftery 2007, in logs: width, and 2 / alpha times how far the truth is outside."""
  y, low, high = np.log(y), np.log(low), np.log(high)
  outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
  return float(np.mean(high - low + 2 / (1 - level) * outside))


def broken(found: dict[tuple[str, str, str], tuple], draws: int = 100) -> list[Result]:
  """A one-break broken power law with a residual bootstrap and the noise of points: what is usual."""
  law, squares = LAWS["bnsl1"], fitting.Loss("squares", 1.0)
  grid = {"a": (1.0,), "b": (1.0,), "c0": (1e-3, 0.2), "c1": (0.3, 0.8), "d1": (-5.0, -3.0, -1.0), "f1": (0.5, 2.0)}
  mesh = np.meshgrid(*(grid[name] for name in law.names), indexing="ij")
  starts = law.theta({name: values.ravel() for name, values in zip(law.names, mesh, strict=True)})
  units = {key: ((x / x.max(),), y / y.max()) for key, (x, y, _, _) in found.items()}
  sets = fitting.stack([(columns, y, None) for columns, y in units.values()])
  thetas, values, reached = fitting.best(law, sets, squares, starts)
  errors, covered, score = [], [], []
  for (key, (columns, own)), theta, value, count in zip(units.items(), thetas, values, reached, strict=True):
    x, y, x_hidden, y_hidden = found[key]
    none = np.empty((0, len(theta)))
    fit = fitting.Fit(law, columns, own, np.ones(len(own)), squares, theta, value, len(starts), int(count), none)
    fit = uncertainty.bootstrap(fit, draws, kind="residual")
    at = x_hidden / x.max()
    errors.append(np.sqrt(np.mean(np.log(fit.predict(at) * y.max() / y_hidden) ** 2)))
    said = np.log(fit.predict(at, theta=fit.draws) * y.max())
    said = said[np.isfinite(said).all(axis=1)]
    said = said + np.random.default_rng(0).choice(fit.residuals(), size=said.shape)
    low, high = np.exp(np.quantile(said, [0.05, 0.95], axis=0))
    covered.append(np.mean((low <= y_hidden) & (y_hidden <= high)))
    score.append(interval_score(y_hidden, low, high, 0.9))
  return [
    Result("mean RMSLE, BNSL1 fitted here", 0.03018, float(np.mean(errors)), 1e-3),
    Result("median RMSLE, BNSL1 fitted here", 0.01731, float(np.median(errors)), 5e-4),
    Result("coverage of 90% intervals, BNSL1 with a residual bootstrap", None, float(np.mean(covered))),
    Result("interval score at 90%, BNSL1 with a residual bootstrap", None, float(np.mean(score))),
  ]


def reproduce(data: Path) -> list[Result]:
  found, baseline = read(data)
  fitted = {key: curve for key, curve in zip(found, curves.fit({str(k): v[:2] for k, v in found.items()}), strict=True)}
  ours = {key: rmsle(curve, *found[key][2:]) for key, curve in fitted.items()}
  results = []
  order = [(row["domain"], row["task"], row["model"]) for row in baseline.iter_rows(named=True)] or list(found)
  domains = sorted({key[0] for key in found})
  for name in THEIRS if len(baseline) else ():
    results.append(Result(f"mean RMSLE of {name}", None, float(np.mean(baseline[name].to_numpy()))))
    results.append(Result(f"median RMSLE of {name}", None, float(np.median(baseline[name].to_numpy()))))
  results.append(Result("mean RMSLE, ours", None, float(np.mean(list(ours.values())))))
  results.append(Result("median RMSLE, ours", None, float(np.median(list(ours.values())))))
  for domain in domains:
    mine = np.array([ours[key] for key in order if key[0] == domain])
    results.append(Result(f"mean RMSLE in {domain}, ours", None, float(mine.mean())))
    if baseline.is_empty():
      continue
    m4 = baseline.filter(pl.col("domain") == domain)["M4"].to_numpy()
    results.append(Result(f"mean RMSLE in {domain}, M4", None, float(m4.mean())))
    noise = float(np.std(mine - m4, ddof=1) / np.sqrt(len(mine)))
    results.append(Result(f"standard error of the difference in {domain}", None, noise))
  scored = {key: curves.scores(curve, *found[key][2:]) for key, curve in fitted.items()}
  covered = {q: [] for q in curves.LEVELS}
  by_ratio: dict[str, list[float]] = {}
  score90 = []
  for key, curve in fitted.items():
    known = curves.multiples([own for other, own in scored.items() if other != key])
    x, y = found[key][2:]
    said = curve.predict(x, known).intervals
    for q, (low, high) in said.items():
      covered[q].append(np.mean((low <= y) & (y <= high)))
    low, high = said[0.9]
    score90.append(interval_score(y, low, high, 0.9))
    inside = (low <= y) & (y <= high)
    for label, from_, to in (("up to 1.25", 0, 1.25), ("1.25 to 1.6", 1.25, 1.6), ("beyond 1.6", 1.6, np.inf)):
      there = (x / curve.x.max() > from_) & (x / curve.x.max() <= to)
      if there.any():
        by_ratio.setdefault(label, []).append(float(inside[there].mean()))
  for q, shares in covered.items():
    results.append(Result(f"coverage of {q:.0%} intervals", q, float(np.mean(shares)), 0.05))
  for label, shares in by_ratio.items():
    results.append(Result(f"coverage of 90% intervals, {label} times the scale", None, float(np.mean(shares))))
  results.append(Result("interval score at 90%, in logs", None, float(np.mean(score90))))
  for q, multiple in curves.multiples(list(scored.values())).items():
    results.append(Result(f"multiple that covers {q:.0%}", curves.BENCHMARK[q], multiple, 0.05 * multiple))
  return [*results, *broken(found)]
