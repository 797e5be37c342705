"""Summarizes records or points: laws, optima, noise floor, learning-rate scans and the forecast of a target."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import UNSET, structs

from bigmodel import user_files
from bigmodel.accounting import params_of
from bigmodel.errors import UserError
from bigmodel.files import sha256_text
from bigmodel.laws import chinchilla, fitting, forecast, isoflop, measured, optimum, uncertainty
from bigmodel.laws.facts import (
  Backtest,
  BudgetProfile,
  Fits,
  Forecast,
  LawFit,
  NoiseFloor,
  Optimum,
  Params,
  RateScan,
  TableFits,
  Target,
  finite,
)
from bigmodel.laws.law import Law
from bigmodel.laws.points import Points
from bigmodel.record import Record

FAR = 10.0  # an optimum farther than this factor from the sizes that were run is marked as not inside
MANY, FEW = 10, 5  # with more than `MANY` budgets, optima are computed at `FEW` of their range
VERSION = 8  # of the fits; a new version fits again


def inputs_sha256(records: Sequence[Record], laws: Sequence[str], convention: str) -> str:
  """The identity of the inputs of a fit: results of records, and names and files of laws."""
  results = sorted(record.result_sha256 for record in records)
  files = [Path(name.rpartition(":")[0]).read_text() for name in laws if user_files.is_reference(name)]
  return sha256_text(f"{VERSION} {list(laws)} {files or ''} {convention} {results}")


def fit(records: Sequence[Record], laws: Sequence[str], convention: str, target_flops: float | None) -> Fits:
  """Fits every law to the finished records; `optimum` has those of each budget and of the target."""
  runs = measured.runs_of_records(records, convention)
  points = runs.points
  fitted: list[LawFit] = []
  optima: list[Optimum] = []
  used = forecast.find_laws([name for name in laws if name != "isoflop"], "get_study: laws")
  budgets = _budgets(points) if "chinchilla" in laws else []
  if target_flops and list(laws) != ["isoflop"]:
    budgets = sorted({*budgets, target_flops})
  forecaster = forecast.fit(points, used) if budgets else None
  if "chinchilla" in laws:
    law = chinchilla_law(chinchilla.fit(points), forecaster)
    fitted.append(structs.replace(law, other_conventions=_other_conventions(records, convention)))
  if forecaster:
    for C in budgets:
      exists = optimum.best(forecaster, C).inside
      optima.append(optimum_of(forecaster, C) if exists else _like_the_best_run(forecaster, C))
  for law in used:
    if law.name != "chinchilla":
      law_fit = uncertainty.bootstrap(fitting.fit(law, [getattr(points, name) for name in law.columns], points.loss))
      fitted.append(structs.replace(law_of(law_fit), convention=convention))
  if "isoflop" in laws:
    isoflop_fit = isoflop.fit(points)
    fitted.append(isoflop_law(isoflop_fit, convention))
    optima += isoflop_optima(isoflop_fit)
  return finite(Fits(laws=fitted, optimum=optima, points=len(points), convention=convention, warnings=runs.notes))


def _budgets(points: Points) -> list[float]:
  """The budgets at which optima are computed: those of the points, or a few of their range if there are many."""
  budgets = np.unique(points.budgets())
  if len(budgets) > MANY:  # the design has no budgets, as an isoFLOP design has
    budgets = np.geomspace(budgets[0], budgets[-1], FEW)
  return budgets.tolist()


def fit_points(
  points: Points, at: Sequence[float] = (), others: Mapping[str, Points] | None = None, laws: Sequence[Law] = ()
) -> TableFits:
  """Chinchilla's law of points, and the optimum at the budgets `at` by the forecaster of `laws` (or of its usual ones).

  `others` are the same runs with parameters counted otherwise, by the names of their columns.
  """
  for C in at:
    if not C > 0:
      raise UserError(f"--at: {C:g} is not a positive number of FLOPs")
  fit_ = chinchilla.fit(points)
  again: dict[str, Params] = {}
  for name, other in (others or {}).items():
    again[name] = {**chinchilla.fit(other, bootstraps=0).params}
  forecaster = forecast.fit(points, laws) if at else None
  law = structs.replace(chinchilla_law(fit_, forecaster), other_conventions=again or UNSET)
  return finite(TableFits(laws=[law], optimum=[optimum_of(forecaster, C) for C in at] if forecaster else []))


def fit_profiles(points: Points) -> TableFits:
  """Parabolas of each budget of points, and their minima; raises `UserError` if no budget has enough points."""
  fit_ = isoflop.fit(points)
  if not fit_.profiles:
    raise UserError(
      f"law isoflop: a parabola needs {isoflop.LEAST} points of one budget; no budget of these {len(points)} has them"
    )
  return finite(TableFits(laws=[isoflop_law(fit_, points.convention)], optimum=isoflop_optima(fit_)))


def chinchilla_law(fit_: chinchilla.Fit, forecaster: forecast.Forecaster | None = None) -> LawFit:
  """Chinchilla's law, with what the forecaster expects of larger runs."""
  return LawFit(
    name="chinchilla",
    convention=fit_.points.convention,
    params={**fit_.params},
    intervals={**fit_.intervals()},
    objective=fit_.base.objective,
    flops_per_nd=fit_.flops_per_nd,
    points=len(fit_.points),
    payoff=optimum.payoff(forecaster) if forecaster else UNSET,
    starts_at_optimum=(fit_.base.reached, fit_.base.starts),
    r2_largest_budget_left_out=chinchilla.r2_left_out(fit_.points),
  )


