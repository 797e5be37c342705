"""Propose the next run: the one that reduces the variance of a forecast most for its compute."""

import argparse

from bigmodel.cli import columns, forecasters, options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = (
  "bigmodel design runs.csv --n=params_total --d=tokens --loss=loss_eval --target=1e14",
  "bigmodel design points.csv --n=params --d=tokens --target=1e25 --cap=1e23",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("points", metavar="POINTS.csv", help="a CSV with one row per run")
  columns.add(parser)
  parser.add_argument(
    "--target", type=options.positive_number, required=True, metavar="FLOPS", help="the budget of the forecast"
  )
  parser.add_argument(
    "--cap",
    type=options.positive_number,
    metavar="FLOPS",
    help="compute of the next run, at most (default: a tenth of the target)",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.laws import design

  cap = arguments.cap or arguments.target / 10
  forecaster, fitted = forecasters.fit(columns.source(arguments, arguments.points), (), output)
  facts = design.design(fitted, forecaster, arguments.target, cap)
  _show(facts, arguments.target, output)
  if facts["next"] is None:
    output.say(f"no run of up to {cap:.3g} FLOPs takes {design.WORTH:.0%} off the variance: raise --cap")
  return facts


def _show(facts: Facts, target: float, output: Output) -> None:
  rows = [
    (
      row["C"],
      row["N"],
      row["D"],
      f"{row['reduction']:.1%}",
      row["reduction_per_flop"],
      "the most for its compute" if row == facts["next"] else "",
    )
    for row in facts["candidates"]
  ]
  title = f"one more run, for the forecast at {target:.3g} FLOPs (loss {facts['predicted']:.4f})"
  output.table(title, ("C", "N", "D", "less variance", "per FLOP", ""), rows)
  edges = [(e["C"], e["smallest"], e["largest"], e["N"], "" if e["inside"] else "not inside") for e in facts["edges"]]
  if edges:
    output.table("minima of the budgets so far", ("C", "smallest N", "largest N", "minimum", ""), edges)
  parts = ", ".join(f"{name} {value:.2%}" for name, value in facts["parts"].items())
  output.say(f"standard deviation of that forecast: {facts['sd']:.2%} ({parts}); of one run {facts['noise']:.2%}")
