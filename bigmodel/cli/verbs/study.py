"""Plan, train, fit, forecast, score and report a study, or resume it.

The config file defines get_study(config): a design of small runs, the laws to fit to them, and a target to forecast.
The forecast is sealed before the run that tests it. Rerunning the command trains only what is missing.
"""

import argparse

from bigmodel.cli import options, session, study_runs
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

EXAMPLES = (
  "bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart",
  "bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart --retry-failed",
  "bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart --no-target",
  "bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart --workers=local:2",
  "bigmodel study --config=configs/quickstart.py --workdir=runs/quickstart --worker=helper",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser)
  options.add_workdir(parser)
  options.add_hosts(parser)
  study_runs.add_workers(parser)
  study_runs.add_no_target(parser)


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  is_first = session.join(arguments)
  config, study = session.load(arguments)
  if study is None:
    raise UserError(f"--config: {arguments.config} has no get_study(config); use bigmodel train")
  return study_runs.run(arguments, config, study, output if is_first else None)
