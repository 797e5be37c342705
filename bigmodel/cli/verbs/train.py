"""Train one run, or resume it.

A run is one config in one folder. Ctrl-C and SIGTERM save a checkpoint and exit with 75; rerunning the command resumes
with the same bits. A folder that belongs to another config is refused.
"""

import argparse

from bigmodel.cli import options, session
from bigmodel.cli.console import Facts, Output

EXAMPLES = (
  "bigmodel train --config=configs/quickstart.py --workdir=runs/one --config.model.width=96 --config.train.steps=2000",
  "bigmodel train --config=configs/quickstart.py --workdir=runs/profiled --config.train.steps=200 --profile=5",
  "bigmodel train --config=configs/quickstart.py --workdir=runs/supervised --config.train.steps=2000 --restarts=5",
)
SHOWN = (
  "run_id",
  "status",
  "params_total",
  "tokens",
  "loss_train",
  "loss_eval",
  "loss_eval_stderr",
  "bits_per_byte",
  "seconds",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser)
  options.add_workdir(parser)
  options.add_hosts(parser)
  parser.add_argument(
    "--profile",
    type=options.whole_number(0),
    default=0,
    metavar="STEPS",
    help="write a trace of that many steps to logs/profile",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  is_first = session.join(arguments)
  from bigmodel import record
  from bigmodel.train import advice, configs, single_run

  config, _ = session.load(arguments)
  quiet = output.quiet or not is_first
  ended = single_run.train_single_run(config, arguments.workdir, quiet, arguments.profile)
  facts = record.to_json(ended)
  if is_first:
    _show(arguments.workdir, facts, output)
    if ended.status == "diverged":
      what = advice.after_divergence(configs.read_config(arguments.workdir), ended)
      output.say(f"the run diverged: {ended.error}; {what}, in another --workdir")
  if not ended.finished:
    output.fail()
  return facts


def _show(title: str, facts: Facts, output: Output) -> None:
  rows = [(name, facts[name], None) for name in SHOWN if facts[name] is not None]
  rows += [(name, value, facts["intervals"].get(name)) for name, value in facts["metrics"].items()]
  rows += [("error", facts["error"], None)] if facts["error"] else []
  output.table(title, ("field", "value", "90% interval"), rows)
