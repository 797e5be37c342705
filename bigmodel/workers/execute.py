"""Trains planned groups of runs in this process, skipping runs that have ended."""

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
from bigmodel.train.results import failed_record, set_record_aside
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
  """Trains every group that has not ended, each run to its end or to the group's step `until`.

  This is for the only worker of a study, which also retries the groups that fail.
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
  """Trains the runs of a group that have not ended. Records a failed attempt, and after the last one a failed run.

  Raises errors that are not the run's fault: invalid input, a signal, a full disk, a device that computes wrongly.
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
    trunks = {run.run_id for run in members if record.read(run.folder) is None}  # trunks that still train
    branches = [run for run in runs.values() if run.branch.trunk in trunks and waits(run)]
    try:
      options = Options(part.expected_seconds, branches=branches, until=part.until)
      train_runs(members, data, display, stop, options)
      trained = True
    except (CheckpointError, Interrupted, UserError, KeyboardInterrupt):
      raise
    except Exception as error:
      if hosts.several() or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        raise  # the other hosts may not have seen the error, so the whole job has to restart
      log.debug("a group failed", exc_info=True)
      if stop.lost():  # the error may come from files that the next holder of the lease removed
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
  """Records a failed attempt at these runs of a group, which were trained together."""
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
  """Splits the group into parts that fit on this machine; each of the runs `one_by_one` is a part of its own.

  Packs do not span the devices of several hosts, so in a job of several hosts every run is a part of its own.
  """
  together = [runs[run_id] for run_id in group.run_ids if run_id not in one_by_one]
  parts = [[run.run_id for run in part] for part in (packs.cut(together) if together else [])]
  if hosts.several():
    parts = [[run_id] for part in parts for run_id in part]
  parts += [[run_id] for run_id in group.run_ids if run_id in one_by_one]
  return [group.part(ids) for ids in parts]


def waits(run: Run) -> bool:
  """Whether the run has neither a record nor a checkpoint, be it from its own training or from a trunk."""
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
