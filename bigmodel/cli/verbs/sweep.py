"""Train a config at every point of some axes, or resume; ends in a leaderboard.

A sweep is a study without a law. Rerunning it with more points or seeds only trains the additional runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import options, session, study_runs
from bigmodel.cli.console import Facts, Output
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.study import Study

SWEEP = "bigmodel sweep --config=configs/quickstart.py --config.train.steps=300"
EXAMPLES = (
  f"{SWEEP} --workdir=runs/rates --axis optim.lr=log:1e-3:6.4e-2:7 --axis model.width=16,32 --axis model.head_size=8",
  f"{SWEEP} --workdir=runs/seeds --axis optim.lr=0.002,0.004,0.008 --seeds=3 --workers=local:2",
  f"{SWEEP} --workdir=runs/early --axis optim.lr=0.001,0.004,0.016,0.064 --early-stopping=0.95",
  f"{SWEEP} --workdir=runs/sobol --axis optim.lr=log:1e-4:1e-1 --axis optim.beta2=lin:0.9:0.999 --points=16",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_config(parser)
  options.add_workdir(parser)
  options.add_hosts(parser)
  study_runs.add_workers(parser)
  parser.add_argument(
    "--axis",
    action="append",
    default=[],
    metavar="FIELD=V,V,...",
    help="values of a field, or FIELD=log:LOW:HIGH:COUNT or FIELD=lin:LOW:HIGH:COUNT (repeatable)",
  )
  parser.add_argument(
    "--points",
    type=options.whole_number(1, 10**6),
    default=0,
    metavar="N",
    help="points in the space of the axes (default: their full grid)",
  )
  parser.add_argument(
    "--method", choices=("sobol", "random"), default="sobol", help="how --points are chosen (default: sobol)"
  )
  parser.add_argument(
    "--early-stopping",
    type=options.positive_number,
    metavar="LEVEL",
    help="stop settings that, with this probability, end worse than the best finished setting, such as 0.95; in"
    " get_study use EarlyStopping(design)",
  )
  parser.add_argument(
    "--seeds",
    type=options.whole_number(1, 10**6),
    default=1,
    metavar="N",
    help="repeats of every point with other seeds",
  )


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  is_first = session.join(arguments)
  config, study = session.load(arguments)
  if arguments.axis:
    study = _study_of_axes(arguments)
  elif arguments.points or arguments.seeds > 1 or arguments.early_stopping:
    raise UserError(
      "--points, --seeds, --early-stopping: need --axis; in get_study use a design such as Repeated(design, seeds)"
    )
  if study is None or study.laws:
    raise UserError(
      f"--axis: missing; name fields to vary, or define get_study(config) without laws in {arguments.config}"
    )
  return study_runs.run(arguments, config, study, output if is_first else None)


def _study_of_axes(arguments: argparse.Namespace) -> "Study":
  from bigmodel import study as studies
  from bigmodel.designs import spaces

  design = spaces.of_arguments(arguments.axis, arguments.points, arguments.method, arguments.seeds)
  if arguments.early_stopping:
    design = studies.EarlyStopping(design, arguments.early_stopping)
  fields = ", ".join(axis.partition("=")[0] for axis in arguments.axis)
  name = f"{Path(arguments.config.partition(':')[0]).stem} by {fields}"
  return studies.Study(name, "Which settings are best?", design, laws=())
