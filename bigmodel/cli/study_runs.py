"""The common part of the verbs `study` and `sweep`: options for workers, the run itself, and the printed results."""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli.console import Facts, Output
from bigmodel.errors import RunsFailed, UserError

if TYPE_CHECKING:
  from bigmodel.config import Config
  from bigmodel.study import Study

SETTINGS = 20  # printed at most; the report has all


def add_workers(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workers",
    default="",
    metavar="KIND:N",
    help="train with N processes: local:N on this machine, ray:N or slurm:N on a cluster",
  )
  parser.add_argument(
    "--worker-options",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="an option of Ray or submitit, such as num_gpus=1 or timeout_min=240 (repeatable)",
  )
  parser.add_argument("--worker", default="", metavar="NAME", help="join a study that has begun as one more worker")
  parser.add_argument(
    "--retry-failed", "--retry", dest="retry", action="store_true", help="train failed and diverged runs again"
  )


def add_no_target(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--no-target",
    action="store_true",
    help="train and fit only: the forecast is sealed and its target trained by the same command without this option",
  )


def run(arguments: argparse.Namespace, config: "Config", study: "Study", output: Output | None) -> Facts:
  """Runs a study, or trains as one of its workers. `output` is None in processes that print nothing."""
  from bigmodel import config as configs
  from bigmodel import study as studies
  from bigmodel.parallel import hosts
  from bigmodel.study import folder
  from bigmodel.train.run import interruptible
  from bigmodel.workers.pool import Workers
  from bigmodel.workers.worker import command_of_workers

  workers = Workers.parse(arguments.workers, arguments.worker_options) if arguments.workers else None
  if workers and hosts.several():
    raise UserError(
      "--workers: a job of several processes cannot start workers; it can be a worker, with --worker=NAME"
    )
  quiet = output is None or output.quiet
  with interruptible() as stop:
    prepared = studies.prepare(config, study, arguments.workdir)
    prepared = dataclasses.replace(prepared, tests_target=not getattr(arguments, "no_target", False))
    hosts.require_same([configs.flatten(config), list(prepared.runs), arguments.retry, arguments.worker], "study")
    hosts.require_shared(prepared.workdir)
    if arguments.worker:
      studies.work(prepared, arguments.worker, quiet, stop)
      return {"worker": arguments.worker}
    command = command_of_workers(arguments.argv)
    report = studies.run_study(prepared, quiet, stop, arguments.retry, workers, command)
  if output is not None:
    _show(report, arguments.workdir, output)
  if problem := hosts.first(lambda: folder.why_none_finished(prepared.workdir)):
    raise RunsFailed(problem)
  return report


def _show(report: Facts, workdir: str, output: Output) -> None:
  for law in report["laws"]:
    rows = [(name, value, law["intervals"].get(name)) for name, value in law["params"].items()]
    output.table(f"{law['name']} ({law['convention']})", ("parameter", "value", "90% interval"), rows)
    if law.get("caution"):
      output.say(f"note: {law['caution']}")
  if report["forecast"]:
    _show_forecast(report["forecast"], report["noise_floor"], output)
  if report["sweep"]:
    _show_leaderboard(report["sweep"], output)
  output.say(f"report: {Path(workdir) / 'report.html'}")


def _show_forecast(forecast: Facts, noise: Facts | None, output: Output) -> None:
  from bigmodel.laws import reach

  outcome = "not run yet"
  if forecast["actual"] is not None:
    outcome = f"{forecast['actual']:.4f}, {'inside' if forecast['inside'] else 'OUTSIDE'}"
  target = forecast["target"]
  rows = [
    ("N, D, C", f"{target['N']:,}, {target['D']:,}, {target['C']:.3g}"),
    ("beyond the runs", reach.describe(math.exp(forecast["parts"].get("distance") or 0.0))),
    ("forecast loss", forecast["predicted"]),
    ("90% interval", forecast["interval90"]),
    ("truth", outcome),
    ("noise between seeds", noise["std"] if noise else None),
  ]
  output.table(f"forecast sealed {forecast['sealed_at'][:19]}", ("quantity", "value"), rows)


def _show_leaderboard(board: Facts, output: Output) -> None:
  shown = board["cells"][:SETTINGS]
  rows = [
    (
      place if cell["finished"] or cell["stopped"] else "",  # no place for a setting that only diverged
      *(cell["overrides"].get(name) for name in board["axes"]),
      _runs_of(cell),
      cell["loss"],
      cell["std"],
      _verdict_of(cell),
    )
    for place, cell in enumerate(shown, 1)
  ]
  more = len(board["cells"]) - len(rows)
  title = f"leaderboard{f', {more} more in the report' if more else ''}"
  output.table(title, ("place", *board["axes"], "runs", "loss", "± between seeds", "verdict"), rows)
  rates = [
    (
      ", ".join(f"{name} {value}" for name, value in row["others"].items()) or "all",
      _best_rate_of(row),
      row["interval90"],
      row["sensitivity"],
    )
    for row in board["learning_rates"][:SETTINGS]
  ]
  if rates:
    output.table("learning rates", ("setting", "best", "90% interval", "sensitivity"), rates)
  if board["noise"] is not None:
    compared = sum(cell["worse"] is not None for cell in board["cells"])
    output.say(
      f"noise between seeds {board['noise']:.2g}; between two settings of that noise, differences below"
      f" {board['resolution']:.2g} are not significant. With"
      f" 90% confidence the best setting is among {board['candidates']} of {compared}, and"
      f" {compared - board['alike']} are worse than others."
    )


def _runs_of(cell: Facts) -> str:
  """Describes how many runs of a setting finished, diverged or were stopped."""
  ends = [f"{cell['diverged']} diverged"] if cell["diverged"] else []
  if cell["stopped"]:
    loss = "" if cell["loss_at_stop"] is None else f" with {cell['loss_at_stop']:.4g}"
    ahead = f", forecast {cell['forecast']:.4g}" if cell["forecast"] is not None else ""
    ends.append(f"{cell['stopped']} stopped at step {cell['stopped_at']:,}{loss}{ahead}")
  whole = f"{cell['finished']} of {cell['runs']}" if cell["finished"] < cell["runs"] else str(cell["finished"])
  return f"{whole} ({', '.join(ends)})" if ends else whole


def _verdict_of(cell: Facts) -> str:
  if cell["worse"]:
    return "worse"
  if cell["may_be_best"] is None:
    return ""
  return "may be the best" if cell["may_be_best"] else "unlikely the best"


def _best_rate_of(row: Facts) -> str | float:
  if row["flat"]:
    return f"anywhere between{', or beyond' if row['edge'] else ''}"
  return f"{row['best_tried']:.4g}, at an edge" if row["edge"] else row["best"]
