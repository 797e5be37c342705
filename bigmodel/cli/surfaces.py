"""`bigmodel forecast` of runs with N and D: losses at sizes, the best sizes for budgets, the compute to a loss."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from bigmodel.cli import columns, forecasters, places
from bigmodel.cli.console import Output
from bigmodel.cli.places import Place
from bigmodel.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from bigmodel.laws.facts import BestSize, ForecastMethod, ForecastRow, LeastCompute, TableForecast
  from bigmodel.laws.forecast import Forecaster, Predict, Prediction
  from bigmodel.laws.measured import MeasuredRuns
  from bigmodel.laws.source import Source

  Grouped = TypeVar("Grouped", ForecastRow, BestSize, LeastCompute)


@dataclasses.dataclass(frozen=True)
class Answers:
  """What is forecast from the runs of one group."""

  method: "ForecastMethod"
  rows: "list[ForecastRow]"
  optima: "list[BestSize]"
  reached: "list[LeastCompute]"
  notes: list[str]


def forecast(arguments: argparse.Namespace, source: "Source", output: Output) -> "TableForecast":
  """Forecasts the losses that --at and --reach ask for from the runs of a CSV or a study, each group separately."""
  from msgspec import UNSET

  from bigmodel.laws import facts

  if arguments.law and source.columns:
    from bigmodel.laws import any_columns, forms

    for name in _laws(arguments):
      any_columns.require_columns(forms.find(name, "--law"), ("N", "D", "C"))
  groups, notes = columns.groups(arguments, arguments.points)
  asked = places.read(arguments.at, source, ("N", "D"))
  if unknown := [place.group for place in asked if place.group is not None and place.group not in groups]:
    raise UserError(f"--at: no group {unknown[0]!r} among the points; they have {', '.join(groups)}")
  wanted = {name: [place for place in asked if place.group in (None, name)] for name in groups}
  groups = {name: runs for name, runs in groups.items() if wanted[name] or arguments.reach}

  def answer(name: str, runs: "MeasuredRuns") -> Answers:
    return _answer(arguments, runs, wanted[name], output)

  made, unfit = forecasters.each_group(groups, answer)
  grouped = bool(source.group)
  answers = list(made.values())
  forecasts = facts.TableForecast(
    points=source.path,
    points_sha256=next(iter(groups.values())).sha256,
    forecaster=UNSET if grouped else answers[0].method,
    forecasters={name: each.method for name, each in made.items()} if grouped else UNSET,
    rows=[_of_group(row, name) for name, each in made.items() for row in each.rows],
    optimum=[_of_group(best, name) if grouped else best for name, each in made.items() for best in each.optima],
    reached=[_of_group(least, name) if grouped else least for name, each in made.items() for least in each.reached],
    warnings=[*notes, *(f"{n}: {note}" if n else note for n, each in made.items() for note in each.notes), *unfit],
  )
  _show(forecasts, grouped, output)
  return forecasts


def forecast_any(arguments: argparse.Namespace, source: "Source", output: Output) -> "TableForecast":
  """Forecasts the losses that --at asks for by laws of further columns, such as unique tokens or experts."""
  from bigmodel.laws import any_columns

  if arguments.reach or limits(arguments) or arguments.intervals != "bootstrap":
    raise UserError(
      "--reach, --max-params, --max-tokens, --served, --intervals: are for laws of N and D; they cannot be used with"
      " --column"
    )
  source = any_columns.expanded(source)
  asked = [(place.group, place.scales) for place in places.read(arguments.at, source, list(source.columns))]
  names = [] if arguments.law in ("", "auto") else arguments.law.split(",")
  forecasts = any_columns.forecast(source, asked, names, arguments.force)
  scales = list(source.columns)
  shown = []
  for row in forecasts.rows:
    values = {name: getattr(row, name) for name in ("N", "D", "C", "x")} | (row.columns or {})
    group = (row.group,) if source.group else ()
    shown.append((*group, *(f"{values[name]:.4g}" for name in scales), row.predicted, row.interval90, beyond(row)))
  titles = (*(("group",) if source.group else ()), *scales, "loss", "90% interval", "beyond")
  output.table("forecast", titles, shown)
  output.notes(f"note: {warning}" for warning in forecasts.warnings or ())
  return forecasts


def limits(arguments: argparse.Namespace) -> dict[str, float]:
  """The limits of sizes and data that are given."""
  given = {"params": arguments.max_params, "tokens": arguments.max_tokens, "served": arguments.served}
  return {name: value for name, value in given.items() if value is not None}


def _answer(arguments: argparse.Namespace, runs: "MeasuredRuns", asked: Sequence[Place], output: Output) -> Answers:
  from msgspec import structs

  from bigmodel.laws import forecast, optimum, reach

  within = optimum.Limits(**limits(arguments))
  warnings = _check(arguments, runs, asked)
  forecaster, notes = forecasters.fit(runs, _laws(arguments))
  budgets = [place.scales.get("C") for place in asked]
  optima = [None if C is None else optimum.at(forecaster, C, within) for C in budgets]
  points = forecaster.points  # in an order that does not depend on the file's, which sums would
  k, products = points.flops_per_nd, points.N * points.D
  sizes = [
    (best.N, best.D) if best else (place.scales["N"], place.scales["D"])
    for place, best in zip(asked, optima, strict=True)
  ]
  scales = [forecast.Scale(N, D, k * N * D) for N, D in sizes]
  rows = forecast.rows(scales, _predictor(arguments.intervals, forecaster, output)) if scales else []
  for place, row in zip(asked, rows, strict=True):
    if not math.isfinite(row.predicted):
      raise UserError(f"{place.asked()}: {', '.join(forecaster.method().weights)}: no finite loss there")
  for i, (best, scale) in enumerate(zip(optima, scales, strict=True)):
    rows[i] = structs.replace(rows[i], beyond=reach.times(scale.N * scale.D, products))
    if best:
      of_size = {"N_interval90": best.N_interval90, "D_interval90": best.D_interval90, "off": best.off}
      rows[i] = structs.replace(rows[i], **of_size)
      warnings += runs.off_line(asked[i].asked(), scale.N, scale.D)
      if within.params <= best.N:
        warnings.append(f"{asked[i].asked()}: --max-params={within.params:g} limits the size; the best one is larger")
  reached = [optimum.least(forecaster, loss, within) for loss in arguments.reach]
  for i, each in enumerate(reached):
    if each.C is not None and each.N is not None and each.D is not None:
      warnings += runs.check_budget(f"--reach={each.loss:g} with C of {each.C:.3g}", each.C, force=True)
      warnings += runs.off_line(f"--reach={each.loss:g}", each.N, each.D)
      reached[i] = structs.replace(each, beyond=reach.times(each.C, runs.points.C))
  return Answers(forecaster.method(), rows, [best for best in optima if best], reached, [*notes, *warnings])


def _of_group(answer: "Grouped", group: str) -> "Grouped":
  from msgspec import structs

  return structs.replace(answer, group=group)


def _check(arguments: argparse.Namespace, runs: "MeasuredRuns", asked: Sequence[Place]) -> list[str]:
  """Notes about scales that lie far beyond the points; raises `UserError` for those that hint at other units."""
  warnings = []
  for place in asked:
    if "C" in place.scales:
      warnings += runs.check_budget(place.asked(), place.scales["C"], arguments.force)
    else:
      warnings += runs.check_size(place.asked(), place.scales["N"], place.scales["D"], arguments.force)
  for option, given in (("--reach", arguments.reach), ("--max-params, --max-tokens, --served", limits(arguments))):
    if given:
      runs.require_plain(option, arguments.force)
  return warnings


def _laws(arguments: argparse.Namespace) -> list[str]:
  """The laws that --law names; exactly one with --intervals=nuts."""
  from bigmodel.laws import forecast

  names = arguments.law.split(",") if arguments.law else []
  if "auto" in names:
    raise UserError("--law=auto: is for --column and --schedule; leave out --law to combine the usual laws of N and D")
  if arguments.intervals != "nuts":
    return names
  if len(names) > 1:
    raise UserError(f"--intervals=nuts: takes one law, not {len(names)}")
  return names or [forecast.LAWS[0]]


def _predictor(intervals: str, forecaster: "Forecaster", output: Output) -> "Predict":
  """The function that predicts losses: the forecaster's, or that of the posterior of its law."""
  if intervals != "nuts":
    return forecaster.predict
  from bigmodel.laws import bayes

  posterior = bayes.sample(forecaster.fits[0])
  output.say(f"NUTS: {posterior.divergences} divergences, R-hat {posterior.r_hat:.3f}")

  def predict(N: "np.ndarray", D: "np.ndarray", C: "np.ndarray", level: float) -> "Prediction":
    del C  # the posterior is that of a law of N and D
    return posterior.predict(N, D, forecaster.spread, level)

  return predict


