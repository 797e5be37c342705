"""The checkpoints of one run: saves in the background, verifies and restores."""

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import msgspec
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel.errors import CheckpointError, Interrupted
from bigmodel.parallel import hosts
from bigmodel.train.checkpoint import arrays, folders, integrity
from bigmodel.train.checkpoint.arrays import Arrays, to_flat
from bigmodel.train.checkpoint.integrity import FileSums, Seal, read_seal
from bigmodel.train.stop import LOST
from bigmodel.types import PyTree

# Threads that write, for all runs of a pack. More threads that write to a disk would compete for the interpreter.
_WRITERS = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checkpoint")
_REMOTE_WRITERS = concurrent.futures.ThreadPoolExecutor(32, "checkpoint")
log = logging.getLogger("bigmodel")


@dataclasses.dataclass(frozen=True)
class _Save:
  """A save in flight."""

  step: int
  temporary: epath.Path
  fingerprints: dict[str, str]


class _Part(msgspec.Struct, frozen=True):
  """The part of one process in a save that several processes write."""

  problem: str
  files: dict[str, FileSums]


def _never() -> bool:
  return False


class Checkpoints:
  """The checkpoints of one run. At most one save is in flight, in a thread."""

  def __init__(self, folder: epath.PathLike, keep: int = 2, lost: Callable[[], bool] = _never):
    """`lost` returns whether another worker has taken over the run; nothing is committed from then on."""
    self.folder = epath.Path(folder)
    self.keep = keep
    self.lost = lost
    self.fingerprints: dict[str, str] = {}  # of the arrays that were saved last
    self._pending: concurrent.futures.Future[None] | None = None
    self._threads = _REMOTE_WRITERS if "://" in str(folder) else _WRITERS
    # Where several processes write together, orbax coordinates them through the coordination service.
    self._together = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) if hosts.several() else None

  def steps(self) -> list[int]:
    """The steps on disk, oldest first, damaged or not."""
    return folders.complete_steps(self.folder)

  def drop_after(self, step: int) -> None:
    """Makes `step` the newest: removes later checkpoints, and unfinished ones whose writers have ended.

    Only for the process that trains.
    """
    if not self.folder.exists():
      return
    for temporary in self.folder.glob(".*"):
      if folders.is_abandoned(temporary):
        folders.discard(temporary)
    for later in self.steps():
      if later > step:
        folders.discard(self.folder / str(later))

  # Saving.

  def save(self, step: int, state: PyTree, fingerprints: dict[str, str] | None = None) -> None:
    """Starts writing a copy of `state`, whose fingerprints may be given. Raises the error of the previous save."""
    self.wait()
    self.fingerprints = fingerprints or hosts.fingerprints(state)
    save = _Save(step, self.folder / folders.temporary_name(step), self.fingerprints)
    if self._together is None:
      stored, joined = arrays.join(to_flat(state))
      self._pending = self._threads.submit(self._write, save, stored, joined)
      return
    if hosts.is_first():
      self.folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier(f"{save.temporary.name}/begin")
    problem = None
    try:  # returns once the arrays are copied to the host
      self._together.save(save.temporary / "arrays", args=arrays.save_args(to_flat(state)))
    except Exception as error:  # reported to the other processes later
      problem = error
    self._pending = self._threads.submit(self._write_together, save, problem)

  def wait(self) -> None:
    """Waits for the save in flight; raises `CheckpointError` if it failed."""
    if self._pending is not None:
      concurrent.futures.wait([self._pending])  # an interrupted wait can be repeated
      pending, self._pending = self._pending, None
      pending.result()

  def check(self) -> None:
    """Raises the error of a finished save, without waiting for one in flight."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      if self._together is not None:
        self._together.close()

  def _write(self, save: _Save, stored: dict[str, np.ndarray], joined: dict[str, list[str]]) -> None:
    temporary = save.temporary
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      folders.check_space(self.folder, stored.values())
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(temporary / "arrays", args=arrays.save_args(stored))
      sums = integrity.checksums(temporary, folders.files(temporary))
      integrity.write_seal(temporary, Seal({**sums}, save.fingerprints, joined))
      self._commit(save)
    except Interrupted:
      raise
    except Exception as error:
      folders.discard(temporary)
      raise self._failure(save.step, error) from error

  def _write_together(self, save: _Save, problem: Exception | None) -> None:
    """The second half of a save by several processes: each waits for its part and hashes it, the first seals."""
    name, sums = save.temporary.name, {}
    try:
      assert self._together is not None
      self._together.wait_until_finished()
    except Exception as error:
      problem = error
    hosts.barrier(f"{name}/written")
    try:
      if problem is None:
        names = folders.files(save.temporary)
        mine = [file for file in names if folders.writer_of(file) == jax.process_index()]
        sums = integrity.checksums(save.temporary, mine)
    except Exception as error:
      problem = error
    part = _Part(_message(problem) if problem else "", sums)
    parts = msgspec.convert(hosts.collect(msgspec.to_builtins(part), f"{name}/hashed"), list[_Part])
    problems, lost = [part.problem for part in parts if part.problem], False
    if hosts.is_first() and not problems:
      try:
        files = {file: of_file for part in parts for file, of_file in part.files.items()}
        integrity.write_seal(save.temporary, Seal({**files}, save.fingerprints, {}))
        self._commit(save)
      except Interrupted:
        lost = True
      except Exception as error:
        problem, problems = error, [_message(error)]
    problems, lost = hosts.share((problems, lost), f"{name}/sealed")
    if lost:
      raise Interrupted(LOST)
    if problems:
      folders.discard(save.temporary)
      raise self._failure(save.step, problem or OSError(problems[0])) from problem

  def _commit(self, save: _Save) -> None:
    """Gives a complete checkpoint its name and removes the oldest. Raises `Interrupted` where the run is lost."""
    if self.lost():
      folders.discard(save.temporary)
      raise Interrupted(LOST)
    folders.commit(save.temporary, self.folder / str(save.step))
    for old in self.steps()[: -self.keep]:
      folders.discard(self.folder / str(old))

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = "the disk is full" if folders.is_full(error) else first_line
    complete = [other for other in self.steps() if other != step and integrity.is_complete(self.folder / str(other))]
    last = f"the last complete checkpoint is step {complete[-1]}" if complete else "there is no earlier checkpoint"
    return CheckpointError(f"{self.folder}: step {step} was not saved: {reason}; {last}")

  # Restoring.

  def is_sound(self, step: int) -> bool:
    """Whether all files of a step are as they were written; the log names what is wrong.

    All processes of a job call it together. Each hashes its share of the files, as many bytes as the others.
    """
    damage = integrity.damage(self.folder / str(step), jax.process_index(), jax.process_count())
    problem = next((text for text in hosts.gather(damage) if text), None)
    if problem is not None:
      log.warning("%s: checkpoint of step %d is damaged (%s); falling back", self.folder, step, problem)
    return problem is None

  def newest_sound(self) -> int | None:
    """The newest step whose files are all as they were written; older ones are not read. For all processes."""
    return newest_common([self])

  def restore(self, step: int, shapes: PyTree) -> PyTree:
    """The state of a verified step, in the structure and with the shardings of `shapes`.

    Leaves of `shapes` are ShapeDtypeStructs, or arrays; without shardings the result is on the host.
    """
    folder, wanted = self.folder / str(step), to_flat(shapes)
    seal = read_seal(folder)
    if different := integrity.difference(seal.arrays, wanted):
      raise ValueError(f"{folder}: {different}")
    restored = arrays.read(folder, seal, wanted)
    return jax.tree.unflatten(jax.tree.structure(shapes), [restored[name] for name in wanted])

  def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a step, according to its seal."""
    fingerprints = read_seal(self.folder / str(step)).arrays
    return {name: integrity.array_of(fingerprint).shape for name, fingerprint in fingerprints.items()}

  def arrays(
    self, step: int, prefix: str, shardings: Mapping[str, jax.sharding.Sharding | None] | None = None
  ) -> Arrays:
    """Arrays of a verified step whose names begin with `prefix`; no config is needed, and no other array is read.

    They are on the host. With `shardings`, by name without the prefix, only the arrays named there are read, and an
    array whose whole name is the prefix: each process then reads the parts that its devices hold, but for a sharding
    of None the whole array, on the host.
    """
    folder = self.folder / str(step)
    seal, wanted = read_seal(folder), {}
    for name, fingerprint in seal.arrays.items():
      short = name.removeprefix(prefix)
      if not name.startswith(prefix) or (shardings is not None and short and short not in shardings):
        continue
      array = integrity.array_of(fingerprint)
      sharding = shardings[short] if shardings and short else None
      wanted[name] = jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
    return arrays.read(folder, seal, wanted)


def newest_common(stores: Sequence[Checkpoints], most: int | None = None) -> int | None:
  """The newest step, up to `most`, of which all have a sound checkpoint. Steps are verified from the newest on.

  All processes of a job call it together.
  """
  tried: set[int] = set()

  def candidate() -> int | None:
    # Lists the steps each time, because another writer may have committed a newer one and removed an older one.
    common = set.intersection(*({*store.steps()} for store in stores)) - tried
    return max((step for step in common if most is None or step <= most), default=None)

  while (step := hosts.first(candidate)) is not None:
    tried.add(step)
    if all(store.is_sound(step) for store in stores):
      return step
  return None


def _message(error: Exception) -> str:
  return str(error) or repr(error)