def law_of(fit_: fitting.Fit) -> LawFit:
  """The parameters of a fit with draws, their intervals, and how well it converged."""
  return LawFit(
    name=fit_.law.name,
    source=fit_.law.source,
    params={**fit_.params},
    intervals={**fit_.intervals()},
    objective=fit_.objective,
    points=len(fit_.loss),
    starts_at_optimum=(fit_.reached, fit_.starts),
  )


def table_law(law: Law, columns: Sequence[np.ndarray], loss: np.ndarray, weights: np.ndarray | None = None) -> LawFit:
  """A law fitted to columns, with its ridges and a backtest."""
  how = fitting.Loss("squares", 1.0) if law.plain else fitting.Loss()
  fit_ = uncertainty.bootstrap(fitting.fit(law, columns, loss, weights, how))
  facts = structs.replace(law_of(fit_), ridges=uncertainty.ridges(fit_), backtest=backtest(fit_))
  return finite(facts)


def backtest(fit_: fitting.Fit, factor: float = 4.0) -> Backtest | None:
  """Errors of the law on the points within `factor` of the largest scale, fitted without them.

  None if the rest of the points is too few to fit the law, and for plain laws.
  """
  law, columns = fit_.law, fit_.columns
  scale = np.prod([x for x in columns if len(np.unique(x)) > 1], axis=0)
  hidden = scale > scale.max() / factor
  if (~hidden).sum() <= len(law.names) + 1 or law.plain:
    return None
  if any(len(np.unique(x[~hidden])) == 1 for x in columns):
    return None
  below = fitting.fit(law, [x[~hidden] for x in columns], fit_.loss[~hidden], fit_.weights[~hidden], fit_.how)
  error = np.log(fit_.loss[hidden] / below.predict(*(x[hidden] for x in columns)))
  return Backtest(int(hidden.sum()), float(np.sqrt(np.mean(error**2))), float(np.mean(error)))


def optimum_of(forecaster: forecast.Forecaster, C: float) -> Optimum:
  """Compute-optimal N, D and loss at C, with 90% intervals."""
  size = optimum.at(forecaster, C)
  sizes = forecaster.points.N
  nowhere = (None, None)
  return Optimum(
    law="forecast",
    C=C,
    N=size.N,
    D=size.D,
    N_interval90=size.N_interval90 or nowhere,
    D_interval90=size.D_interval90 or nowhere,
    loss=size.loss,
    inside=bool(sizes.min() / FAR < size.N < sizes.max() * FAR),
  )


def _like_the_best_run(forecaster: forecast.Forecaster, C: float) -> Optimum:
  """A size for C where the forecast has no best one, as by a law of C alone: N and D grow alike from the best run's."""
  points = forecaster.points
  best = int(np.argmin(points.loss))
  times = math.sqrt(C / float(points.C[best]))
  N, D = float(points.N[best]) * times, float(points.D[best]) * times
  loss = float(np.exp(forecaster.log_loss([N], [D], [C])[0]))
  nowhere = (None, None)
  name = "best run, enlarged: no size is the best by these laws"
  return Optimum(law=name, C=C, N=N, D=D, N_interval90=nowhere, D_interval90=nowhere, loss=loss)


