"""Checkpoints: orbax arrays in the background, sealed by checksums, verified on restore.

`checkpoints/STEP/arrays` is written by orbax, by every process its part; a single
process joins small arrays to one of each type, as each takes orbax a millisecond.
`checkpoints/STEP/SEAL` holds the sha256 of every file, the fingerprint of every array
and the names of the joined ones, and begins with the sha256 of itself. A folder becomes
`STEP` by a rename once all of it is on disk. Nothing in it depends on the mesh: it
restores on any other.
"""

import ast
import concurrent.futures
import errno
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel.files import is_writer, remove, sha256_file, write_text
from bigmodel.parallel import hosts

SEAL = "SEAL"
LARGE = 1 << 20  # bytes: files that are worth threads, arrays that are written by themselves
# For all runs of a pack. On a disk more would compete for the interpreter, with each other and with who evaluates.
_WRITERS = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checkpoint")
_REMOTE_WRITERS = concurrent.futures.ThreadPoolExecutor(32, "checkpoint")
log = logging.getLogger("bigmodel")


class CheckpointError(Exception):
  """A checkpoint could not be written, and which step is good; or what is read is not what was written."""


class Checkpoints:
  """The checkpoints of one run. One save is in flight at most, in a thread."""

  def __init__(self, folder: epath.PathLike, keep: int = 2):
    self.folder = epath.Path(folder)
    self.keep = keep
    self._pending: concurrent.futures.Future | None = None
    self._threads = _REMOTE_WRITERS if "://" in str(folder) else _WRITERS
    # Several processes write together; orbax then lets them meet through the coordination service.
    self._together = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) if hosts.several() else None
    self._saves = 0
    self.marks: dict[str, str] = {}  # fingerprints of what was saved last

  def steps(self) -> list[int]:
    """The steps on disk, oldest first, damaged or not."""
    if not self.folder.exists():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

  def drop_after(self, step: int) -> None:
    """Makes `step` the newest: removes later checkpoints, and what a killed process left half written.

    Only for the process that trains: a reader must not remove a save in flight.
    """
    if not self.folder.exists():
      return
    for left in self.folder.glob(".*"):
      remove(left)
    for later in self.steps():
      if later > step:
        remove(self.folder / str(later))

  def save(self, step: int, state: Any, marks: dict[str, str] | None = None) -> None:
    """Starts writing a copy of `state`, of these fingerprints; raises what the previous save ran into."""
    self.wait()
    self._saves += 1
    marks = self.marks = marks or hosts.fingerprints(state)
    if self._together is None:
      whole, joined = _join(to_flat(state))
      self._pending = self._threads.submit(self._write, step, marks, whole, joined)
      return
    name = f"{self.folder.parent.name}/{step}/{self._saves}"
    remove(self.folder / f".{step}")
    if is_writer():
      self.folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier(f"{name}/begin")
    # Returns once the arrays are copied to the host.
    arrays = to_flat(state)
    problem = None
    try:
      self._together.save(self.folder / f".{step}" / "arrays", args=ocp.args.StandardSave(arrays))
    except Exception as error:  # the others have to know
      problem = error
    self._pending = self._threads.submit(self._write_together, step, marks, name, problem)

  def wait(self) -> None:
    """Waits for the save in flight; raises `CheckpointError` if it failed."""
    if self._pending is not None:
      concurrent.futures.wait([self._pending])  # who is interrupted here can wait again
      pending, self._pending = self._pending, None
      pending.result()

  def check(self) -> None:
    """Raises what a finished save ran into, without waiting for one in flight."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def close(self) -> None:
    try:
      self.wait()
    finally:
      if self._together is not None:
        self._together.close()

  def _write(
    self, step: int, marks: dict[str, str], whole: dict[str, np.ndarray], joined: dict[str, list[str]]
  ) -> None:
    temporary = self.folder / f".{step}"
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      remove(temporary)
      check_space(self.folder, whole)
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(temporary / "arrays", args=ocp.args.StandardSave(whole))
      self._commit(step, marks, joined)
    except Exception as error:
      remove(temporary)
      raise self._failure(step, error) from error

  def _write_together(self, step: int, marks: dict[str, str], name: str, problem: Exception | None) -> None:
    """The second half of a save by several processes: each waits for its part, one seals."""
    try:
      assert self._together is not None
      self._together.wait_until_finished()
    except Exception as error:
      problem = error
    problems = [text for text in hosts.gather(str(problem) if problem else "", f"{name}/written") if text]
    if not problems and is_writer():
      try:
        self._commit(step, marks, {})
      except Exception as error:
        problem, problems = error, [str(error)]
    problems = hosts.share(problems, f"{name}/sealed")
    if problems:
      raise self._failure(step, problem or OSError(problems[0])) from problem

  def _commit(self, step: int, marks: dict[str, str], joined: dict[str, list[str]]) -> None:
    target, temporary = self.folder / str(step), self.folder / f".{step}"
    seal(temporary, marks, joined)
    remove(target)
    temporary.rename(target)
    for old in self.steps()[: -self.keep]:
      remove(self.folder / str(old))

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    full = full or any(text in str(error) for text in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"))
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = "the disk is full" if full else first
    good = [s for s in self.steps() if s != step and damage(self.folder / str(s)) is None]
    last = f"the last good checkpoint is step {good[-1]}" if good else "there is no earlier checkpoint"
    return CheckpointError(f"{self.folder}: step {step} was not saved: {reason}; {last}")

  def verified_steps(self) -> list[int]:
    """The steps whose files are all as they were written, newest first; names the others in the log."""
    good = []
    for step in reversed(self.steps()):
      problem = damage(self.folder / str(step))
      if problem is None:
        good.append(step)
      else:
        log.warning("%s: checkpoint of step %d is damaged (%s); falling back", self.folder, step, problem)
    return good

  def restore(self, step: int, shapes: Any) -> Any:
    """The state of a verified step, in the structure and with the shardings of `shapes`.

    Leaves of `shapes` are ShapeDtypeStructs, or arrays; without shardings the result is on the host.
    """
    folder, wanted = self.folder / str(step), to_flat(shapes)
    sealed = read_seal(folder)
    for name in {**sealed["arrays"], **wanted}:
      there = sealed["arrays"][name].rsplit(" ", 1)[0] if name in sealed["arrays"] else "missing"
      here = f"{wanted[name].shape} {wanted[name].dtype}" if name in wanted else "missing"
      if there != here:
        raise ValueError(f"{folder}: array {name} is {there}, and {here} in this program")
    arrays = self._read(step, sealed, wanted)
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[name] for name in wanted])

  def arrays(
    self, step: int, prefix: str, shardings: Mapping[str, jax.sharding.Sharding] | None = None
  ) -> dict[str, Any]:
    """Arrays of a verified step whose names begin with `prefix`; no config is needed to read them, nor the others read.

    On the host; or, with `shardings` by name without the prefix, those that are named there, and what has one name,
    the prefix: each process then reads the parts that its devices hold.
    """
    sealed, wanted = read_seal(self.folder / str(step)), {}
    for name, mark in sealed["arrays"].items():
      own = name.removeprefix(prefix)
      if not name.startswith(prefix) or (shardings is not None and own and own not in shardings):
        continue
      shape, kind, _ = mark.rsplit(" ", 2)
      sharding = shardings[own] if shardings and own else None
      wanted[name] = jax.ShapeDtypeStruct(ast.literal_eval(shape), np.dtype(kind), sharding=sharding)
    return self._read(step, sealed, wanted)

  def _read(self, step: int, sealed: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Some arrays of a step by name, each where `wanted` has it."""
    folder, marks = self.folder / str(step), sealed["arrays"]
    placed = lambda x: getattr(x, "sharding", None) is not None
    wanted = {name: x if placed(x) else np.zeros(x.shape, x.dtype) for name, x in wanted.items()}
    joined = {f"joined.{kind}": (kind, names) for kind, names in sealed.get("joined", {}).items()}
    shape_of = lambda name: ast.literal_eval(marks[name].rsplit(" ", 2)[0])
    whole = dict(wanted)
    for name, (kind, inside) in joined.items():
      if whole.keys() & {*inside}:
        whole[name] = np.zeros(sum(math.prod(shape_of(one)) for one in inside), kind)
      for one in inside:
        whole.pop(one, None)
    arrays = {}
    if whole:
      how = ocp.checkpoint_utils.construct_restore_args(whole)
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = reader.restore(
          folder / "arrays", args=ocp.args.PyTreeRestore(whole, restore_args=how, partial_restore=True)
        )
    for name, (_, inside) in joined.items():
      if name not in arrays:
        continue
      ends = np.cumsum([math.prod(shape_of(one)) for one in inside])[:-1]
      for one, part in zip(inside, np.split(arrays.pop(name), ends), strict=True):
        if one in wanted:
          like, part = wanted[one], part.reshape(wanted[one].shape)
          arrays[one] = hosts.put(part, like.sharding) if placed(like) else part
    for name, mark in hosts.fingerprints(arrays).items():
      if mark != marks[name]:
        raise CheckpointError(f"{folder}: array {name} is not what was saved")
    return arrays


