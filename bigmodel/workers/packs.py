"""Packs: runs that train side by side in one program. plan.json fixes them, so a resumed study keeps its packs."""

from collections.abc import Sequence

import jax

from bigmodel import hardware, parallel
from bigmodel.config import Config, flatten
from bigmodel.parallel import hosts
from bigmodel.planner import analytic
from bigmodel.train import configs
from bigmodel.train.run import Run

HORIZON = ("train.tokens", "train.steps")  # fields that may differ within a pack if runs have one stage and batch size
SHARE = 0.75  # shortest horizon beside the longest one, as a share of it, so that lanes are rarely idle
FREE = 0.8  # share of a device's memory that its members may use
MOST = 1 << 20  # limit on the members of a lane
COPIES = 4  # copies of a member's state that a host holds while it fetches, saves and evaluates


def program_key(run: Run) -> str:
  """Returns a key that is equal for runs of the same shape and batch, which one program can train side by side."""
  flat, declared = flatten(run.config), configs.declared_of(flatten(run.config))
  kept = {name: declared[name].compiled(value) for name, value in flat.items()}
  if run.config.train.stages or run.config.train.ramp:
    kept |= {name: flat[name] for name in HORIZON}
  return repr(kept)


def group(runs: Sequence[Run], workers: int = 1, machines: int = 1) -> list[list[str]]:
  """Groups runs into packs as large as memory allows; leftover runs train alone, spread over all devices.

  Returns lists of run ids. Every lane of a pack has the same number of members, and members side by side have similar
  horizons, so that no device idles. With several workers, each gets a part of the runs that share a program and a part
  of the devices, which are those of `machines` machines like this one.
  """
  by_key: dict[str, list[Run]] = {}
  for run in runs:
    by_key.setdefault(program_key(run), []).append(run)
  groups = []
  for members in by_key.values():
    config, per_worker = members[0].config, -(-len(members) // workers)
    devices = 1 if hosts.several() else max(1, jax.device_count() * machines // workers)
    lanes = parallel.lanes(config, devices)
    lanes = min(lanes, per_worker) if workers > 1 else lanes
    most = min(per_worker // lanes, room(config))
    alone = hosts.several() or (parallel.mapped(config) and lanes == 1) or config.parallel.offload != "none"
    packs = [] if alone or not most else _in_rows(sorted(members, key=lambda run: -run.steps), lanes, most)
    groups += [[run.run_id for run in pack] for pack in packs]
    packed = {run_id for ids in groups for run_id in ids}
    groups += [[run.run_id] for run in members if run.run_id not in packed]
  return groups


def _in_rows(ordered: Sequence[Run], lanes: int, most: int) -> list[list[Run]]:
  """Makes packs of at most `most` rows, longest horizons first. A row has one run for each lane."""
  packs, left, mix = [], list(ordered), parallel.mapped(ordered[0].config)
  while len(left) >= lanes:
    row = left[:lanes]
    if row[-1].steps < SHARE * row[0].steps:
      left.pop(0)
      continue
    # Where the members of a lane are batched, a member that has ended is still computed.
    if not packs or len(packs[-1]) == most or (not mix and row[-1].steps < SHARE * packs[-1][0][0].steps):
      packs.append([])
    packs[-1].append(row)
    left = left[lanes:]
  return [[row[lane] for lane in range(lanes) for row in pack] for pack in packs if len(pack) * lanes > 1]


def room(config: Config) -> int:
  """Returns how many members of this shape fit in a lane's memory; 0 if not even one does."""
  memory = FREE * hardware.memory()
  if parallel.mapped(config):
    return int(min(MOST, memory / (COPIES * analytic.run_bytes(config))))
  sizes = dict.fromkeys(parallel.AXES, 1) | parallel.asked(config)
  return int(min(MOST, memory / analytic.estimate(config, sizes, None).peak_bytes))


def cut(runs: Sequence[Run]) -> list[list[Run]]:
  """Splits a pack, which may have been planned on another machine, into parts that fit on this one."""
  config = runs[0].config
  most = max(1, parallel.lanes(config, jax.device_count()) * room(config)) if len(runs) > 1 else 1
  return [list(runs[i : i + most]) for i in range(0, len(runs), most)]
