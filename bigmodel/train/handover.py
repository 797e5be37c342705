"""Branches: runs that share the first steps of another run, their trunk, and start from its checkpoint."""

import msgspec

from bigmodel.files import write_json, write_jsonl
from bigmodel.parallel import hosts
from bigmodel.train import metrics
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.member import Member
from bigmodel.train.run import Run, open_folder
from bigmodel.train.step import State
from bigmodel.train.stop import Stop


def hand_over(trunk: Member, run: Run, state: State, stop: Stop) -> None:
  """Writes the trunk's state and metrics so far into the folder of a branch, which then starts by resuming."""
  step, branch = run.branch.step, msgspec.to_builtins(run.branch)
  hosts.first(lambda: open_folder(run))
  trunk.metrics.flush()
  rows = [row for row in metrics.read(trunk.run.folder) if row["step"] <= step]
  hosts.first(lambda: write_jsonl(run.folder / "metrics.jsonl", rows))
  hosts.first(lambda: write_json(run.folder / "trunk.json", branch))
  checkpoints = Checkpoints(run.folder / "checkpoints", run.config.train.keep, stop.lost)
  checkpoints.save(step, state)
  checkpoints.close()
