"""Trains a single run, from its config to its record."""

from etils import epath

from bigmodel import parallel, record
from bigmodel.config import Config, flatten
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.files import absolute
from bigmodel.parallel import hosts
from bigmodel.train import ownership
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.resolution import check, check_resolved, resolve
from bigmodel.train.run import Run, check_folder, interruptible


def single_run(config: Config, workdir: epath.PathLike) -> tuple[Run, Data]:
  """Prepares and checks the run of a config in the folder `workdir`; returns it and its data. Writes nothing."""
  check(config)
  corpus = pipeline.prepare(config)
  run = Run(resolve(config, corpus), absolute(workdir))
  check_resolved(run.config, corpus)
  return run, corpus


def train_single_run(config: Config, workdir: epath.PathLike, quiet: bool = False, profile: int = 0) -> record.Record:
  """Trains the run of one config from its last checkpoint, if there is one, to its end, and returns its record.

  `profile` is the number of steps to trace. Several processes that call this train one run together.
  Raises `Interrupted` after a signal, when everything is saved, and `UserError` while another command trains this run.
  """
  with interruptible() as stop:
    run, corpus = single_run(config, workdir)
    hosts.require_same([flatten(run.config), str(run.folder), profile], "config")
    hosts.require_shared(run.folder)
    hosts.first(lambda: check_folder(run))
    ended = hosts.first(lambda: record.read(run.folder))
    if ended is None:
      with ownership.exclusive(run.folder, stop) as stop_of_owner, Display(quiet=quiet) as display:
        for note in parallel.notes_here(run.config):
          display.say(note)
        (ended,) = train_runs([run], corpus, display, stop_of_owner, Options(profile=profile))
  return ended
