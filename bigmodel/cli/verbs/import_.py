"""Make a run from Hugging Face files (GPT-2, BERT, Llama, Mixtral, ViT)."""

import argparse

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = ("bigmodel import downloads/gpt2 --workdir=runs/gpt2",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument("source", metavar="FOLDER", help="a folder with config.json and *.safetensors")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.train import interchange

  run = interchange.import_weights(arguments.source, arguments.workdir)
  facts = {"run_id": run.run_id, "family": run.family, "from": run.source_type, **run.params}
  output.table(arguments.workdir, ("field", "value"), list(facts.items()))
  return facts
