"""Compare published numbers of a paper with ours.

NAME is a file of experiments/, which states a published claim and checks it.
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
  rows = [(result.what, _digits(result.published), _digits(result.ours), result.verdict) for result in results]
  output.table(arguments.name, ("quantity", "published", "ours", "verdict"), rows)
  facts = [
    {"what": result.what, "published": result.published, "ours": result.ours, "verdict": result.verdict}
    for result in results
  ]
  return {"name": arguments.name, "claim": claim, "results": facts}


def _digits(value: float | None) -> str | None:
  return None if value is None else f"{value:.6g}"
