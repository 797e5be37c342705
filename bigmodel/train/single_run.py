"""Trains a single run, from its config to its record."""

from etils import epath

from bigmodel import parallel, record
from bigmodel.config import Config, flatten
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.files import absolute
from bigmodel.parallel import hosts
from bigmodel.train import ownership, places, prolong
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.resolution import check, check_resolved, resolve
from bigmodel.train.run import Run, interruptible


def single_run(config: Config, workdir: epath.PathLike) -> tuple[Run, Data]:
  """Prepares and checks the run of a config in the folder `workdir`; returns it and its data. Writes nothing."""
  check(config)
  corpus = pipeline.prepare(config)
  resolved = resolve(config, corpus)
  check_resolved(resolved, corpus)
  return Run(places.replaced(resolved, places.of_folder(resolved, workdir)), absolute(workdir)), corpus


def train_single_run(config: Config, workdir: epath.PathLike, quiet: bool = False, profile: int = 0) -> record.Record:
  """Trains the run of one config from its last checkpoint, if there is one, to its end, and returns its record.

  A folder that holds a shorter run of this config is prolonged, see `prolong.py`. `profile` is the number of steps to
  trace. Several processes that call this train one run together.
  Raises `Interrupted` after a signal, when everything is saved, and `UserError` while another command trains this run.
  """
  with interruptible() as stop:
    run, corpus = single_run(config, workdir)
    hosts.require_same([flatten(run.config), str(run.folder), profile], "config")
    hosts.require_shared(run.folder)
    hosts.first(lambda: prolong.check(run))
    ended = hosts.first(lambda: prolong.ended_record(run))
    if ended is not None:
      hosts.first(lambda: places.note(config, run.config, run.folder))
    else:
      with ownership.exclusive(run.folder, stop) as stop_of_owner, Display(quiet=quiet) as display:
        hosts.first(lambda: prolong.begin(run))
        hosts.first(lambda: places.note(config, run.config, run.folder))
        for note in parallel.notes_here(run.config):
          display.say(note)
        (ended,) = train_runs([run], corpus, display, stop_of_owner, Options(profile=profile))
  return ended
