"""Continue a text with a trained decoder, from its run's newest sound checkpoint."""

import argparse
import dataclasses
import math

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

EXAMPLES = (
  "bigmodel generate --workdir=runs/one --prompt='def main(' --tokens=40 --temperature=0.8 --top-p=0.9",
  "bigmodel generate --workdir=runs/one --prompt='import ' --tokens=40 --samples=3 --seed=1",
  "bigmodel generate --workdir=runs/one --prompt='class ' --tokens=20 --beams=4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  at_least_one = options.whole_number(1)
  parser.add_argument("--prompt", default="", metavar="TEXT", help="the text to continue")
  parser.add_argument("--tokens", type=at_least_one, default=64, metavar="N", help="number of new tokens (default: 64)")
  parser.add_argument(
    "--temperature", type=float, default=1.0, help="0 takes the likeliest token each time (default: 1)"
  )
  parser.add_argument(
    "--top-k", type=options.whole_number(0), default=0, metavar="K", help="sample among the K likeliest (default: all)"
  )
  parser.add_argument(
    "--top-p", type=float, default=1.0, metavar="P", help="sample among the fewest tokens with probability P together"
  )
  parser.add_argument(
    "--beams", type=at_least_one, default=1, metavar="W", help="search W sequences at once instead of sampling"
  )
  parser.add_argument("--samples", type=at_least_one, default=1, metavar="N", help="number of texts (default: 1)")
  parser.add_argument(
    "--seed",
    type=options.whole_number(0, options.LARGEST_SEED),
    default=0,
    metavar="N",
    help="seed of the samples (default: 0)",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  if not 0 < arguments.top_p <= 1:
    raise UserError(f"--top-p: {arguments.top_p:g} is not in (0, 1]")
  if not 0 <= arguments.temperature < math.inf:
    raise UserError(f"--temperature: {arguments.temperature:g} is not a number from 0 up")
  session.start()
  from bigmodel.train import trained

  fields = [field.name for field in dataclasses.fields(trained.Sampling)]
  sampling = trained.Sampling(**{name: getattr(arguments, name) for name in fields})
  model = trained.load(arguments.workdir, generating=True)
  continuations = trained.generate(model, arguments.prompt, sampling)
  for continuation in continuations:
    output.write(f"{arguments.prompt}{continuation.text}\n[log-probability {continuation.log_probability:.3f}]\n")
  return {
    "prompt": arguments.prompt,
    "step": model.step,
    "continuations": [dataclasses.asdict(continuation) for continuation in continuations],
  }
