"""Write a run's weights as Hugging Face files."""

import argparse

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = ("bigmodel export --workdir=runs/gpt2 --to=exported --type=gpt2",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument("--to", required=True, metavar="FOLDER", help="a new or empty folder")
  parser.add_argument(
    "--type",
    required=True,
    choices=("gpt2", "bert", "llama", "mistral", "mixtral", "vit"),
    help="the architecture as Hugging Face names it",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.train import interchange

  exported = interchange.export_weights(arguments.workdir, arguments.to, arguments.type)
  facts = {"to": exported.folder, "type": exported.type, "tensors": exported.tensors, "step": exported.step}
  facts["tokenizer"] = exported.tokenizer
  output.table(arguments.workdir, ("field", "value"), list(facts.items()))
  output.notes(exported.notes)
  facts["notes"] = list(exported.notes)
  return facts
