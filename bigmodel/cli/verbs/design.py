"""Propose the next run: the one that reduces the variance of a forecast most for its compute.

With --schedule: propose the decay of the learning rate that ends at the lowest loss, from loss curves.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import columns, forecasters, loss_curves, options, session
from bigmodel.cli.console import Facts, Output, show
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.design import Proposal
  from bigmodel.laws.measured import MeasuredRuns

EXAMPLES = (
  "bigmodel design runs.csv --n=params_total --d=tokens --loss=loss_eval --target=1e14",
  "bigmodel design points.csv --n=params --d=tokens --target=1e25 --cap=1e23",
  "bigmodel design runs/quickstart --target=1e14",
  "bigmodel design curves.csv --schedule --steps=72000",
  "bigmodel design curves.csv --schedule --tokens=1.5e9 --d=tokens",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("points", metavar="POINTS.csv|STUDY", help="a CSV with one row per run, or a study's folder")
  columns.add(parser)
  columns.add_group(parser)
  columns.add_force(parser)
  loss_curves.add(parser)
  parser.add_argument(
    "--schedule",
    action="store_true",
    help="design the decay of the learning rate for a run of --steps, --tokens or --target",
  )
  parser.add_argument("--steps", type=options.whole_number(1), metavar="N", help="with --schedule: length of the run")
  parser.add_argument(
    "--tokens",
    type=options.positive_number,
    metavar="N",
    help="with --schedule: tokens of the run; for a CSV, --d names the column of the tokens up to each row",
  )
  parser.add_argument(
    "--target",
    type=options.positive_number,
    metavar="FLOPS",
    help="the budget at which the loss is forecast; with --schedule that of the run, and for a CSV --c (or --n and"
    " --d) names the column of the FLOPs up to each row",
  )
  parser.add_argument(
    "--cap",
    type=options.positive_number,
    metavar="FLOPS",
    help="compute of the next run, at most (default: a tenth of the target)",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from msgspec import structs

  from bigmodel.laws import design, facts

  if arguments.schedule:
    return facts.to_json(loss_curves.design(arguments, output))
  if arguments.tokens or arguments.steps:
    raise UserError("--steps, --tokens: are for --schedule; --target is the budget at which the loss is forecast")
  if arguments.target is None:
    raise UserError("--target: missing; give the budget at which the loss is forecast, or --schedule with --steps")
  cap = arguments.cap or arguments.target / 10
  if Path(arguments.points).is_dir():
    columns.refuse(arguments)
  groups, notes = columns.groups(arguments, arguments.points)
  target, force = arguments.target, arguments.force

  def propose(name: str, runs: "MeasuredRuns") -> "Proposal":
    del name
    far = runs.check_budget(f"--target={target:g}", target, force)
    forecaster, about = forecasters.fit(runs, ())
    proposal = design.design(forecaster, target, cap)
    off = runs.off_line(f"--target={target:g}", proposal.target.N, proposal.target.D)
    return structs.replace(proposal, warnings=[*notes, *about, *far, *off])

  made, unfit = forecasters.each_group(groups, propose)
  for name, proposal in made.items():
    prefix = f"{name}: " if name else ""
    _show(proposal, prefix, target, output)
    if proposal.next is None:
      output.say(f"{prefix}no run of up to {cap:.3g} FLOPs reduces the variance by {design.WORTH:.0%}; raise --cap")
    output.notes(f"note: {prefix}{warning}" for warning in proposal.warnings)
  output.notes(f"note: {warning}" for warning in unfit)
  if not arguments.group:
    return facts.to_json(made[""])
  return {"groups": {name: facts.to_json(proposal) for name, proposal in made.items()}, "warnings": [*notes, *unfit]}


def _show(proposal: "Proposal", prefix: str, target: float, output: Output) -> None:
  rows = [
    (
      candidate.C,
      candidate.N,
      candidate.D,
      f"{candidate.reduction:.1%}",
      candidate.reduction_per_flop,
      "the most for its compute" if candidate == proposal.next else "",
    )
    for candidate in proposal.candidates
  ]
  from bigmodel.laws import reach

  what = f"the forecast at {target:.3g} FLOPs (loss {proposal.predicted:.4f})"
  title = f"{prefix}candidates for one more run, to improve {what}"
  output.table(title, ("C", "N", "D", "less variance", "per FLOP", ""), rows)
  edges = [(e.C, e.smallest, e.largest, e.N, "" if e.inside else "not inside") for e in proposal.edges]
  if edges:
    output.table("minima of the budgets so far", ("C", "smallest N", "largest N", "minimum", ""), edges)
  best = proposal.target
  output.say(
    f"{prefix}best size at the target: N {show(best.N)} (90% {show(best.N_interval90)}), D {show(best.D)} (90%"
    f" {show(best.D_interval90)})"
  )
  output.say(f"{prefix}{target:.4g} FLOPs are {reach.sentence(proposal.beyond)}")
  output.say(
    f"{prefix}standard deviation of that forecast: {proposal.sd:.2%} (parameters {proposal.parts.parameters:.2%},"
    f" discrepancy {proposal.parts.discrepancy:.2%}); of one run {proposal.noise:.2%}"
  )
