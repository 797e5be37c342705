"""Executes planned groups of runs in this process, skipping what has ended."""

import contextlib
import errno
import functools
import logging
from collections.abc import Collection, Mapping, Sequence

from etils import epath

from bigmodel import record
from bigmodel.data.pipeline import Datasets
from bigmodel.errors import CheckpointError, Interrupted, UnfitWorker, UserError
from bigmodel.parallel import hosts
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.results import failed_record
from bigmodel.train.run import Run, open_folder, write_provenance
from bigmodel.train.stop import LOST, Stop
from bigmodel.workers import packs
from bigmodel.workers.failures import Failures, alone, describe, has_failed, self_check
from bigmodel.workers.groups import Group

log = logging.getLogger("bigmodel")


def run_groups(
  groups: Sequence[Group],
  runs: Mapping[str, Run],
  data: Datasets,
  display: Display,
  stop: Stop,
  workdir: epath.PathLike,
) -> None:
  """Trains every group of which a run has no record yet, to its end or to the step that it names as `until`.

  For the only worker of a study, which repeats itself what fails.
  """
  failures = Failures(workdir, "alone")
  for group in groups:
    while not hosts.first(functools.partial(group.ended, runs)):
      try_group(group, runs, data, display, stop, failures)


def try_group(
  group: Group,
  runs: Mapping[str, Run],
  data: Datasets,
  display: Display,
  stop: Stop,
  failures: Failures,
) -> None:
  """Trains what has not ended of a group. An exception is noted, and the run's record once it has failed for good.

  What is wrong with this machine (a full disk, a signal, a device that computes wrongly) or with the input is raised.
  """
  attempts, trained = failures.of(group.name), False
  for part in _parts(group, runs, alone(attempts, group.run_ids)):
    members = [runs[run_id] for run_id in part.run_ids]
    if hosts.first(functools.partial(part.ended, runs)):
      continue
    if not hosts.several() and failures.waits_for_others(group.name, functools.partial(part.not_ended, runs)):
      continue
    if not hosts.several() and stop.requested():
      raise Interrupted("stopped between runs")
    trunks = {run.run_id for run in members if record.read(run.folder) is None}  # one that has ended does not train
    leaving = [run for run in runs.values() if run.branch.trunk in trunks and waits(run)]
    try:
      options = Options(part.expected_seconds, branches=leaving, until=part.until)
      train_runs(members, data, display, stop, options)
      trained = True
    except (CheckpointError, Interrupted, UserError, KeyboardInterrupt):
      raise
    except Exception as error:
      if hosts.several() or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        raise  # of several hosts the others may not have met it: all start again
      log.debug("a group failed", exc_info=True)
      if stop.lost():  # what failed may be what its successor removed
        raise Interrupted(f"{group.name}: {LOST}") from error
      _note(group, runs, members, error, display, failures)
      if (problem := self_check(failures.folder.parent)) is not None:
        raise UnfitWorker(
          f"{failures.worker} stops: {problem}; before that a run failed with {describe(error)}"
        ) from error
  if trained and group.succeeded(runs):
    failures.succeeded(group.name)


def _note(
  group: Group,
  runs: Mapping[str, Run],
  members: Sequence[Run],
  error: Exception,
  display: Display,
  failures: Failures,
) -> None:
  """Notes a failed attempt at these runs of a group, which were trained together."""
  tried = [run for run in members if record.read(run.folder) is None]
  failures.add(group.name, [run.run_id for run in tried], error, functools.partial(group.succeeded, runs))
  attempts = failures.of(group.name)
  for run in tried:
    if has_failed(attempts, run.run_id):
      open_folder(run)
      write_provenance(run)
      failed = failed_record(run, error)
      display.end(f"{run.run_id}  failed: {failed.error}")
  if again := [run.run_id for run in tried if record.read(run.folder) is None]:
    how = "one by one" if len(again) > 1 and alone(attempts, again) else "once more, by another worker if there is one"
    display.end(f"{', '.join(again)}: {describe(error)}; tried again, {how}")


def _parts(group: Group, runs: Mapping[str, Run], one_by_one: Collection[str] = ()) -> list[Group]:
  """The group in parts that fit this machine, with the runs `one_by_one` each by itself.

  Packs do not span the devices of several hosts: there each run is by itself.
  """
  together = [runs[run_id] for run_id in group.run_ids if run_id not in one_by_one]
  parts = [[run.run_id for run in part] for part in (packs.cut(together) if together else [])]
  if hosts.several():
    parts = [[run_id] for part in parts for run_id in part]
  parts += [[run_id] for run_id in group.run_ids if run_id in one_by_one]
  return [group.part(ids) for ids in parts]


def waits(run: Run) -> bool:
  """Has it neither ended nor a checkpoint, of its own or that a trunk left it?"""
  saved = run.folder / "checkpoints"
  begun = saved.exists() and any(path.name.isdigit() for path in saved.iterdir())
  return not begun and record.read(run.folder) is None


def set_failed_aside(workdir: epath.PathLike) -> None:
  """Moves the records of failed and diverged runs to `attempts/`, so that they run again."""
  Failures(workdir, "").forget()
  runs = epath.Path(workdir) / "runs"
  for folder in sorted(runs.iterdir()) if runs.exists() else ():
    ended = record.read(folder)
    if ended is None or ended.status in ("finished", "stopped"):
      continue
    (folder / "rungs.json").unlink(missing_ok=True)
    if (folder / "checkpoints").exists():
      (folder / "checkpoints").rmtree()
    set_record_aside(folder)


def set_record_aside(folder: epath.Path) -> None:
  """Moves the record of a run to `attempts/`: from now on the run has not ended, and any worker may train it."""
  attempts = folder / "attempts"
  attempts.mkdir(exist_ok=True)
  number = len(list(attempts.iterdir()))
  with contextlib.suppress(FileNotFoundError):  # another command has set it aside meanwhile
    (folder / "record.json").rename(attempts / f"{number:03d}.json")
