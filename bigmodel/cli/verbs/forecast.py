"""Forecast the loss at scales that have not been run, with intervals.

With --n, --d, --c the forecast is for sizes and amounts of data, or for budgets with their best size; with --x it
extrapolates curves. A forecast can be sealed with its time and hash, and --score compares sealed forecasts with the
truth.
"""

import argparse
import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.chinchilla import Fit
  from bigmodel.laws.points import Points
  from bigmodel.laws.source import Source

RUNS = "runs.csv --n=params_total --d=tokens --loss=loss_eval"
EXAMPLES = (
  f"bigmodel forecast {RUNS} --at=1e15 --seal=forecast.json",
  f"bigmodel forecast {RUNS} --at=2e5,1e8 --at=1e15 --served=1e9 --max-params=1e6",
  f"bigmodel forecast {RUNS} --reach=1.7",
  "bigmodel forecast points.csv --n=params --d=tokens --at=truth.csv --seal=sealed.json",
  "bigmodel forecast truth.csv --n=params --d=tokens --score sealed.json",
  "bigmodel forecast curves.csv --x=examples --loss=error --group=model --at=1e9",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("points", metavar="POINTS.csv", help="a CSV with one row per run; with --score, the truth")
  columns.add(parser)
  columns.add_curves(parser)
  parser.add_argument(
    "--at",
    action="append",
    default=[],
    metavar="X|N,D|C|FILE.csv",
    help="where: an x, a size and tokens N,D, a budget C (at its best N and D), or a CSV of them (repeatable)",
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
    "--max-tokens", type=options.positive_number, metavar="D", help="the most tokens that there are to train on"
  )
  parser.add_argument(
    "--served",
    type=options.positive_number,
    metavar="TOKENS",
    help="tokens that the model will serve, at 2 N FLOPs each of the budget",
  )
  parser.add_argument(
    "--law", default="", metavar="NAME,...", help="laws of N and D, weighted by their backtests (default: three laws)"
  )
  parser.add_argument(
    "--intervals", choices=("bootstrap", "nuts"), default="bootstrap", help="nuts samples the posterior of one law"
  )
  parser.add_argument("--seal", default="", metavar="FILE.json", help="keep the forecast with its time and hash")
  parser.add_argument(
    "--score", nargs="+", default=[], metavar="FILE.json", help="compare sealed forecasts with the truth in POINTS"
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel import files
  from bigmodel.laws import coverage, forecast

  source = columns.source(arguments, arguments.points)
  if arguments.score:
    facts = coverage.score(source, arguments.score)
    _show_score(facts, output)
    return facts
  if not arguments.at and not arguments.reach:
    raise UserError("--at: say where: an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  if "x" in source.columns:
    if arguments.law or arguments.reach or _limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError("--law, --reach, --max-params, --max-tokens, --served, --intervals: are for N and D, not for --x")
    forecasts = {"rows": _curve_rows(arguments, source, output)}
  else:
    forecasts = _surface(arguments, source, output)
  sha256 = files.sha256_file(arguments.points)
  facts = {"points": str(arguments.points), "points_sha256": sha256, **forecasts}
  if arguments.seal:
    if Path(arguments.seal).exists():
      raise UserError(f"--seal: {arguments.seal} is there already; a forecast is kept as it was made")
    facts = forecast.seal(facts, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    files.write_json(arguments.seal, facts)
    output.say(f"sealed: {arguments.seal}  sha256 {facts['sha256'][:16]}")
  return facts


def _asked(arguments: argparse.Namespace, source: "Source", wanted: Sequence[str]) -> list[dict[str, float]]:
  """The scales of every --at: the wanted ones, or C alone where one number is given for two."""
  return [{name: row[name] for name in row if name != "group"} for row in _asked_of_groups(arguments, source, wanted)]


def _asked_of_groups(arguments: argparse.Namespace, source: "Source", wanted: Sequence[str]) -> list[Facts]:
  """As `_asked`, with the group that a CSV names for each row; None asks all groups."""
  from bigmodel.laws import table

  rows: list[Facts] = []
  for text in arguments.at:
    if Path(text).suffix == ".csv":
      given = table.read(text)
      values = table.columns(given, text, wanted, dict(source.columns))
      groups = given[source.group].to_list() if source.group in given.columns else [None] * len(given)
      rows += [
        {"group": None if group is None else str(group), **{name: float(values[name][i]) for name in wanted}}
        for i, group in enumerate(groups)
      ]
      continue
    try:
      numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
      raise UserError(f"--at: {text!r} is neither numbers nor a CSV") from error
    if len(numbers) not in {1, len(wanted)} or not all(0 < number < math.inf for number in numbers):
      raise UserError(f"--at: {text!r} is not {'a positive number' if len(wanted) == 1 else 'N,D or a budget C'}")
    names = wanted if len(numbers) == len(wanted) else ("C",)
    rows.append({"group": None, **dict(zip(names, numbers, strict=True))})
  return rows


def _curve_rows(arguments: argparse.Namespace, source: "Source", output: Output) -> list[Facts]:
  if source.drop_largest:
    raise UserError("--drop-largest: is for --n, --d, --c")
  if source.stderr:
    raise UserError("--stderr: is for --n, --d, --c")
  from bigmodel.laws import curves, table

  data = {
    group: (
      table.column(part, source.path, source.columns["x"], "--x"),
      table.column(part, source.path, source.loss, "--loss"),
    )
    for group, part in table.groups(table.read(source.path), source.path, source.group).items()
  }
  multiples = curves.calibrated(data)
  fitted = {curve.name: curve for curve in curves.fit(data)}
  rows: list[Facts] = []
  for asked in _asked_of_groups(arguments, source, ("x",)):
    if asked["group"] is not None and asked["group"] not in fitted:
      raise UserError(f"--at: no group {asked['group']!r} among the points; they have {', '.join(fitted)}")
    for group in fitted if asked["group"] is None else [asked["group"]]:
      x = asked["x"]
      forecast = fitted[group].predict(x, multiples)
      intervals = {f"interval{q * 100:.0f}": [float(v) for v in pair] for q, pair in forecast["intervals"].items()}
      rows.append({"group": group, "x": x, "predicted": float(forecast["predicted"]), **intervals})
  keys = (*(("group",) if source.group else ()), "x")
  shown = [(*(row[key] for key in keys), row["predicted"], row["interval90"]) for row in rows]
  output.table("forecast", (*keys, "loss", "90% interval"), shown)
  return rows


def _limits(arguments: argparse.Namespace) -> dict[str, float]:
  given = {"params": arguments.max_params, "tokens": arguments.max_tokens, "served": arguments.served}
  return {name: value for name, value in given.items() if value is not None}


def _surface(arguments: argparse.Namespace, source: "Source", output: Output) -> Facts:
  from bigmodel.laws import chinchilla, optimum

  if source.group:
    raise UserError("--group: is for curves (--x)")
  points = source.points()
  fitted = chinchilla.fit(points)
  limits = optimum.Limits(**_limits(arguments))
  asked = _asked(arguments, source, ("N", "D"))
  # What a budget buys is a question to Chinchilla's law, whichever law forecasts the loss.
  optima = [optimum.at(fitted, one["C"], limits) if "C" in one else None for one in asked]
  places = [(best["N"], best["D"]) if best else (one["N"], one["D"]) for one, best in zip(asked, optima, strict=True)]
  rows = _predictions(arguments, points, fitted, places, output) if places else []
  for row, best in zip(rows, optima, strict=True):
    row |= {name: best[name] for name in ("N_interval90", "D_interval90", "off")} if best else {}
  facts = {
    "rows": rows,
    "optimum": [best for best in optima if best],
    "reached": [optimum.least(fitted, loss, limits) for loss in arguments.reach],
  }
  _show_surface(facts, output)
  return facts


def _predictions(
  arguments: argparse.Namespace,
  points: "Points",
  fitted: "Fit",
  places: Sequence[tuple[float, float]],
  output: Output,
) -> list[dict]:
  """Forecasts at each (N, D), with intervals at all levels."""
  import numpy as np

  from bigmodel.laws import bayes, curves, fitting, forecast, forms, summary, uncertainty

  names = arguments.law.split(",") if arguments.law else list(forecast.MIXED)
  laws = [forms.find(name) for name in (names[:1] if arguments.intervals == "nuts" and not arguments.law else names)]
  for law in laws:
    if law.columns != ("N", "D"):
      raise UserError(f"--law: forecasts are of laws of N and D; {law.name} is one of {', '.join(law.columns)}")
  fits = [
    fitted.known
    if law.name == "chinchilla"
    else uncertainty.bootstrap(fitting.fit(law, (points.N, points.D), points.loss, points.weights))
    for law in laws
  ]
  mixture = forecast.mixture(*fits)
  if not mixture.spread.origins:
    output.say(
      "note: too few points lie below half of the largest C to tell how errors grow, so intervals hold near them only"
    )
  where = list(np.array(places).T)
  if arguments.intervals == "nuts":
    if len(fits) > 1:
      raise UserError("--intervals=nuts: is for one law")
    posterior = bayes.sample(fits[0])
    output.say(f"NUTS: {posterior.divergences} divergences, R-hat {posterior.r_hat:.3f}")
    at_level = {q: posterior.predict(where, mixture.spread, q) for q in curves.LEVELS}
  else:
    at_level = {q: mixture.at(where, q) for q in curves.LEVELS}
  flops_per_nd = summary.flops_per_nd(fitted)
  return [
    {
      "group": "",
      "N": float(N),
      "D": float(D),
      "C": float(flops_per_nd * N * D),
      "predicted": float(at_level[0.9]["predicted"][i]),
      **{f"interval{q * 100:.0f}": [float(x["low"][i]), float(x["high"][i])] for q, x in at_level.items()},
    }
    for i, (N, D) in enumerate(places)
  ]


def _show_surface(facts: Facts, output: Output) -> None:
  rows = [(row["N"], row["D"], row["C"], row["predicted"], row["interval90"]) for row in facts["rows"]]
  if rows:
    output.table("forecast", ("N", "D", "C", "loss", "90% interval"), rows)
  optima = facts["optimum"]
  if optima:
    rows = [
      (o["C"], o["N"], o["N_interval90"], o["D"], o["D_interval90"], f"{o['spent'] / o['C']:.0%}") for o in optima
    ]
    output.table("compute-optimal", ("C", "N", "90%", "D", "90%", "of C spent"), rows)
    rows = [
      (o["C"], f"{off['times']:g} x", off["N"], off["D"], off["loss"] - o["loss"], f"{off['compute']:.1%}")
      for o in optima
      for off in o["off"]
    ]
    output.table("off the optimum", ("C", "size", "N", "D", "more loss", "as good as this much of C"), rows)
  if facts["reached"]:
    rows = [(r["loss"], r["C"], r["C_interval90"], r["N"], r["D"], f"{r['reached_in']:.0%}") for r in facts["reached"]]
    output.table("least compute to a loss", ("loss", "C", "90%", "N", "D", "reached in, of the draws"), rows)


def _show_score(facts: Facts, output: Output) -> None:
  rows = [
    (
      row["group"] or "-",
      row.get("x", row.get("N")),
      row["predicted"],
      row["interval90"],
      row["actual"],
      row["inside"]["interval90"],
    )
    for row in facts["rows"]
  ]
  output.table("forecast and truth", ("group", "scale", "forecast", "90% interval", "truth", "inside"), rows)
  output.table(f"{len(rows)} forecasts", ("interval", "covered"), list(facts["coverage"].items()))
