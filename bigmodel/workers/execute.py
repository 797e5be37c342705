"""Executes planned groups of runs in this process, skipping what has ended."""

import contextlib
import errno
import functools
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from bigmodel import record
from bigmodel.data.pipeline import Datasets
from bigmodel.errors import CheckpointError, Interrupted, UnfitWorker, UserError
from bigmodel.parallel import hosts
from bigmodel.train.display import Display
from bigmodel.train.loop import Options, train_runs
from bigmodel.train.results import failed_record, read_rungs
from bigmodel.train.run import Run, open_folder, write_provenance
from bigmodel.train.stop import LOST, Stop
from bigmodel.workers import packs
from bigmodel.workers.failures import Failures, alone, describe, has_failed, self_check

log = logging.getLogger("bigmodel")


def run_groups(
  groups: Sequence[dict[str, Any]],
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
    while not hosts.first(functools.partial(ended, group, runs)):
      try_group(group, runs, data, display, stop, failures)


def group_name(group: Mapping[str, Any]) -> str:
  """What a group's lease and its failed attempts are called: to a rung it is another one than to the end."""
  until = group.get("until", 0)
  return group["run_ids"][0] + (f"-{until}" if until else "")


def try_group(
  group: dict[str, Any],
  runs: Mapping[str, Run],
  data: Datasets,
  display: Display,
  stop: Stop,
  failures: Failures,
) -> None:
  """Trains what has not ended of a group. An exception is noted, and the run's record once it has failed for good.

  What is wrong with this machine (a full disk, a signal, a device that computes wrongly) or with the input is raised.
  """
  name, attempts, trained = group_name(group), failures.of(group_name(group)), False
  for part in _parts(group, runs, alone(attempts, group["run_ids"])):
    members = [runs[run_id] for run_id in part["run_ids"]]
    if hosts.first(functools.partial(ended, part, runs)):
      continue
    if not hosts.several() and failures.waits_for_others(name, functools.partial(not_ended, part, runs)):
      continue
    if not hosts.several() and stop.requested():
      raise Interrupted("stopped between runs")
    trunks = {run.run_id for run in members if record.read(run.folder) is None}  # one that has ended does not train
    leaving = [run for run in runs.values() if run.branch and run.branch.trunk in trunks and waits(run)]
    try:
      until = part.get("until", 0)
      train_runs(members, data, display, stop, Options(part["expected_seconds"], branches=leaving, until=until))
      trained = True
    except (CheckpointError, Interrupted, UserError, KeyboardInterrupt):
      raise
    except Exception as error:
      if hosts.several() or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        raise  # of several hosts the others may not have met it: all start again
      log.debug("a group failed", exc_info=True)
      if stop.lost():  # what failed may be what its successor removed
        raise Interrupted(f"{name}: {LOST}") from error
      _note(group, runs, members, error, display, failures)
      if (problem := self_check(failures.folder.parent)) is not None:
        raise UnfitWorker(
          f"{failures.worker} stops: {problem}; before that a run failed with {describe(error)}"
        ) from error
  if trained and succeeded(group, runs):
    failures.succeeded(name)


def _note(
  group: Mapping[str, Any],
  runs: Mapping[str, Run],
  members: Sequence[Run],
  error: Exception,
  display: Display,
  failures: Failures,
) -> None:
  """Notes a failed attempt at these runs of a group, which were trained together."""
  name, tried = group_name(group), [run for run in members if record.read(run.folder) is None]
  failures.add(name, [run.run_id for run in tried], error, functools.partial(succeeded, group, runs))
  attempts = failures.of(name)
  for run in tried:
    if has_failed(attempts, run.run_id):
      open_folder(run)
      write_provenance(run)
      failed = failed_record(run, error)
      display.end(f"{run.run_id}  failed: {failed['error']}")
  if again := [run.run_id for run in tried if record.read(run.folder) is None]:
    how = "one by one" if len(again) > 1 and alone(attempts, again) else "once more, by another worker if there is one"
    display.end(f"{', '.join(again)}: {describe(error)}; tried again, {how}")


def _parts(group: dict[str, Any], runs: Mapping[str, Run], one_by_one: Collection[str] = ()) -> list[dict[str, Any]]:
  """A group in parts that fit this machine; of several hosts, whose devices no pack spans, each run by itself."""
  count = len(group["run_ids"])
  together = [runs[run_id] for run_id in group["run_ids"] if run_id not in one_by_one]
  parts = packs.cut(together) if together else []
  if hosts.several():
    parts = [[run] for part in parts for run in part]
  parts += [[runs[run_id]] for run_id in group["run_ids"] if run_id in one_by_one]
  cost = lambda part: group["expected_seconds"] * len(part) / count
  return [group | {"run_ids": [run.run_id for run in part], "expected_seconds": cost(part)} for part in parts]


def waits(run: Run) -> bool:
  """Has it neither ended nor a checkpoint, of its own or that a trunk left it?"""
  saved = run.folder / "checkpoints"
  begun = saved.exists() and any(path.name.isdigit() for path in saved.iterdir())
  return not begun and record.read(run.folder) is None


def ended(group: Mapping[str, Any], runs: Mapping[str, Run]) -> bool:
  """Have all runs of a group a record, or come to where they pause?"""
  return all(_has_ended(runs[run_id], group) for run_id in group["run_ids"])


def not_ended(group: Mapping[str, Any], runs: Mapping[str, Run]) -> list[str]:
  """The runs of a group that have neither a record nor come to where they pause."""
  return [run_id for run_id in group["run_ids"] if not _has_ended(runs[run_id], group)]


def _has_ended(run: Run, group: Mapping[str, Any]) -> bool:
  return str(group.get("until", 0)) in read_rungs(run) or record.read(run.folder) is not None


def succeeded(group: Mapping[str, Any], runs: Mapping[str, Run]) -> bool:
  """Whether all runs of a group have ended, and none has failed."""
  records = [record.read(runs[run_id].folder) for run_id in group["run_ids"]]
  return ended(group, runs) and all(one is None or one["status"] != "failed" for one in records)


def seconds_left(plan: dict[str, Any], workdir: epath.PathLike) -> float:
  """Expected seconds of the groups that have not ended, and of the target if it has not."""
  runs = epath.Path(workdir) / "runs"
  has_record = lambda run_id: (runs / run_id / "record.json").exists()
  groups = sum(g["expected_seconds"] for g in plan["groups"] if not all(map(has_record, g["run_ids"])))
  planned = {run["run_id"] for run in plan["runs"]}
  others = [f for f in runs.glob("*") if f.name not in planned and has_record(f.name)] if runs.exists() else []
  return groups + (plan["target"]["expected_seconds"] if plan["target"] and not others else 0.0)


def set_failed_aside(workdir: epath.PathLike) -> None:
  """Moves the records of failed and diverged runs to `attempts/`, so that they run again."""
  Failures(workdir, "").forget()
  runs = epath.Path(workdir) / "runs"
  for folder in sorted(runs.iterdir()) if runs.exists() else ():
    known = record.read(folder)
    if known is None or known["status"] in ("finished", "stopped"):
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
