"""Recipes that start a command on other machines: a TPU VM, a pod slice, GKE, Slurm or Ray.

A recipe is a file for its launcher, rendered from `recipes/`. All hosts run the same command and find each other
(`parallel/hosts.py`); with `--restarts` a supervisor on each host restarts it.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import jinja2

from bigmodel.errors import UserError
from bigmodel.hardware import CHIPS
from bigmodel.parallel.topology import Topology

# place -> (recipe, program that runs it)
PLACES = {
  "tpu-vm": ("tpu_vm.sh.j2", ("bash",)),
  "gke": ("gke.yaml.j2", ("kubectl", "apply", "-f")),
  "slurm": ("slurm.sbatch.j2", ("sbatch",)),
  "ray": ("ray.py.j2", ("python3",)),
}
NEEDS = {"tpu-vm": "gcloud", "gke": "kubectl", "slurm": "sbatch", "ray": "ray"}
# Accelerator names of Google Cloud. Names of v5p slices count cores, other names count chips.
GCLOUD = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1), "tpu7x": ("tpu7x", 2)}
GKE = {
  "v4": "tpu-v4-podslice",
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
  "tpu7x": "tpu7x",
}


def recipe(place: str, command: list[str], topology: Topology, settings: Mapping[str, object]) -> str:
  """Returns a recipe that runs `bigmodel command` on the hosts of a topology; `settings` are its other values."""
  chip = CHIPS.get(topology.kind, CHIPS["h100"])
  tpu = bool(chip.dimensions)
  if place in ("tpu-vm", "gke") and not tpu:
    raise UserError(f"--on={place}: {topology.name} is not a slice of TPUs")
  if not topology.kind:
    raise UserError("--topology: name the chips, such as v5e:4x4 or h100:8")
  # TPU slices of several hosts have 4 chips on each; only single hosts have 8.
  per_host = 4 if tpu and topology.chips > chip.host else min(chip.host, topology.chips)
  hosts = max(1, -(-topology.chips // per_host))
  short, cores = GCLOUD.get(topology.kind, ("", 1))
  values = {
    "command": "bigmodel " + shlex.join(command),
    "arguments": command,
    "name": settings["name"],
    "hosts": hosts,
    "chips": topology.chips,
    "chips_per_host": per_host,
    "shape": "x".join(map(str, topology.shape)),
    "accelerator": f"{short}-{topology.chips * cores}",
    "gke_accelerator": GKE.get(topology.kind, ""),
    "tpu": tpu,
    "unshared": hosts > 1 and "://" not in str(settings["workdir"]),
    "extra": "tpu" if tpu else "cuda",
    **settings,
  }
  folder = Path(__file__).parent / "recipes"
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(folder),
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
  )
  environment.filters["quote"] = shlex.quote
  return environment.get_template(PLACES[place][0]).render(values)


def start(place: str, text: str, stdout: TextIO | None = None) -> int:
  """Runs the launcher of a recipe, which prints to `stdout`; returns the launcher's exit code."""
  if shutil.which(NEEDS[place]) is None:
    raise UserError(f"--on={place}: no {NEEDS[place]} here; --dry-run prints the recipe")
  suffix = "." + PLACES[place][0].removesuffix(".j2").split(".")[-1]
  with tempfile.NamedTemporaryFile("w", suffix=suffix, delete=False) as file:
    file.write(text)
  return subprocess.run([*PLACES[place][1], file.name], stdout=stdout, check=False).returncode
