"""Collect sealed forecasts with their truths: errors, coverage by distance, and a calibration plot.

A folder of a study has its forecast and, once its target has run, the truth. --keep writes both to a small file, which
can be verified and scored without the study. Every seal is checked: that it is intact, that it was made before its
target started, and that the target's run carries its hash.
"""

import argparse
import math
from typing import TYPE_CHECKING

from bigmodel.cli import session
from bigmodel.cli.console import Facts, Output

if TYPE_CHECKING:
  from bigmodel.laws.ledger import Entry, Ledger

EXAMPLES = (
  "bigmodel ledger runs/quickstart",
  "bigmodel ledger runs/plain runs/gated --page=ledger.html",
  "bigmodel ledger runs/quickstart --keep=forecasts",
  "bigmodel ledger forecasts --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "folders", nargs="+", metavar="FOLDER", help="a study, a folder of kept forecasts, or one such file"
  )
  parser.add_argument("--keep", default="", metavar="DIR", help="also write each study's forecast and truth to a file")
  parser.add_argument("--page", default="", metavar="FILE.html", help="write a page with plots")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  import msgspec

  from bigmodel.study import ledger as ledgers

  ledger = ledgers.collect(arguments.folders)
  _show(ledger, output)
  if arguments.keep:
    kept = ledgers.keep(arguments.folders, arguments.keep)
    output.say(f"kept: {len(kept)} in {arguments.keep}")
  if arguments.page:
    from bigmodel.report import ledger as pages

    pages.write(arguments.page, ledger)
    output.say(f"page: {arguments.page}")
  return msgspec.to_builtins(ledger)


def _show(ledger: "Ledger", output: Output) -> None:
  from bigmodel.laws.ledger import NOMINAL

  if ledger.forecasts:
    about = [(one.study, one.question, one.family, one.fitted, f"{one.distance:.3g} x") for one in ledger.forecasts]
    output.table("studies", ("study", "question", "family", "runs", "beyond them"), about)
    columns = ("study", "forecast", "90% interval", "truth", "forecast / truth - 1", "inside", "score")
    output.table("sealed forecasts", columns, [_row(one) for one in ledger.forecasts])
    rows = [
      (
        one.distance,
        one.forecasts,
        *(_percent(one.coverage.get(level), 0) for level in NOMINAL),
        _percent(one.median_error),
        _percent(one.median_width),
        one.interval_score,
      )
      for one in ledger.totals
    ]
    levels = (f"{nominal:.0%}" for nominal in NOMINAL.values())
    output.table("share of truths inside", ("distance", "of", *levels, "error", "width", "score"), rows)
    output.say("error and width: medians, the width of 90% intervals in ln loss; score: mean interval score of these")
    output.say("every seal of these forecasts is intact, older than its target's run, and carried by that run")
  output.notes(f"no score: {one.where}: {one.why}" for one in ledger.without)
  output.notes(f"note: {note}" for note in ledger.notes)


def _row(one: "Entry") -> tuple[object, ...]:
  from bigmodel.laws.ledger import NOMINAL

  narrowest = next((f"the {NOMINAL[level]:.0%}" for level, inside in one.inside.items() if inside), "NONE")
  error = f"{100 * math.expm1(one.log_error):+.2f}%"
  interval = list(one.intervals["interval90"])
  return one.study, one.predicted, interval, one.actual, error, narrowest, one.interval_score


def _percent(share: float | None, digits: int = 2) -> str | None:
  return None if share is None else f"{100 * share:.{digits}f}%"
