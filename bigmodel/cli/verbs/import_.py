"""Make a run from Hugging Face files (GPT-2, BERT, Llama, Mistral, Mixtral, ViT)."""

import argparse

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = (
  "bigmodel import downloads/gpt2 --workdir=runs/gpt2",
  "bigmodel import downloads/llama --workdir=runs/llama --context=2048",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_workdir(parser)
  parser.add_argument("source", metavar="FOLDER", help="a folder with config.json and *.safetensors")
  parser.add_argument(
    "--context",
    type=options.whole_number(1),
    default=0,
    metavar="N",
    help="tokens that the run reads at once, fewer than the model's (default: the model's)",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel.train import interchange

  run = interchange.import_weights(arguments.source, arguments.workdir, arguments.context)
  facts = {"run_id": run.run_id, "family": run.family, "from": run.source_type, **run.params, "context": run.context}
  output.table(arguments.workdir, ("field", "value"), list(facts.items()))
  output.notes(run.notes)
  facts["notes"] = list(run.notes)
  return facts
