"""A run under way, with what it reads and writes."""

import dataclasses
from collections.abc import Sequence

from bigmodel import record
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.files import write_json
from bigmodel.parallel import hosts
from bigmodel.record import Record
from bigmodel.train import stages
from bigmodel.train.best import Best
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.metrics import Metrics
from bigmodel.train.run import Run, open_folder, read_status, write_provenance
from bigmodel.train.stop import Stop


@dataclasses.dataclass(eq=False)  # none is another, and to find one compares no arrays
class Member:
  """One run with what it writes to."""

  run: Run
  data: Data
  rows: pipeline.Pipeline
  stages: list[stages.Stage]
  metrics: Metrics
  checkpoints: Checkpoints
  seconds: float  # its share of earlier attempts
  best: Best | None  # where `config.train.keep_best` asks for it
  ended: Record | None  # its record, where a companion of its pack has none yet


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
  """What the data are, with what was learned of their training rows, beside the run."""
  if not (run.folder / "data.json").exists():
    write_json(run.folder / "data.json", data.card)


def under_way(members: Sequence[Member]) -> list[Member]:
  """Those that have no record yet; the others rest, and keep what they have on disk."""
  return [member for member in members if member.ended is None]