def isoflop_law(fit_: isoflop.Fit, convention: str) -> LawFit:
  """The exponents of the minima, and the parabola of each budget."""
  return LawFit(
    name="isoflop",
    convention=convention,
    params={**fit_.params},
    intervals={**fit_.intervals},
    points=fit_.points,
    caution=fit_.caution,
    profiles=[BudgetProfile(each.C, each.coefficients, each.inside) for each in fit_.profiles],
  )


def isoflop_optima(fit_: isoflop.Fit) -> list[Optimum]:
  """The minimum of every budget that has one."""
  names = ("C", "N", "D", "N_interval90", "D_interval90", "loss", "inside")
  return [
    Optimum(law="isoflop", **{name: getattr(profile, name) for name in names})
    for profile in fit_.profiles
    if math.isfinite(profile.N)
  ]


def _other_conventions(records: Sequence[Record], convention: str) -> dict[str, Params]:
  """The law with parameters counted the other way; its fit does not use FLOPs."""
  other = "flops_6nd" if params_of(convention) == "params_non_embedding" else "flops_6nd_non_embedding"
  fit_ = chinchilla.fit(measured.runs_of_records(records, other).points, bootstraps=0)
  return {params_of(other): {**fit_.params}}


def noise_floor(records: Sequence[Record]) -> NoiseFloor | None:
  """The spread of the loss between runs that differ in their seeds only; None without two finished runs."""
  finished = [record for record in records if record.finished]
  if len(finished) < 2:
    return None
  losses = [record.loss for record in finished]
  std = float(np.std(losses, ddof=1))
  return NoiseFloor(std, losses, len(losses), finished[0].params_total, finished[0].tokens)


def scan(records: Sequence[Record], rule: float) -> RateScan:
  """A learning-rate scan: losses by rate, the best rate, and whether it lies at an edge of the scan."""
  rows = sorted((record.learning_rate, record.loss) for record in records if record.finished)
  rates = [rate for rate, _ in rows]
  best = min(rows, key=lambda row: row[1])[0] if rows else math.nan
  facts = RateScan(
    N=records[0].params_total,
    D=max(record.tokens for record in records),
    rates=rates,
    losses=[loss for _, loss in rows],
    rule=rule,
    best=best,
    at_edge=bool(rows) and best in (rates[0], rates[-1]),
    rule_excess=dict(rows).get(rule, math.nan) - min((loss for _, loss in rows), default=math.nan),
    without_loss=len(records) - len(rows),
  )
  return finite(facts)


def optimum_at(optima: Sequence[Optimum], C: float) -> float:
  """The compute-optimal N at C: by the isoFLOP minima if two are inside, and otherwise by the forecaster."""
  inside = [each for each in optima if each.law == "isoflop" and each.inside is True]
  if len(inside) >= 2:
    slope, intercept = np.polyfit(np.log([each.C for each in inside]), np.log([each.N for each in inside]), 1)
    return float(np.exp(slope * np.log(C) + intercept))
  by_law = [each.N for each in optima if each.law != "isoflop" and each.C == C]
  if not by_law:
    raise UserError(f"no optimum is known at {C:g} FLOPs: fewer than two budgets have a minimum within their sizes")
  return by_law[0]


def make_forecast(
  records: Sequence[Record], laws: Sequence[str], convention: str, target: Target, noise: NoiseFloor | None
) -> Forecast:
  """The forecast of the target's loss from the finished records, with its interval.

  It combines those of a study's `laws` that have a value at any size and budget, or `forecast.LAWS` if there are none.
  `noise` is the study's noise floor.
  """
  points = measured.runs_of_records(records, convention).points
  combined = forecast.find_laws([name for name in laws if name != "isoflop"], "get_study: laws")
  seed_noise = noise.std / float(np.mean(noise.losses)) if noise else 0.0
  forecaster = forecast.fit(points, combined, seed_noise)
  (row,) = forecast.rows([forecast.Scale(target.N, target.D, target.C)], forecaster.predict)
  prediction = forecaster.predict([target.N], [target.D], [target.C])
  facts = Forecast(
    forecaster=forecaster.method(),
    convention=convention,
    predicted=prediction.predicted[0],
    interval50=row.interval50,
    interval80=row.interval80,
    interval90=(prediction.low[0], prediction.high[0]),
    interval95=row.interval95,
    parts={
      "parameters": prediction.parameters[0],
      "discrepancy": prediction.discrepancy[0],
      "noise": prediction.noise,
      "distance": prediction.distance[0],
    },
    target=target,
  )
  return finite(facts)
