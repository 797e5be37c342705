"""Packs: which runs share one program. Fixed in plan.json, so that a resumed study groups them alike."""

from collections.abc import Sequence

import jax

from bigmodel import hardware, parallel
from bigmodel.config import Config, flatten
from bigmodel.parallel import hosts
from bigmodel.planner import analytic
from bigmodel.train import configs
from bigmodel.train.run import Run

HORIZON = ("train.tokens", "train.steps")  # may differ only where a run has one stage and one batch size
SHARE = 0.75  # of the longest horizon that its companions have at least, so that little is left idle
FREE = 0.8  # of a device's memory, for the members that it holds
MOST = 1 << 20  # members
COPIES = 4  # of a member's state that a host holds when it fetches, saves and evaluates them


def program_key(run: Run) -> str:
  """Runs of one key have the same shape and batch, and can be trained side by side."""
  flat, declared = flatten(run.config), configs.declared_of(flatten(run.config))
  kept = {name: declared[name].compiled(value) for name, value in flat.items()}
  if run.config.train.stages or run.config.train.ramp:
    kept |= {name: flat[name] for name in HORIZON}
  return repr(kept)


def group(runs: Sequence[Run], workers: int = 1, machines: int = 1) -> list[list[str]]:
  """Run ids by program: packs as large as memory allows, and what is left over alone, spread over all devices.

  A pack has a whole number of members for each lane, and those beside each other have about the same horizon, so that
  no device idles. Of several workers each gets a part of the runs that share a program, and of the devices of as many
  machines like this one.
  """
  by_key: dict[str, list[Run]] = {}
  for run in runs:
    by_key.setdefault(program_key(run), []).append(run)
  groups = []
  for members in by_key.values():
    config, each = members[0].config, -(-len(members) // workers)
    devices = 1 if hosts.several() else max(1, jax.device_count() * machines // workers)
    lanes = parallel.lanes(config, devices)
    lanes = min(lanes, each) if workers > 1 else lanes
    most = min(each // lanes, room(config))
    alone = hosts.several() or (parallel.mapped(config) and lanes == 1) or config.parallel.offload != "none"
    packs = [] if alone or not most else _in_rows(sorted(members, key=lambda run: -run.steps), lanes, most)
    groups += [[run.run_id for run in pack] for pack in packs]
    packed = {run_id for ids in groups for run_id in ids}
    groups += [[run.run_id] for run in members if run.run_id not in packed]
  return groups


def _in_rows(ordered: Sequence[Run], lanes: int, most: int) -> list[list[Run]]:
  """Packs of at most `most` rows, a row having a run for each lane; the longest horizons first."""
  packs, left, mix = [], list(ordered), parallel.mapped(ordered[0].config)
  while len(left) >= lanes:
    row = left[:lanes]
    if row[-1].steps < SHARE * row[0].steps:
      left.pop(0)
      continue
    # Where members are batched, one that has ended is computed all the same.
    if not packs or len(packs[-1]) == most or (not mix and row[-1].steps < SHARE * packs[-1][0][0].steps):
      packs.append([])
    packs[-1].append(row)
    left = left[lanes:]
  return [[row[lane] for lane in range(lanes) for row in pack] for pack in packs if len(pack) * lanes > 1]


def room(config: Config) -> int:
  """How many members of this shape a lane holds at once; none, where one needs more than that."""
  memory = FREE * hardware.memory()
  if parallel.mapped(config):
    return int(min(MOST, memory / (COPIES * analytic.run_bytes(config))))
  sizes = dict.fromkeys(parallel.AXES, 1) | parallel.asked(config)
  return int(min(MOST, memory / analytic.estimate(config, sizes, None).peak_bytes))


def cut(runs: Sequence[Run]) -> list[list[Run]]:
  """A pack in parts that this machine holds: it may have been planned on another."""
  config = runs[0].config
  most = max(1, parallel.lanes(config, jax.device_count()) * room(config)) if len(runs) > 1 else 1
  return [list(runs[i : i + most]) for i in range(0, len(runs), most)]
