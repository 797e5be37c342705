"""Compare published numbers of a paper with ours.

NAME is a file of experiments/, which says what was claimed and how it is checked.
"""

import argparse

from bigmodel.cli import session
from bigmodel.cli.console import Facts, Output

EXAMPLES = (
  "bigmodel reproduce chinchilla_refit",
  "bigmodel reproduce ladder --data=published_points",
  "bigmodel reproduce mup_transfer --workdir=runs/mup_transfer",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("name", metavar="NAME", help="an experiment: experiments/NAME.py")
  parser.add_argument(
    "--data", default="", metavar="DIR", help="published points (default: $BIGMODEL_SCALING_DATA, or a download)"
  )
  parser.add_argument(
    "--workdir", default="", metavar="DIR", help="folder of experiments that train (default: runs/NAME)"
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel import experiments

  claim, results = experiments.run(arguments.name, arguments.data, arguments.workdir, output.quiet)
  output.say(claim.rsplit("\n\n", 1)[0])
  rows = [(one.what, _digits(one.published), _digits(one.ours), one.verdict) for one in results]
  output.table(arguments.name, ("what", "published", "ours", "verdict"), rows)
  facts = [{"what": one.what, "published": one.published, "ours": one.ours, "verdict": one.verdict} for one in results]
  return {"name": arguments.name, "claim": claim, "results": facts}


def _digits(value: float | None) -> str | None:
  return None if value is None else f"{value:.6g}"