def _join(arrays: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
  """Copies of the arrays on the host, small ones joined to one of each type, and the names in those."""
  joined: dict[str, list[str]] = {}
  for name, array in arrays.items():
    if array.nbytes < LARGE:
      joined.setdefault(str(array.dtype), []).append(name)
  inside = {name for names in joined.values() for name in names}
  whole = {name: np.array(array) for name, array in arrays.items() if name not in inside}
  for kind, names in joined.items():
    whole[f"joined.{kind}"] = np.concatenate([np.ravel(arrays[name]) for name in names])
  return whole, joined


def to_flat(tree: Any) -> dict[str, Any]:
  """`{path: array}` of a tree; orbax and the seal know arrays by these names."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def check_space(folder: epath.Path, arrays: dict[str, np.ndarray]) -> None:
  """Raises ENOSPC where the arrays and their metadata would not fit; orbax says so late and in many words."""
  if "://" in str(folder):
    return  # an object store does not fill up
  needed = 1.1 * sum(array.nbytes for array in arrays.values()) + 1024 * len(arrays) + (1 << 16)
  if shutil.disk_usage(folder).free < needed:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def seal(folder: epath.PathLike, marks: dict[str, str], joined: dict[str, list[str]]) -> None:
  """Writes SEAL: what every file and array of a checkpoint must be, and which arrays are in one."""
  folder = epath.Path(folder)
  body = json.dumps({"files": _checksums(folder), "arrays": marks, "joined": joined}, sort_keys=True)
  write_text(folder / SEAL, hashlib.sha256(body.encode()).hexdigest() + "\n" + body)


def read_seal(folder: epath.PathLike) -> dict[str, Any]:
  """The seal of a checkpoint; ValueError where it is missing or damaged."""
  path = epath.Path(folder) / SEAL
  if not path.exists():
    raise ValueError("it has no seal")
  try:
    own, _, body = path.read_bytes().decode().partition("\n")
  except UnicodeDecodeError as error:
    raise ValueError("its seal is damaged") from error
  if hashlib.sha256(body.encode()).hexdigest() != own:
    raise ValueError("its seal is damaged")
  return json.loads(body)


def damage(folder: epath.PathLike) -> str | None:
  """What is wrong with a checkpoint's files, or None."""
  folder = epath.Path(folder)
  try:
    expected = read_seal(folder)["files"]
  except ValueError as error:
    return str(error)
  found = _checksums(folder)
  for name, value in expected.items():
    if name not in found:
      return f"file {name} is missing"
    if found[name] != value:
      return f"file {name} has changed"
  return None


def _checksums(folder: epath.Path) -> dict[str, str]:
  """The sha256 of every file below `folder` but the seal, by its relative name."""
  names = _files(folder)
  if "://" not in str(folder) and sum((folder / name).stat().length for name in names) < LARGE:
    return {name: sha256_file(folder / name) for name in names}
  with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing lets other threads run
    return dict(zip(names, pool.map(lambda name: sha256_file(folder / name), names), strict=True))


def _files(folder: epath.Path) -> list[str]:
  """Every file below `folder` but the seal, by its relative name."""
  found = []
  for path in folder.iterdir():
    if path.is_dir():
      found += [f"{path.name}/{name}" for name in _files(path)]
    elif path.name != SEAL:
      found.append(path.name)
  return sorted(found)
