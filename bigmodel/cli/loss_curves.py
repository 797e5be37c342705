"""The verbs `forecast` and `design` for whole loss curves: options, and what is printed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.cli.console import Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  import numpy as np

  from bigmodel.laws.schedules.answers import CurveForecast, ScheduleLaw
  from bigmodel.laws.schedules.decays import DecayProposal
  from bigmodel.laws.schedules.forecast import Forecaster
  from bigmodel.laws.schedules.reading import Columns, CurveSets

AUTO = "auto"


def add(parser: argparse.ArgumentParser) -> None:
  """Adds the options for the columns of loss curves."""
  for name, default, text in (
    ("curve", "curve", "which run a row belongs to"),
    ("step", "step", "the step of a row"),
    ("lr", "lr", "the learning rate of a row"),
  ):
    parser.add_argument(
      f"--{name}", default=default, metavar="COLUMN", help=f"with --schedule: column of {text} (default: {default})"
    )
  parser.add_argument(
    "--warmup",
    type=options.whole_number(0),
    metavar="STEPS",
    help="with --schedule: steps over which the rate rose before the first row of a curve (default: up to that row)",
  )


def add_schedule(parser: argparse.ArgumentParser) -> None:
  """Adds the option for the schedule of a forecast."""
  parser.add_argument(
    "--schedule",
    default="",
    metavar="NAME:steps=N,...|FILE.csv",
    help="forecast a loss curve under this schedule, from loss curves with learning rates: a schedule of config.optim"
    " with its numbers (steps, warmup, peak, final, end, decay), or a CSV of steps and rates",
  )


def forecast(arguments: argparse.Namespace, output: Output) -> "CurveForecast":
  """Forecasts the loss of the schedule --schedule at the steps --at, from the curves of a CSV."""
  from bigmodel.laws.schedules import answers
  from bigmodel.laws.schedules import forecast as forecasts

  _refuse(arguments)
  read, columns = _read(arguments)
  notes, found, text, forecasters = list(read.notes), [], "", {}
  for group, curves in read.groups.items():
    steps = _steps(arguments.at)
    warmup = max(curve.warmup for curve in curves)
    rates, text = _schedule(arguments.schedule, columns, max(float(c.rates.max()) for c in curves), warmup)
    forecaster = forecasters[group] = _fit(arguments.law, curves, group)
    notes += forecasts.check(forecaster, rates, "--schedule")
    steps = steps or [len(rates) - 1]
    notes += forecasts.check_steps(forecaster, rates, steps, "--at")
    found += answers.rows(forecaster, rates, steps, group)
  made = answers.assemble(arguments.points, text, forecasters, found, list(dict.fromkeys(notes)))
  _show(made, bool(arguments.group), output)
  return made


def design(arguments: argparse.Namespace, output: Output) -> "DecayProposal":
  """Proposes the decay for --steps, from the curves of a CSV."""
  from bigmodel.laws.schedules import decays

  _refuse(arguments)
  if arguments.steps is None:
    raise UserError("--schedule: needs --steps=N, the length of the run to design")
  read, _ = _read(arguments)
  (curves,) = read.groups.values()
  forecaster = _fit("", curves, "")
  proposal = decays.propose(forecaster, arguments.steps, max(curve.warmup for curve in curves), read.notes)
  _show_proposal(proposal, output)
  return proposal


def _refuse(arguments: argparse.Namespace) -> None:
  """Refuses options that are of no use for loss curves."""
  others = (
    "n",
    "d",
    "c",
    "x",
    "stderr",
    "drop_largest",
    "reach",
    "max_params",
    "max_tokens",
    "served",
    "target",
    "cap",
  )
  for name in others:
    if getattr(arguments, name, None):
      raise UserError(f"--{name.replace('_', '-')}: cannot be used with --schedule")
  if getattr(arguments, "intervals", "bootstrap") != "bootstrap":
    raise UserError("--intervals: cannot be used with --schedule")
  if Path(arguments.points).is_dir():
    raise UserError(f"{arguments.points}: is a folder; --schedule needs a CSV of loss curves")


def _read(arguments: argparse.Namespace) -> tuple["CurveSets", "Columns"]:
  from bigmodel.laws.schedules import reading

  group = getattr(arguments, "group", "")
  columns = reading.Columns(arguments.curve, arguments.step, arguments.lr, arguments.loss, group)
  return reading.read(arguments.points, columns, arguments.warmup), columns


def _fit(names: str, curves: list, group: str) -> "Forecaster":
  from bigmodel.laws.schedules import forecast as forecasts
  from bigmodel.laws.schedules import laws

  try:
    if names == AUTO:
      return forecasts.best(forecasts.fit(curves, forecasts.candidates(curves)))
    return forecasts.fit(curves, laws.find(names.split(",") if names else (), "--law"))
  except UserError as error:
    raise UserError(f"group {group}: {error}" if group else str(error)) from error


def _steps(at: list[str]) -> list[int]:
  steps = []
  for text in at:
    try:
      step = float(text)
    except ValueError as error:
      raise UserError(f"--at: {text!r} is not a step, a whole number") from error
    if not (step >= 1 and step.is_integer()):
      raise UserError(f"--at: {text} is not a step, a whole number from 1 on")
    steps.append(int(step))
  return steps


def _schedule(text: str, columns: "Columns", peak: float, warmup: int) -> tuple["np.ndarray", str]:
  """The rates of --schedule, and the text that names it."""
  from bigmodel.laws.schedules import notation, reading
  from bigmodel.readers import packed, tables

  if packed.suffix(text) in tables.SUFFIXES or Path(text).is_file():
    return reading.schedule(text, columns), text
  named = notation.parse(text, peak, warmup)
  return named.rates(), str(named)


def _show(made: "CurveForecast", grouped: bool, output: Output) -> None:
  _show_laws(made.laws, grouped, output)
  group = ("group",) if grouped else ()
  rows = [
    (*(row.group for _ in group), int(row.x or 0), f"{row.predicted:.4f}", _interval(row.interval90))
    for row in made.rows
  ]
  output.say(f"schedule: {made.schedule}")
  output.table("forecast", (*group, "step", "loss", "90% interval"), rows)
  output.notes(f"note: {text}" for text in made.warnings or ())


def _show_laws(laws: "list[ScheduleLaw]", grouped: bool, output: Output) -> None:
  group = ("group",) if grouped else ()
  rows = [(*(law.group for _ in group), law.name, f"{law.weight:.0%}", f"{law.backtest:.3%}") for law in laws]
  output.table("laws of the schedule", (*group, "law", "weight", "error on curves left out"), rows)


def _show_proposal(made: "DecayProposal", output: Output) -> None:
  _show_laws(made.laws, False, output)
  rows = [
    (
      f"proposed: {each.shape}" if each is made.best else each.name,
      each.start,
      f"{each.final * made.peak:.3g}",
      f"{each.predicted:.4f}",
      "-" if each is made.best else f"{each.difference:+.4f}",
      "-" if each is made.best else _interval(each.difference90),
    )
    for each in (made.best, *made.usual)
  ]
  output.say(f"{made.steps:,} steps, with a warm-up of {made.warmup:,} steps to {made.peak:.3g}")
  output.table("decays", ("decay", "from step", "to rate", "loss", "more loss", "90% interval"), rows)
  output.say(f"90% interval of the loss of the proposed decay: {_interval(made.best.interval90)}")
  if any(each.difference90[0] <= 0 for each in made.usual):
    output.say("differences whose interval includes 0 are not significant")
  output.say(f"rates below {made.lowest_fitted * made.peak:.3g} were not tried: no fitted curve goes there")
  output.notes(f"note: {text}" for text in made.warnings)


def _interval(ends: object) -> str:
  low, high = ends if isinstance(ends, tuple) else (float("nan"), float("nan"))
  return f"{low:.4f} - {high:.4f}" if low >= 0 else f"{low:+.4f} to {high:+.4f}"
