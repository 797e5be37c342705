"""The verbs `forecast` and `design` for whole loss curves: options, and what is printed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.cli.console import Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from collections.abc import Sequence

  import numpy as np

  from bigmodel.laws.schedules.answers import CurveForecast, ScheduleLaw
  from bigmodel.laws.schedules.budgets import PerStep
  from bigmodel.laws.schedules.decays import DecayProposal, DecayProposals
  from bigmodel.laws.schedules.reading import Columns, CurveSets


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
  from bigmodel.laws.schedules import answers, groups
  from bigmodel.laws.schedules import forecast as forecasts

  _refuse(arguments, ("n", "d", "c"))
  steps = _steps(arguments.at)
  read, columns = _read(arguments, {})
  forecasters, notes = groups.fit(arguments.law, read, Path(arguments.points).is_dir())
  found, text = [], ""
  for group, forecaster in forecasters.items():
    rates, text = _schedule(arguments.schedule, columns, forecaster.units.peak, forecaster.warmup)
    notes += forecasts.check(forecaster, rates, "--schedule")
    of_group = steps or [len(rates) - 1]
    notes += forecasts.check_steps(forecaster, rates, of_group, "--at")
    found += answers.rows(forecaster, rates, of_group, group)
  source = answers.Source(arguments.points, read.sha256)
  made = answers.assemble(source, text, forecasters, found, list(dict.fromkeys(notes)))
  _show(made, len(read.groups) > 1 or bool(arguments.group), output)
  return made


def design(arguments: argparse.Namespace, output: Output) -> "DecayProposal | DecayProposals":
  """Proposes the decay for --steps, --tokens or --target, from the curves of a CSV or of each set of runs."""
  from bigmodel.laws.schedules import decays, groups

  _refuse(arguments, ("cap",))
  given = [name for name in ("steps", "tokens", "target") if getattr(arguments, name) is not None]
  if len(given) != 1:
    what = f"not {' and '.join(f'--{name}' for name in given)}" if given else "none is given"
    raise UserError(f"--schedule: needs one budget, --steps=N, --tokens=N or --target=FLOPS; {what}")
  scales = {name: column for name in "NDC" if (column := getattr(arguments, name.lower()))}
  if scales and given == ["steps"]:
    raise UserError(f"--{next(iter(scales)).lower()}: is for --tokens or --target; the budget is --steps")
  read, _ = _read(arguments, scales)
  of_folder = Path(arguments.points).is_dir()
  steps = {group: _steps_of_budget(arguments, per_step) for group, per_step in read.per_step.items()}
  forecasters, notes = groups.fit("", read, of_folder)
  proposals = []
  for group, forecaster in forecasters.items():
    per_step = read.per_step[group]
    proposals.append(decays.propose(forecaster, steps[group], forecaster.warmup, notes, group, per_step))
    _show_proposal(proposals[-1], output)
  output.notes(f"note: {text}" for text in dict.fromkeys(text for each in proposals for text in each.warnings))
  return decays.DecayProposals(proposals) if of_folder else proposals[0]


def _steps_of_budget(arguments: argparse.Namespace, per_step: "PerStep") -> int:
  from bigmodel.laws.schedules import budgets

  if arguments.tokens is not None:
    missing = "the tokens of a step are unknown; name their column with --d, the sum up to each row"
    return budgets.steps("--tokens", arguments.tokens, per_step.tokens, missing)
  if arguments.target is not None:
    missing = "the FLOPs of a step are unknown; name their column with --c, the sum up to each row, or --n and --d"
    return budgets.steps("--target", arguments.target, per_step.flops, missing)
  return arguments.steps


def _refuse(arguments: argparse.Namespace, more: "Sequence[str]") -> None:
  """Refuses options that are of no use for loss curves, `more` among them."""
  others = ("x", "stderr", "drop_largest", "reach", "max_params", "max_tokens", "served", *more)
  for name in others:
    if getattr(arguments, name, None):
      raise UserError(f"--{name.replace('_', '-')}: cannot be used with --schedule")
  if getattr(arguments, "intervals", "bootstrap") != "bootstrap":
    raise UserError("--intervals: cannot be used with --schedule")
  if Path(arguments.points).is_dir():
    names = ("curve", "step", "lr", "group", "warmup", "n", "d", "c")
    defaults = {"curve": "curve", "step": "step", "lr": "lr"}
    for name in names:
      if (getattr(arguments, name, None) or defaults.get(name)) != defaults.get(name):
        raise UserError(f"--{name}: is for a CSV; {arguments.points} is a folder, whose runs have it")


def _read(arguments: argparse.Namespace, scales: dict[str, str]) -> tuple["CurveSets", "Columns"]:
  """The curves of a CSV, whose `scales` (N, D, C) have these columns, or of the runs in a folder."""
  from bigmodel.laws.schedules import reading

  group = getattr(arguments, "group", "")
  columns = reading.Columns(arguments.curve, arguments.step, arguments.lr, arguments.loss, group, scales)
  if not Path(arguments.points).is_dir():
    return reading.read(arguments.points, columns, arguments.warmup), columns
  from bigmodel.study import curves

  loss = "" if arguments.loss == reading.Columns.loss else arguments.loss
  return curves.read(arguments.points, loss), columns


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
  amounts = [f"{made.steps:,} steps"]
  amounts += [f"{made.tokens:.4g} tokens"] if made.tokens is not None else []
  amounts += [f"{made.flops:.4g} FLOPs"] if made.flops is not None else []
  about = f"{', '.join(amounts)}, with a warm-up of {made.warmup:,} steps to {made.peak:.3g}"
  output.say(f"{made.group}: {about}" if made.group else about)
  output.table("decays", ("decay", "from step", "to rate", "loss", "more loss", "90% interval"), rows)
  output.say(f"90% interval of the loss of the proposed decay: {_interval(made.best.interval90)}")
  if any(each.difference90[0] <= 0 < each.difference90[1] for each in made.usual):
    output.say("differences whose interval includes 0 are not significant")
  output.say(f"rates below {made.lowest_fitted * made.peak:.3g} were not tried: no fitted curve goes there")


def _interval(ends: object) -> str:
  low, high = ends if isinstance(ends, tuple) else (float("nan"), float("nan"))
  return f"{low:.4f} - {high:.4f}" if low >= 0 else f"{low:+.4f} to {high:+.4f}"
