"""A member of a program: a run in training, with its data, metrics and checkpoints."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bigmodel import record
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.files import remove, write_json
from bigmodel.parallel import hosts
from bigmodel.record import Record
from bigmodel.train import parameters, stages, weights
from bigmodel.train.best import Best
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.metrics import Metrics
from bigmodel.train.programs import Program
from bigmodel.train.run import Run, open_folder, read_status, write_provenance
from bigmodel.train.step import State
from bigmodel.train.stop import Stop


@dataclasses.dataclass(eq=False)  # compared by identity: looking a member up compares no arrays
class Member:
  """One run of a program, with its data, metrics and checkpoints."""

  run: Run
  data: Data
  rows: pipeline.Pipeline
  stages: list[stages.Stage]
  metrics: Metrics
  checkpoints: Checkpoints
  seconds: float  # of training before this process started
  best: Best | None  # where `config.train.keep_best` is set
  ended: Record | None  # its record, once it has ended


def open_member(run: Run, data: Data, stop: Stop) -> Member:
  hosts.first(lambda: open_folder(run))
  hosts.first(lambda: write_provenance(run))
  hosts.first(lambda: _keep_card(run, data))
  return Member(
    run=run,
    data=data,
    rows=pipeline.train_pipeline(run.config, data, 0),
    stages=stages.of(run.config),
    metrics=Metrics(run.folder),
    checkpoints=Checkpoints(run.folder / "checkpoints", run.config.train.keep, stop.lost),
    seconds=read_status(run.folder).seconds,
    best=Best(run, stop.lost) if run.config.train.keep_best else None,
    ended=record.read(run.folder),
  )


def _keep_card(run: Run, data: Data) -> None:
  """Writes the description of the data, with the statistics of its training rows, into the run's folder."""
  if not (run.folder / "data.json").exists():
    write_json(run.folder / "data.json", data.card)


def under_way(members: Sequence[Member]) -> list[Member]:
  """The members that have no record yet."""
  return [member for member in members if member.ended is None]


def restore(program: Program, members: Sequence[Member], step: int) -> State:
  """The program's state from the members' checkpoints of a step, or from their initial states at step 0."""
  return program.place([_restored(program, member, step) for member in members])


def _restored(program: Program, member: Member, step: int) -> State:
  config = member.run.config
  if member.ended is not None:  # at its horizon, so that it makes no more steps
    return dataclasses.replace(program.init(config.seed), step=np.int32(member.run.steps))
  if step:
    parameters.require_padding(config, member.checkpoints, step, program.shapes.params)
    state = member.checkpoints.restore(step, program.shapes)
  else:
    state = weights.start(config, program.init(config.seed), program.optimizer_state)
    hosts.first(lambda: remove(member.run.folder / "trunk.json"))
  hosts.barrier(f"{member.run.run_id}/restored")
  member.checkpoints.drop_after(step)  # later ones are damaged, or missing for other members
  member.metrics.cut(step)
  if member.best is not None:
    member.best.resume(step)
  return state
