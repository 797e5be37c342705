"""Packs: which runs share one program. Fixed in plan.json, so that a resumed study groups them alike."""

from collections.abc import Sequence

from bigmodel import tasks
from bigmodel.config import flatten
from bigmodel.optim.names import parse
from bigmodel.train.run import Run

# What a run may differ in from the others of its program: traced inputs, and the rows it reads.
TRACED = (
  "seed", "data.seed", "data.tokens", "data.examples", "data.fold", "data.split_seed",
  "data.sha256", "train.init_from", "train.init_sha256",
  "optim.lr", "optim.final", "optim.beta1", "optim.beta2", "optim.epsilon", "optim.momentum", "optim.gamma",
  "optim.weight_decay", "optim.clip", "optim.warmup", "optim.decay",
)  # fmt: skip


def program_key(run: Run) -> str:
  """Runs of one key have the same shape, batch and horizon, and can be trained side by side."""
  traced = {*TRACED, *(f"task.{name}" for name in tasks.traced(run.config))}
  kept = {name: value for name, value in flatten(run.config).items() if name not in traced}
  for field in ("rates", "decays"):  # of rules, the patterns
    kept[f"optim.{field}"] = [pattern for pattern, _ in parse(field, run.config.optim[field])]
  for field in ("average", "skip_above"):
    kept[f"optim.{field}"] = run.config.optim[field] > 0
  return repr(kept)


def group(runs: Sequence[Run], devices: int, workers: int = 1) -> list[list[str]]:
  """Run ids by program, in the order of `runs`.

  A pack has a whole number of members for each device, so that no device idles;
  what is left over trains alone, spread over all devices. Of several workers each
  gets a part of the runs that share a program.
  """
  by_key: dict[str, list[Run]] = {}
  for run in runs:
    by_key.setdefault(program_key(run), []).append(run)
  groups = []
  for members in by_key.values():
    if workers > 1:
      size = -(-len(members) // workers)
      groups += [[run.run_id for run in members[i : i + size]] for i in range(0, len(members), size)]
      continue
    whole = len(members) // devices * devices if devices > 1 else 0
    if whole:
      groups.append([run.run_id for run in members[:whole]])
    groups += [[run.run_id] for run in members[whole:]]
  return groups
