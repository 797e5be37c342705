"""Forecast the loss at scales that have not been run, with intervals.

With --n, --d, --c the forecast is for sizes and amounts of data, or for budgets with their best size; with --x it
extrapolates curves. --seal saves a forecast with its time and hash, and --score compares sealed forecasts with measured
losses.
"""

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, loss_curves, options, places, scoring, session, surfaces
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.facts import TableForecast
  from bigmodel.laws.source import Source

RUNS = "runs.csv --n=params_total --d=tokens --loss=loss_eval"
EXAMPLES = (
  f"bigmodel forecast {RUNS} --at=1e15 --seal=forecast.json",
  f"bigmodel forecast {RUNS} --at=2e5,1e8 --at=1e15 --served=1e9 --max-params=1e6",
  f"bigmodel forecast {RUNS} --reach=1.7",
  "bigmodel forecast points.csv --n=params --d=tokens --at=truth.csv --seal=sealed.json",
  "bigmodel forecast points.csv --n=params --d=tokens --column U=unique --law=data_constrained --at=1e9,1e11,U=2e10",
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
  columns.add_others(parser)
  columns.add_force(parser)
  loss_curves.add(parser)
  loss_curves.add_schedule(parser)
  parser.add_argument(
    "--at",
    action="append",
    default=[],
    metavar="X|N,D|C|FILE.csv",
    help="scales to forecast: an x, a size and tokens N,D, a budget C (at its best N and D), N,D,NAME=VALUE with"
    " --column, or a CSV (repeatable); with --schedule, a step (default: the last)",
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
    return scoring.score(source, arguments.score, output)
  if arguments.schedule:
    return _sealed(loss_curves.forecast(arguments, output), arguments.seal, output)
  if not arguments.at and not arguments.reach:
    raise UserError("--at: missing; give an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  if set(source.columns) - {"N", "D", "C", "x"}:
    forecast = surfaces.forecast_any(arguments, source, output)
  elif "x" in source.columns:
    if arguments.law or arguments.reach or surfaces.limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError(
        "--law, --reach, --max-params, --max-tokens, --served, --intervals: need N and D; they cannot be used with --x"
      )
    forecast = _curves(arguments, source, output)
  else:
    forecast = surfaces.forecast(arguments, source, output)
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


def _curves(arguments: argparse.Namespace, source: "Source", output: Output) -> "TableForecast":
  if source.drop_largest:
    raise UserError("--drop-largest: needs --n, --d or --c")
  if source.stderr:
    raise UserError("--stderr: needs --n, --d or --c")
  from msgspec import structs

  from bigmodel import files
  from bigmodel.laws import curves, facts, measured, reach

  read = measured.curves_of_csv(source)
  asked = [place for place in places.read(arguments.at, source, ("x",)) if place.group not in read.short]
  notes = list(read.notes)
  for place in asked:
    for group in read.data if place.group is None else [place.group]:
      notes += read.check(f"--at={place.scales['x']:g}", group, place.scales["x"], arguments.force)
  rows = curves.rows(read.data, [(place.group, place.scales["x"]) for place in asked])
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


def _show_curves(forecast: "TableForecast", grouped: bool, output: Output) -> None:
  group = ("group",) if grouped else ()
  shown = [
    (*(row.group for _ in group), row.x, row.predicted, row.interval90, surfaces.beyond(row)) for row in forecast.rows
  ]
  output.table("forecast", (*group, "x", "loss", "90% interval", "beyond"), shown)
  output.notes(f"note: {warning}" for warning in forecast.warnings or ())
