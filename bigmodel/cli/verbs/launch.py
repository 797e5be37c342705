"""Start train or study on other machines, or print the script that would do it.

The words after -- are the command that every host runs.
"""

import argparse
import sys

from bigmodel.cli import parsing
from bigmodel.cli.console import Facts, Output
from bigmodel.cli.verbs import study, train
from bigmodel.errors import UserError

STUDY = "study --config=configs/quickstart.py --workdir=gs://BUCKET/quickstart"
EXAMPLES = (
  f"bigmodel launch --on=tpu-vm --topology=v5e:2x2 --dry-run -- {STUDY}",
  f"bigmodel launch --on=gke --topology=v5p:4x4x4 --name=ladder --dry-run -- {STUDY} --restarts=5",
  "bigmodel launch --on=slurm --topology=h100:16 --dry-run"
  " -- train --config=configs/quickstart.py --workdir=runs/one --config.train.steps=500",
)
VERBS: dict[str, parsing.Verb] = {"train": train, "study": study}
RESTARTS = 3  # of each host's process, unless the command says --restarts


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--on", required=True, choices=("tpu-vm", "gke", "slurm", "ray"), help="the launcher")
  parser.add_argument("--topology", required=True, metavar="KIND:SHAPE", help="the chips: v5e:4x4, v5p:4x4x4, h100:16")
  parser.add_argument("--dry-run", action="store_true", help="print the script and start nothing")
  parser.add_argument("--name", default="bigmodel", help="name of the job (default: bigmodel)")
  parser.add_argument("--zone", default="us-central2-b", help="tpu-vm: the zone (default: us-central2-b)")
  parser.add_argument("--runtime", default="tpu-ubuntu2204-base", help="tpu-vm: the image of the machines")
  parser.add_argument("--image", default="bigmodel:latest", help="gke: the container (default: bigmodel:latest)")
  parser.add_argument("--time", default="24:00:00", help="slurm: the time limit of the job (default: 24:00:00)")
  parser.add_argument(
    "--source", default=".", metavar="DIR", help="the checkout: copied to TPU VMs, shared elsewhere (default: .)"
  )
  parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- train|study ...", help="the command to run")


def run(arguments: argparse.Namespace, output: Output) -> Facts:
  from bigmodel.parallel import launch, topology

  command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
  if not command or command[0] not in VERBS:
    raise UserError("launch: the command is missing: end with -- train --config=... --workdir=..., or -- study ...")
  inner = parsing.parse(command[0], VERBS[command[0]], command[1:])  # reports errors here instead of on the machines
  where = topology.parse(arguments.topology, devices=False)
  settings = {name: getattr(arguments, name) for name in ("name", "zone", "runtime", "image", "time", "source")}
  settings |= {"restarts": inner.restarts or RESTARTS, "workdir": inner.workdir}
  recipe = launch.recipe(arguments.on, command, where, settings)
  if arguments.dry_run:
    output.write(recipe)
    return {"on": arguments.on, "recipe": recipe, "started": False}
  # A launcher writes to this process's standard output, which --json keeps for its document.
  code = launch.start(arguments.on, recipe, sys.stderr if arguments.json else None)
  if code:
    raise UserError(f"launch: {launch.NEEDS[arguments.on]} ended with code {code}")
  return {"on": arguments.on, "recipe": recipe, "started": True}
