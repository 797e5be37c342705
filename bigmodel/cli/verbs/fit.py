"""Fit laws to a study, or to any CSV with one row per run.

A CSV needs columns for two of the parameters N, the tokens D and the FLOPs C, or one column for the only scale x.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.facts import Choice, Fits, LawFit, Params, Predicted, TableFits

EXAMPLES = (
  "bigmodel fit runs/quickstart",
  "bigmodel fit runs.csv --n=params_total --d=tokens --loss=loss_eval --at=1e15",
  "bigmodel fit runs.csv --n=params_total,params_non_embedding --d=tokens --loss=loss_eval",
  "bigmodel fit curves.csv --x=examples --loss=error --group=model --law=auto",
  "bigmodel fit runs.csv --n=params --d=tokens --column vocab=vocab_size --law=auto --predict=new.csv",
  "bigmodel fit mixtures.csv --column r=share_web,share_code,share_books --loss=loss_code --law=auto",
  "bigmodel fit runs.csv --n=params_total --d=tokens --loss=loss_eval --law=mine.py:my_law",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("points", metavar="POINTS.csv|STUDY", help="a CSV with one row per run, or a study's folder")
  columns.add(parser)
  columns.add_curves(parser)
  columns.add_others(parser)
  columns.add_force(parser)
  parser.add_argument(
    "--law",
    default="",
    metavar="NAME,...",
    help="chinchilla, isoflop, power_offset, ..., FILE.py:NAME, or auto, which tries several (see laws/*_forms.py)",
  )
  parser.add_argument(
    "--predict", default="", metavar="FILE.csv", help="with --law=auto: runs to forecast, with the same columns"
  )
  parser.add_argument(
    "--at",
    type=options.positive_number,
    action="append",
    default=[],
    metavar="FLOPS",
    help="print the optimum at a budget (repeatable)",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.laws import facts

  if Path(arguments.points).is_dir():
    from bigmodel.study import fits

    columns.require_study(arguments.points)
    columns.refuse(arguments)
    if arguments.at or arguments.law or arguments.predict:
      raise UserError("--at, --law, --predict: a study has its own target and laws; they are for a CSV")
    fitted = fits.fit_study(arguments.points)
  else:
    from bigmodel.laws import fit_csv

    source = columns.source(arguments, arguments.points)
    fitted = fit_csv.fit(source, arguments.law, arguments.at, arguments.force, arguments.predict)
  _show(fitted, output)
  return facts.to_json(fitted)


def _show(fitted: "Fits | TableFits", output: Output) -> None:
  from bigmodel.laws import facts, reach

  for law in fitted.laws:
    _show_law(law, output)
  if isinstance(choice := getattr(fitted, "choice", None), facts.Choice):
    _show_choice(choice, output)
  optima = [(o.law, o.C, o.N, o.N_interval90, o.D, o.D_interval90) for o in fitted.optimum]
  if optima:
    output.table("compute-optimal", ("law", "C", "N", "90%", "D", "90%"), optima)
  output.notes(f"{o.C:.4g} FLOPs are {reach.sentence(o.beyond)}" for o in fitted.optimum if isinstance(o.beyond, float))
  for warning in getattr(fitted, "warnings", ()):
    output.say(f"note: {warning}")


def _show_law(law: "LawFit", output: Output) -> None:
  title = f"{law.group}: {law.name}, {law.points} points" if law.group else f"{law.name}, {law.points} points"
  rows = [(name, _digits(value), law.intervals.get(name)) for name, value in law.params.items()]
  if isinstance(law.objective, float) and law.starts_at_optimum:
    rows.append(("objective", _digits(law.objective), None))
    rows.append(("starts at the optimum", " of ".join(map(str, law.starts_at_optimum)), None))
  if law.backtest:
    text = f"error on the {law.backtest.points} points of the largest scales, held out"
    rows.append((text, f"{law.backtest.rms_log_error:.2%}", None))
  with_intervals = any(interval is not None for *_, interval in rows)
  titles = ("parameter", "value", "90% interval") if with_intervals else ("parameter", "value")
  output.table(title, titles, [row[: len(titles)] for row in rows])
  for name, params in (law.other_conventions or {}).items():
    output.say(
      f"with N as {name}: alpha {params['alpha']:.4g}, beta {params['beta']:.4g}, so N* ~ C^"
      f"{_exponent(params):.3f} instead of C^{_exponent(law.params):.3f}"
    )
  if law.caution:
    output.say(f"note: {law.caution}")
  for name in law.ridges or ():
    output.say(f"{name} is on a ridge: three times as much or as little fits nearly as well")


def _show_choice(choice: "Choice", output: Output) -> None:
  unit = "loss" if choice.plain else "ln loss"
  hidden = list(dict.fromkeys(name for law in choice.tried for name in law.errors))
  heads = [f"largest {name} hidden" if name else "a fifth hidden" for name in hidden]
  rows = [(law.name, f"{law.weight:.3f}", *(f"{law.errors[name]:.4g}" for name in hidden)) for law in choice.tried]
  output.table(f"laws by their errors of {unit} in {choice.backtests} backtests", ("law", "weight", *heads), rows)
  output.say(f"their weighted mean has an error of {choice.error:.4g} there")
  if choice.left_out:
    output.say(f"note: too few points for, or no finite forecast by, {', '.join(choice.left_out)}")
  if choice.predicted:
    names = list(choice.predicted[0].columns)
    group = ("group",) if any(row.group for row in choice.predicted) else ()
    at = [
      (*(row.group for _ in group), *(f"{row.columns[n]:g}" for n in names), row.loss, row.interval90, _beyond(row))
      for row in choice.predicted
    ]
    output.table("forecasts by the weighted mean", (*group, *names, "loss", "90% interval", "beyond"), at)


def _beyond(row: "Predicted") -> str:
  from bigmodel.laws import reach

  return reach.describe(row.beyond) if isinstance(row.beyond, float) else "-"


def _exponent(params: "Params") -> float:
  """The exponent with which Chinchilla's optimal N grows with C."""
  alpha, beta = params["alpha"], params["beta"]
  return math.nan if alpha is None or beta is None else beta / (alpha + beta)


def _digits(value: float | None) -> str | None:
  return None if value is None else f"{value:.6g}"
