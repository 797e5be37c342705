"""Forecast the loss at scales that have not been run, with intervals.

With --n, --d, --c the forecast is for sizes and amounts of data, or for budgets with their best size; with --x it
extrapolates curves. A forecast can be sealed with its time and hash, and --score compares sealed forecasts with the
truth.
"""

import argparse
import datetime
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, forecasters, options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.forecast import Forecaster, Prediction
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
  from bigmodel.laws import curves, seals

  source = columns.source(arguments, arguments.points)
  if arguments.score:
    return _score(source, arguments.score, output)
  if not arguments.at and not arguments.reach:
    raise UserError("--at: say where: an x, N,D, a budget C, or a CSV of them (repeatable); or --reach=LOSS")
  if "x" in source.columns:
    if arguments.law or arguments.reach or _limits(arguments) or arguments.intervals != "bootstrap":
      raise UserError("--law, --reach, --max-params, --max-tokens, --served, --intervals: are for N and D, not for --x")
    forecasts = {"forecaster": curves.facts(), "rows": _curve_rows(arguments, source, output)}
  else:
    forecasts = _surface(arguments, source, output)
  sha256 = files.sha256_file(arguments.points)
  facts = {"points": str(arguments.points), "points_sha256": sha256, **forecasts}
  if arguments.seal:
    if Path(arguments.seal).exists():
      raise UserError(f"--seal: {arguments.seal} is there already; a forecast is kept as it was made")
    facts = seals.seal(facts, datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"))
    files.write_json(arguments.seal, facts)
    output.say(f"sealed: {arguments.seal}  sha256 {facts['sha256'][:16]}")
  return facts


def _score(source: "Source", paths: Sequence[str], output: Output) -> Facts:
  """Sealed forecasts beside the truth of a CSV, and what their intervals cover."""
  from bigmodel import files
  from bigmodel.laws import seals

  scales = ("x",) if "x" in source.columns else ("N", "D")
  truth = seals.read_truth(source.path, scales, dict(source.columns), source.loss, source.group)
  ledger = seals.ledger([seals.verify(files.read_json(path), path) for path in paths], truth, scales)
  if not ledger:
    raise UserError(f"--score: {source.path} has the truth of none of these forecasts (same columns and scales?)")
  facts = {"rows": ledger, "coverage": seals.coverage(ledger)}
  _show_score(facts, output)
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


def _curve_rows(arguments: argparse.Namespace, source: "Source", output: Output) -> Sequence[Facts]:
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
  asked = [(one["group"], one["x"]) for one in _asked_of_groups(arguments, source, ("x",))]
  rows = curves.rows(data, asked)
  keys = (*(("group",) if source.group else ()), "x")
  shown = [(*(row[key] for key in keys), row["predicted"], row["interval90"]) for row in rows]
  output.table("forecast", (*keys, "loss", "90% interval"), shown)
  return rows


def _limits(arguments: argparse.Namespace) -> dict[str, float]:
  given = {"params": arguments.max_params, "tokens": arguments.max_tokens, "served": arguments.served}
  return {name: value for name, value in given.items() if value is not None}


def _surface(arguments: argparse.Namespace, source: "Source", output: Output) -> Facts:
  from bigmodel.laws import forecast, optimum, summary

  if source.group:
    raise UserError("--group: is for curves (--x)")
  forecaster, fitted = forecasters.fit(source, _laws(arguments), output)
  limits = optimum.Limits(**_limits(arguments))
  asked = _asked(arguments, source, ("N", "D"))
  # What a budget buys is a question to Chinchilla's law, whichever laws forecast the loss.
  optima = [optimum.at(fitted, one["C"], limits) if "C" in one else None for one in asked]
  sizes = [(best["N"], best["D"]) if best else (one["N"], one["D"]) for one, best in zip(asked, optima, strict=True)]
  places = [forecast.Scale(N, D, summary.flops_per_nd(fitted) * N * D) for N, D in sizes]
  rows = forecast.rows(places, _predictor(arguments.intervals, forecaster, output)) if places else []
  for row, best in zip(rows, optima, strict=True):
    row |= {name: best[name] for name in ("N_interval90", "D_interval90", "off")} if best else {}
  facts = {
    "forecaster": forecaster.facts(),
    "rows": rows,
    "optimum": [best for best in optima if best],
    "reached": [optimum.least(fitted, loss, limits) for loss in arguments.reach],
  }
  _show_surface(facts, output)
  return facts


def _laws(arguments: argparse.Namespace) -> list[str]:
  """The laws that --law names; nuts is for one."""
  from bigmodel.laws import forecast

  names = arguments.law.split(",") if arguments.law else []
  if arguments.intervals != "nuts":
    return names
  if len(names) > 1:
    raise UserError("--intervals=nuts: is for one law")
  return names or [forecast.LAWS[0]]


def _predictor(intervals: str, forecaster: "Forecaster", output: Output) -> "Callable[..., Prediction]":
  """What predicts losses at each (N, D, C) and level: the forecaster, or a posterior of its law."""
  if intervals != "nuts":
    return forecaster.predict
  from bigmodel.laws import bayes

  posterior = bayes.sample(forecaster.fits[0])
  output.say(f"NUTS: {posterior.divergences} divergences, R-hat {posterior.r_hat:.3f}")
  return lambda N, D, C, level: posterior.predict(N, D, forecaster.spread, level)


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