def _show(forecasts: "TableForecast", grouped: bool, output: Output) -> None:
  group = ("group",) if grouped else ()

  def named(answer: "ForecastRow | BestSize | LeastCompute") -> tuple[str, ...]:
    return (str(answer.group),) if grouped else ()

  if forecasts.rows:
    rows = [(*named(row), row.N, row.D, row.C, row.predicted, row.interval90, beyond(row)) for row in forecasts.rows]
    output.table("forecast", (*group, "N", "D", "C", "loss", "90% interval", "beyond"), rows)
  if optima := forecasts.optimum or []:
    rows = [(*named(o), o.C, o.N, o.N_interval90, o.D, o.D_interval90, f"{o.spent / o.C:.0%}") for o in optima]
    output.table("compute-optimal", (*group, "C", "N", "90%", "D", "90%", "of C spent"), rows)
    rows = [
      (*named(o), o.C, f"{off.times:g} x", off.N, off.D, off.loss - o.loss, f"{off.compute:.1%} of C")
      for o in optima
      for off in o.off
    ]
    titles = ("C", "size", "N", "D", "more loss", "as good as the best size for")
    output.table("off the optimum", (*group, *titles), rows)
  if reached := forecasts.reached or []:
    rows = [(*named(r), r.loss, r.C, r.C_interval90, r.N, r.D, f"{r.reached_in:.0%}", beyond(r)) for r in reached]
    titles = ("loss", "C", "90%", "N", "D", "reached in, of the draws", "beyond")
    output.table("least compute to a loss", (*group, *titles), rows)
  output.notes(f"note: {warning}" for warning in forecasts.warnings or ())


def beyond(row: "ForecastRow | LeastCompute") -> str:
  """How far a scale lies beyond the points, as a cell of a table."""
  from bigmodel.laws import reach

  return reach.describe(row.beyond) if isinstance(row.beyond, float) else "-"
