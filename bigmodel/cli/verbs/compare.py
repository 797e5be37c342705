"""Compare two recipes: how much of A's compute equals B's, by scale, and where the two cross."""

import argparse
from typing import TYPE_CHECKING

from bigmodel.cli import columns, session
from bigmodel.cli.console import Facts, Output

if TYPE_CHECKING:
  from bigmodel.laws.compare import Comparison

EXAMPLES = (
  "bigmodel compare runs/plain runs/gated --report=page.html",
  "bigmodel compare plain.csv gated.csv --n=params_total --d=tokens --loss=loss_eval",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("a", metavar="A", help="a study's folder, or a CSV with one row per run")
  parser.add_argument("b", metavar="B", help="the other recipe; its compute is expressed as a multiple of A's")
  columns.add(parser)
  parser.add_argument("--report", default="", metavar="FILE.html", help="write a page with plots")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from msgspec import structs

  from bigmodel.laws import compare, facts

  a, b = (columns.runs(arguments, path) for path in (arguments.a, arguments.b))
  warnings = [*(f"A: {note}" for note in a.notes), *(f"B: {note}" for note in b.notes)]
  warnings += compare.far_apart(a.points, b.points)
  comparison = structs.replace(compare.compare(a.points, b.points), warnings=warnings)
  _show(comparison, f"A {arguments.a}, B {arguments.b}", output)
  if arguments.report:
    from bigmodel.report import recipes

    recipes.write(arguments.report, arguments.a, arguments.b, comparison)
    output.say(f"page: {arguments.report}")
  return facts.to_json(comparison)


def _show(comparison: "Comparison", recipes: str, output: Output) -> None:
  rows = [
    (row.C, row.loss_a, row.loss_b, row.multiplier, row.interval90, "yes" if row.beyond else "")
    for row in comparison.rows
  ]
  title = f"{recipes}: loss at the best size, and B's compute as a multiple of A's"
  output.table(title, ("C", "A", "B", "multiplier", "90% interval", "beyond the runs"), rows)
  crossing = comparison.crossing
  if crossing.interval90:
    at = "they do not cross near these scales" if crossing.C is None else f"they cross at {crossing.C:.3g} FLOPs"
    low, high = crossing.interval90
    share = crossing.share_of_draws
    output.say(f"{at} ({low:.3g} to {high:.3g} in the {share:.0%} of the resamples that cross)")
  output.say(comparison.verdict)
  output.notes(f"note: {warning}" for warning in comparison.warnings)
