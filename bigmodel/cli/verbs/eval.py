"""Evaluate a run's newest sound checkpoint.

Prints the loss and metrics on the held-out data of the run, with 90% intervals; or the score on a file of
multiple-choice questions or of completions. The evaluation uses the run's mesh, shrunk to the devices of this machine.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.train.trained import Trained

EXAMPLES = (
  "bigmodel eval --workdir=runs/one",
  "bigmodel eval --workdir=runs/one --choices=questions.jsonl --skip-long",
  "bigmodel eval --workdir=runs/one --completions=pairs.jsonl",
)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Metrics with 90% intervals, and tables such as a confusion matrix."""

  values: dict[str, float]
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  details: Mapping[str, Sequence[Facts]] = dataclasses.field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument(
    "--choices",
    default="",
    metavar="FILE.jsonl",
    help='answer multiple-choice questions: lines {"question": ..., "choices": [...], "answer": 0}',
  )
  parser.add_argument(
    "--completions",
    default="",
    metavar="FILE.jsonl",
    help='BLEU and chrF of completions: lines {"prompt": ..., "completion": ...}',
  )
  parser.add_argument(
    "--skip-long",
    action="store_true",
    help="leave out, and count, lines of --choices and --completions that do not fit in the context",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.train import trained

  if arguments.choices and arguments.completions:
    raise UserError("--choices, --completions: use one of them")
  if arguments.skip_long and not (arguments.choices or arguments.completions):
    raise UserError("--skip-long: is for --choices and --completions")
  model = trained.load(arguments.workdir, generating=bool(arguments.completions))
  if arguments.completions:
    scores = Scores(*trained.score_completions(model, arguments.completions, arguments.skip_long))
  elif arguments.choices:
    scores = Scores(trained.score_choices(model, arguments.choices, arguments.skip_long))
  else:
    scores = _held_out(model)
  if not math.isfinite(scores.values.get("loss", 0.0)):
    raise UserError(f"{arguments.workdir}: the loss of held-out data is not finite at step {model.step}")
  finite = {name: value for name, value in scores.values.items() if math.isfinite(value)}
  rows = [(name, value, scores.intervals.get(name)) for name, value in finite.items()]
  output.table(arguments.workdir, ("metric", "value", "90% interval"), rows)
  for name, table in scores.details.items():
    output.table(name, list(table[0]), [list(row.values()) for row in table])
  absent = dict.fromkeys(scores.values)
  return {**absent, **finite, "intervals": scores.intervals, **scores.details, "step": model.step}


def _held_out(model: "Trained") -> Scores:
  from bigmodel.train import evaluate, trained

  rows = trained.held_out_rows(model)
  evaluation = evaluate.evaluate(model.program, model.params, model.config, rows)
  losses = {
    "loss": evaluation.loss,
    "loss_stderr": evaluation.loss_stderr,
    "bits_per_byte": evaluation.bits_per_byte,
  }
  return Scores({**losses, **evaluation.metrics}, evaluation.intervals, evaluation.details)
