"""Show the state of every run of a study, or of one run."""

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.cli.console import Facts, Output

if TYPE_CHECKING:
  from bigmodel.study.folder import Progress, RunStatus

EXAMPLES = (
  "bigmodel status --workdir=runs/quickstart",
  "bigmodel status --workdir=runs/quickstart --watch",
  "bigmodel status --workdir=runs/quickstart --json",
)
FIELDS = ("run_id", "state", "step", "steps", "seconds", "seconds_left", "loss_eval")
COLUMNS = ("run", "state", "step", "of", "seconds", "left", "loss")
SCREEN = 20  # rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument(
    "--watch",
    type=options.seconds,
    nargs="?",
    const=5.0,
    default=0.0,
    metavar="SECONDS",
    help="refresh every few seconds (default: 5) until all runs have ended",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  import msgspec

  from bigmodel import record
  from bigmodel.study import folder

  while True:
    rows = folder.status(arguments.workdir)
    progress = folder.progress(arguments.workdir, rows)
    if arguments.watch:
      output.clear()
    shown = [row for row in rows if row.state == "running"][:SCREEN] if arguments.watch else rows
    _show(arguments.workdir, shown, progress, output)
    if not arguments.watch or all(row.state in record.STATUSES for row in rows):
      return {"runs": msgspec.to_builtins(rows), **msgspec.to_builtins(progress)}
    time.sleep(arguments.watch)


def _show(workdir: str, rows: Sequence["RunStatus"], progress: "Progress", output: Output) -> None:
  from bigmodel.train.display import duration

  states = ", ".join(f"{count} {state}" for state, count in progress.states.items())
  output.table(f"{workdir}: {states}", COLUMNS, [[getattr(row, name) for name in FIELDS] for row in rows])
  for failure in progress.failures[:10]:
    output.say(f"{failure.run_id}  {failure.error}")
  if progress.expected_seconds:
    spent, planned = duration(progress.seconds), duration(progress.expected_seconds_of_done)
    left = duration(progress.seconds_left)
    output.say(f"{spent} of training so far, for which the plan expected {planned}; about {left} left")
