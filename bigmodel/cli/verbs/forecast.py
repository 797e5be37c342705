"""Forecast the loss at scales that have not been run, with intervals.

With --n, --d, --c the forecast is for sizes and amounts of data, or for budgets with their best size; with --x it
extrapolates curves. --seal saves a forecast with its time and hash, and --score compares sealed forecasts with measured
losses.
"""

import argparse
import dataclasses
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, forecasters, loss_curves, options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from bigmodel.laws.facts import BestSize, ForecastRow, LeastCompute, ScoredRow, TableForecast
  from bigmodel.laws.forecast import Forecaster, Predict, Prediction
  from bigmodel.laws.measured import MeasuredRuns
  from bigmodel.laws.source import Source

RUNS = "runs.csv --n=params_total --d=tokens --loss=loss_eval"
EXAMPLES = (
  f"bigmodel forecast {RUNS} --at=1e15 --seal=forecast.json",
  f"bigmodel forecast {RUNS} --at=2e5,1e8 --at=1e15 --served=1e9 --max-params=1e6",
  f"bigmodel forecast {RUNS} --reach=1.7",
  "bigmodel forecast points.csv --n=params --d=tokens --at=truth.csv --seal=sealed.json",
  "bigmodel forecast truth.csv --n=params --d=tokens --score sealed.json",
  "bigmodel forecast curves.csv --x=examples --loss=error --group=model --at=1e9",
  "bigmodel forecast runs/quickstart --at=1e12",
  "bigmodel forecast curves.csv --schedule=cosine:steps=72000,end=3e-5 --at=36000 --at=72000",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "points",
    metavar="POINTS.csv|STUDY",
    help="a CSV with one row per run, or a study's folder; with --score, a CSV of the measured losses",
  )
  columns.add(parser)
  columns.add_curves(parser)
  columns.add_force(parser)
  loss_curves.add(parser)
  loss_curves.add_schedule(parser)
  parser.add_argument(
    "--at",
    action="append",
    default=[],
    metavar="X|N,D|C|FILE.csv",
    help="scales to forecast: an x, a size and tokens N,D, a budget C (at its best N and D), or a CSV (repeatable);"
    " with --schedule, a step (default: the last)",
  )
  parser.add_argument(
    "--reach",
    type=options.positive_number,
    action="append",
    default=[],
    metavar="LOSS",
    help="the least compute that reaches a loss (repeatable)",
  )
  parser.add_argument(
    "--max-params", type=options.positive_number, metavar="N", help="the largest model that fits into memory"
  )
  parser.add_argument(
    "--max-tokens", type=options.positive_number, metavar="D", help="the most tokens that are available for training"
  )
  parser.add_argument(
    "--served",
    type=options.positive_number,
    metavar="TOKENS",
    help="tokens that the model will serve, each of which takes 2 N FLOPs of the budget",
  )
  parser.add_argument(
    "--law",
    default="",
    metavar="NAME,...",
    help="laws of N and D, or with --schedule of loss curves, weighted by their backtests (default: three laws, or"
    " two); --law=auto is the best law of loss curves",
  )
  parser.add_argument(
    "--intervals", choices=("bootstrap", "nuts"), default="bootstrap", help="nuts samples the posterior of one law"
  )
  parser.add_argument("--seal", default="", metavar="FILE.json", help="save the forecast with its time and hash")
  parser.add_argument(
    "--score",
    nargs="+",
    default=[],
    metavar="FILE.json",
    help="compare sealed forecasts with the measured losses in POINTS",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  source = columns.source(arguments, arguments.points)
  if Path(arguments.points).is_dir():
    if not arguments.schedule:
      columns.refuse(arguments)
    if arguments.score:
      raise UserError("--score: needs a CSV; the points are the folder of a study")
  if arguments.score:
    return _score(source, arguments.score, output)
  if arguments.schedule:
    return _sealed(loss_curves.forecast(arguments, output), arguments.seal, output)
  if not arguments.at and not arguments.reach:
    raise UserError("--at: missing; give an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  if "x" in source.columns:
    if arguments.law or arguments.reach or _limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError(
        "--law, --reach, --max-params, --max-tokens, --served, --intervals: need N and D; they cannot be used with --x"
      )
    forecast = _curves(arguments, source, output)
  else:
    forecast = _surface(arguments, source, output)
  return _sealed(forecast, arguments.seal, output)


def _sealed(forecast: "TableForecast", path: str, output: Output) -> Facts:
  """The document of a forecast; sealed and saved if there is a path."""
  from bigmodel.laws import facts, seals

  if not path:
    return facts.to_json(forecast)
  if Path(path).exists():
    raise UserError(f"--seal: {path} exists; a sealed forecast is never overwritten")
  sealed = seals.seal(forecast, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
  seals.write(path, sealed)
  output.say(f"sealed: {path}  sha256 {sealed.sha256[:16]}")
  return sealed.to_json()


def _score(source: "Source", paths: Sequence[str], output: Output) -> Facts:
  """Scores sealed forecasts with the losses of a CSV, and computes the coverage of their intervals."""
  from bigmodel.laws import facts, seals

  scales = ("x",) if "x" in source.columns else ("N", "D")
  truth = seals.read_truth(source, scales)
  ledger = seals.ledger([seals.read(path, facts.TableForecast) for path in paths], truth, scales)
  if not ledger:
    raise UserError(f"--score: {source.path} has the truth of none of these forecasts (same columns and scales?)")
  coverage = seals.coverage(ledger)
  _show_score(ledger, coverage, output)
  return {"rows": [facts.to_json(row) for row in ledger], "coverage": coverage}


@dataclasses.dataclass(frozen=True)
class _Place:
  """A point of --at: the values of the required scales, or of C alone if one number is given for two scales.

  The group comes from a row of a CSV; None means all groups.
  """

  scales: dict[str, float]
  group: str | None = None


def _places(arguments: argparse.Namespace, source: "Source", wanted: Sequence[str]) -> list[_Place]:
  """The points of all --at options."""
  from bigmodel.readers import packed, tables

  places = []
  for text in arguments.at:
    is_file = packed.suffix(text) in tables.SUFFIXES or Path(text).is_file()
    places += _places_of_csv(text, source, wanted) if is_file else [_place(text, wanted)]
  return places


def _places_of_csv(path: str, source: "Source", wanted: Sequence[str]) -> list[_Place]:
  from bigmodel.laws import table

  rows = table.read(dataclasses.replace(source, path=path)).frame
  values = table.columns(rows, path, wanted, source.columns)
  groups = rows[source.group].to_list() if source.group in rows.columns else [None] * len(rows)
  return [
    _Place({name: float(values[name][i]) for name in wanted}, None if group is None else str(group))
    for i, group in enumerate(groups)
  ]


def _place(text: str, wanted: Sequence[str]) -> _Place:
  try:
    numbers = [float(part) for part in text.split(",")]
  except ValueError as error:
    raise UserError(f"--at: {text!r} is neither numbers nor a CSV") from error
  if len(numbers) not in {1, len(wanted)} or not all(0 < number < math.inf for number in numbers):
    raise UserError(f"--at: {text!r} is not {'a positive number' if len(wanted) == 1 else 'N,D or a budget C'}")
  return _Place(dict(zip(wanted if len(numbers) == len(wanted) else ("C",), numbers, strict=True)))


def _curves(arguments: argparse.Namespace, source: "Source", output: Output) -> "TableForecast":
  if source.drop_largest:
    raise UserError("--drop-largest: needs --n, --d or --c")
  if source.stderr:
    raise UserError("--stderr: needs --n, --d or --c")
  from msgspec import structs

  from bigmodel import files
  from bigmodel.laws import curves, facts, measured, reach

  read = measured.curves_of_csv(source)
  places = [place for place in _places(arguments, source, ("x",)) if place.group not in read.short]
  notes = list(read.notes)
  for place in places:
    for group in read.data if place.group is None else [place.group]:
      notes += read.check(f"--at={place.scales['x']:g}", group, place.scales["x"], arguments.force)
  rows = curves.rows(read.data, [(place.group, place.scales["x"]) for place in places])
  rows = [structs.replace(row, beyond=reach.times(float(row.x or 0), read.data[row.group or ""][0])) for row in rows]
  forecast = facts.TableForecast(
    points=source.path,
    points_sha256=files.sha256_file(source.path),
    forecaster=curves.method(),
    rows=rows,
    warnings=notes,
  )
  _show_curves(forecast, bool(source.group), output)
  return forecast


def _limits(arguments: argparse.Namespace) -> dict[str, float]:
  given = {"params": arguments.max_params, "tokens": arguments.max_tokens, "served": arguments.served}
  return {name: value for name, value in given.items() if value is not None}


def _surface(arguments: argparse.Namespace, source: "Source", output: Output) -> "TableForecast":
  from msgspec import structs

  from bigmodel.laws import facts, forecast, optimum, reach

  if source.group:
    raise UserError("--group: needs curves (--x)")
  runs = columns.runs(arguments, arguments.points)
  limits = optimum.Limits(**_limits(arguments))
  places = [place.scales for place in _places(arguments, source, ("N", "D"))]
  warnings = _check(arguments, runs, places)
  forecaster, fit = forecasters.fit(runs, _laws(arguments), output)
  # Chinchilla's law gives the best size for a budget, whichever laws forecast the loss.
  optima = [optimum.at(fit, place["C"], limits) if "C" in place else None for place in places]
  sizes = [(best.N, best.D) if best else (place["N"], place["D"]) for place, best in zip(places, optima, strict=True)]
  scales = [forecast.Scale(N, D, fit.flops_per_nd * N * D) for N, D in sizes]
  rows = forecast.rows(scales, _predictor(arguments.intervals, forecaster, output)) if scales else []
  products = runs.points.N * runs.points.D
  for i, (best, scale) in enumerate(zip(optima, scales, strict=True)):
    rows[i] = structs.replace(rows[i], beyond=reach.times(scale.N * scale.D, products))
    if best:
      of_size = {"N_interval90": best.N_interval90, "D_interval90": best.D_interval90, "off": best.off}
      rows[i] = structs.replace(rows[i], **of_size)
  reached = [optimum.least(fit, loss, limits) for loss in arguments.reach]
  for i, each in enumerate(reached):
    if each.C is not None:
      warnings += runs.check_budget(f"--reach={each.loss:g} with C of {each.C:.3g}", each.C, force=True)
      reached[i] = structs.replace(each, beyond=reach.times(each.C, runs.points.C))
  forecasts = facts.TableForecast(
    points=source.path,
    points_sha256=runs.sha256,
    forecaster=forecaster.method(),
    rows=rows,
    optimum=[best for best in optima if best],
    reached=reached,
    warnings=[*runs.notes, *warnings],
  )
  _show_surface(forecasts, output)
  return forecasts


def _check(arguments: argparse.Namespace, runs: "MeasuredRuns", places: "Sequence[dict[str, float]]") -> list[str]:
  """Notes about scales that lie far beyond the points; raises `UserError` for those that hint at other units."""
  warnings = []
  for place in places:
    if "C" in place:
      warnings += runs.check_budget(f"--at={place['C']:g}", place["C"], arguments.force)
    else:
      N, D = place["N"], place["D"]
      warnings += runs.check_size(f"--at={N:g},{D:g}", N, D, arguments.force)
  for option, asked in (("--reach", arguments.reach), ("--max-params, --max-tokens, --served", _limits(arguments))):
    if asked:
      runs.require_plain(option, arguments.force)
  return warnings


def _laws(arguments: argparse.Namespace) -> list[str]:
  """The laws that --law names; exactly one with --intervals=nuts."""
  from bigmodel.laws import forecast

  names = arguments.law.split(",") if arguments.law else []
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


def _show_surface(forecasts: "TableForecast", output: Output) -> None:
  if forecasts.rows:
    rows = [(row.N, row.D, row.C, row.predicted, row.interval90, _beyond(row)) for row in forecasts.rows]
    output.table("forecast", ("N", "D", "C", "loss", "90% interval", "beyond"), rows)
  if forecasts.optimum:
    _show_optima(forecasts.optimum, output)
  if forecasts.reached:
    _show_reached(forecasts.reached, output)
  output.notes(f"note: {warning}" for warning in forecasts.warnings or ())


def _show_curves(forecast: "TableForecast", grouped: bool, output: Output) -> None:
  group = ("group",) if grouped else ()
  shown = [(*(row.group for _ in group), row.x, row.predicted, row.interval90, _beyond(row)) for row in forecast.rows]
  output.table("forecast", (*group, "x", "loss", "90% interval", "beyond"), shown)
  output.notes(f"note: {warning}" for warning in forecast.warnings or ())


def _beyond(row: "ForecastRow | LeastCompute") -> str:
  from bigmodel.laws import reach

  return reach.describe(row.beyond) if isinstance(row.beyond, float) else "-"


def _show_optima(optima: "Sequence[BestSize]", output: Output) -> None:
  rows = [(o.C, o.N, o.N_interval90, o.D, o.D_interval90, f"{o.spent / o.C:.0%}") for o in optima]
  output.table("compute-optimal", ("C", "N", "90%", "D", "90%", "of C spent"), rows)
  rows = [
    (o.C, f"{off.times:g} x", off.N, off.D, off.loss - o.loss, f"{off.compute:.1%}") for o in optima for off in o.off
  ]
  output.table("off the optimum", ("C", "size", "N", "D", "more loss", "as good as this much of C"), rows)


def _show_reached(reached: "Sequence[LeastCompute]", output: Output) -> None:
  rows = [(r.loss, r.C, r.C_interval90, r.N, r.D, f"{r.reached_in:.0%}", _beyond(r)) for r in reached]
  titles = ("loss", "C", "90%", "N", "D", "reached in, of the draws", "beyond")
  output.table("least compute to a loss", titles, rows)


def _show_score(ledger: "Sequence[ScoredRow]", coverage: dict[str, float], output: Output) -> None:
  rows = [
    (
      row.group or "-",
      row.x or row.N,
      row.predicted,
      row.interval90,
      row.actual,
      row.inside["interval90"],
    )
    for row in ledger
  ]
  output.table("forecast and truth", ("group", "scale", "forecast", "90% interval", "truth", "inside"), rows)
  output.table(f"{len(rows)} forecasts", ("interval", "covered"), list(coverage.items()))
