"""Prepare the data of a config and describe them.

Tokenized text and decoded examples are kept in the cache ($BIGMODEL_CACHE) for the runs that follow.
"""

import argparse

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = (
  "bigmodel data --config=configs/quickstart.py",
  "bigmodel data --config=configs/quickstart.py --card=card.html",
  "bigmodel data --config=configs/quickstart.py --config.data.name=text_files --config.data.path='corpus/*.jsonl'",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser)
  parser.add_argument("--card", default="", metavar="FILE.html", help="also write a page with statistics and samples")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  session.start()
  from bigmodel import data
  from bigmodel.data import corpus, pipeline

  config, _ = session.load(arguments)
  data.check(config)
  prepared = pipeline.prepare(config, log_notes=False)  # they are printed below
  if arguments.card:
    from bigmodel.report import card

    card.write(arguments.card, prepared, corpus.tokenizer_of(config) if config.data.kind == "text" else None)
  _show(prepared.card, config.data.kind == "text", output)
  return prepared.card


def _show(card: Facts, is_text: bool, output: Output) -> None:
  from bigmodel.data import corpus_files

  columns = ("documents", "bytes", "tokens") if is_text else ("examples",)
  if is_text:
    title = f"{card['name']} as {card['tokenizer']}, {card['vocab']:,} different tokens"
  else:
    title = f"{card['name']}: {card['inputs']} -> {card['outputs']}"
  rows = [(split, *(facts[name] for name in columns)) for split, facts in card["splits"].items()]
  output.table(f"{title}, sha256 {card['sha256'][:12]}", ("split", *columns), rows)
  for step, changed in card.get("steps", {}).items():
    total = sum(changed.values()) if isinstance(changed, dict) else changed
    if total:
      output.say(f"{step}: {total:,}")
  output.notes(f"note: {note}" for note in card.get("notes", ()))
  if card.get("passed_over"):
    output.say(f"passed over: {corpus_files.described(card['passed_over'])}")
