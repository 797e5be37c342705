"""Checkpoints: orbax arrays in the background, sealed by checksums, verified on restore.

`checkpoints/STEP/arrays` is written by orbax, by every process its part; a single process joins small arrays to one of
each type, as each takes orbax a millisecond. `checkpoints/STEP/SEAL` holds the size and the sha256 of every file, block
by block, the fingerprint of every array and the names of the joined ones, and begins with the sha256 of itself. Each
process hashes the files that it wrote. Before a restore, one step is verified: each process hashes a share of it.
Nothing in a checkpoint depends on the mesh: it restores on any other, and every process reads what its devices hold.

A writer has a temporary folder that no other writer uses. It becomes `STEP` by a rename once all of it is on disk, so
two writers of one run, of which one does not know yet that the other has taken over, leave sound checkpoints only.
"""

import ast
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel import processes
from bigmodel.errors import CheckpointError, Interrupted
from bigmodel.files import remove, write_text
from bigmodel.parallel import hosts
from bigmodel.train.stop import LOST

T = TypeVar("T")
SEAL = "SEAL"
LARGE = 1 << 20  # bytes: files that are worth threads, arrays that are written by themselves
JOINED = 16 << 20  # bytes of small arrays that are joined, for every process that restores them reads them all
JOINED_NAME = "joined."  # and the type: how joined arrays are called
MOST_CUTS = 256  # the largest prime factor of an axis that is cut
CHUNK = 4 << 20  # bytes: arrays are stored in pieces, of which a process that restores a part of an array reads a few
BLOCK = 64 << 20  # bytes of a file that are hashed as one, so that processes and threads share a large file
COMMIT_TRIES = 10
ABANDONED_SECONDS = 24 * 3600.0  # since a writer on another machine changed a file, after which it is taken for dead
# For all runs of a pack. On a disk more would compete for the interpreter, with each other and with who evaluates.
_WRITERS = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), "checkpoint")
_REMOTE_WRITERS = concurrent.futures.ThreadPoolExecutor(32, "checkpoint")
log = logging.getLogger("bigmodel")


class Checkpoints:
  """The checkpoints of one run. One save is in flight at most, in a thread."""

  def __init__(self, folder: epath.PathLike, keep: int = 2, lost: Callable[[], bool] = lambda: False):
    """`lost` tells whether another worker has taken over the run: then nothing is committed any more."""
    self.folder = epath.Path(folder)
    self.keep = keep
    self.lost = lost
    self._pending: concurrent.futures.Future | None = None
    self._threads = _REMOTE_WRITERS if "://" in str(folder) else _WRITERS
    # Several processes write together; orbax then lets them meet through the coordination service.
    self._together = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler()) if hosts.several() else None
    self.marks: dict[str, str] = {}  # fingerprints of what was saved last

  def steps(self) -> list[int]:
    """The steps on disk, oldest first, damaged or not."""
    if not self.folder.exists():
      return []
    return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

  def drop_after(self, step: int) -> None:
    """Makes `step` the newest: removes later checkpoints, and what writers left half written that have ended.

    Only for the process that trains.
    """
    if not self.folder.exists():
      return
    for left in self.folder.glob(".*"):
      if _is_abandoned(left):
        _discard(left)
    for later in self.steps():
      if later > step:
        _discard(self.folder / str(later))

  def save(self, step: int, state: Any, marks: dict[str, str] | None = None) -> None:
    """Starts writing a copy of `state`, of these fingerprints; raises what the previous save ran into."""
    self.wait()
    marks = self.marks = marks or hosts.fingerprints(state)
    # The name is agreed upon: it tells apart this save from all others, of other writers too.
    name = hosts.share(f".{step}.{processes.this_process()}.{uuid.uuid4().hex[:12]}")
    temporary = self.folder / name
    if self._together is None:
      whole, joined = _join(to_flat(state))
      self._pending = self._threads.submit(self._write, step, temporary, marks, whole, joined)
      return
    if hosts.is_first():
      self.folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier(f"{name}/begin")
    # Returns once the arrays are copied to the host.
    arrays = to_flat(state)
    problem = None
    try:
      self._together.save(temporary / "arrays", args=_save_args(arrays))
    except Exception as error:  # the others have to know
      problem = error
    self._pending = self._threads.submit(self._write_together, step, temporary, marks, problem)

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
    self,
    step: int,
    temporary: epath.Path,
    marks: dict[str, str],
    whole: dict[str, np.ndarray],
    joined: dict[str, list[str]],
  ) -> None:
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      check_space(self.folder, whole)
      with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(temporary / "arrays", args=_save_args(whole))
      seal(temporary, checksums(temporary, _files(temporary)), marks, joined)
      self._commit(step, temporary)
    except Interrupted:
      raise
    except Exception as error:
      _discard(temporary)
      raise self._failure(step, error) from error

  def _write_together(self, step: int, temporary: epath.Path, marks: dict[str, str], problem: Exception | None) -> None:
    """The second half of a save by several processes: each waits for its part and hashes it, one seals."""
    name, sums = temporary.name, {}
    try:
      assert self._together is not None
      self._together.wait_until_finished()
    except Exception as error:
      problem = error
    hosts.barrier(f"{name}/written")
    try:
      if problem is None:
        mine = [file for file in _files(temporary) if _writer_of(file) == jax.process_index()]
        sums = checksums(temporary, mine)
    except Exception as error:
      problem = error
    parts = hosts.collect(
      {"problem": str(problem) or repr(problem) if problem else "", "files": sums}, f"{name}/hashed"
    )
    problems, lost = [part["problem"] for part in parts if part["problem"]], False
    if hosts.is_first() and not problems:
      try:
        seal(temporary, {file: facts for part in parts for file, facts in part["files"].items()}, marks, {})
        self._commit(step, temporary)
      except Interrupted:
        lost = True
      except Exception as error:
        problem, problems = error, [str(error) or repr(error)]
    problems, lost = hosts.share((problems, lost), f"{name}/sealed")
    if lost:
      raise Interrupted(LOST)
    if problems:
      _discard(temporary)
      raise self._failure(step, problem or OSError(problems[0])) from problem

  def _commit(self, step: int, temporary: epath.Path) -> None:
    """Gives a complete checkpoint its name. One of that name keeps it until then, or for good if it is the same."""
    if self.lost():
      _discard(temporary)
      raise Interrupted(LOST)
    target = self.folder / str(step)
    for _ in range(COMMIT_TRIES):
      try:
        temporary.rename(target)  # fails where a checkpoint is there
        break
      except OSError as error:
        if not target.exists():
          if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer has removed it since
            continue
          raise
      if _same_content(target, temporary):
        _discard(temporary)
        break
      replaced = self.folder / f"{temporary.name}.replaced"
      with contextlib.suppress(FileNotFoundError):  # another writer was faster
        target.rename(replaced)
      try:
        temporary.rename(target)
        _discard(replaced)
        break
      except OSError:
        if replaced.exists() and not target.exists():
          replaced.rename(target)
          raise
        _discard(replaced)
    else:
      raise OSError(f"{target} was replaced by others {COMMIT_TRIES} times")
    for old in self.steps()[: -self.keep]:
      _discard(self.folder / str(old))

  def _failure(self, step: int, error: Exception) -> CheckpointError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    full = full or any(text in str(error) for text in ("No space left", "RESOURCE_EXHAUSTED", "ENOSPC"))
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    reason = "the disk is full" if full else first
    complete = [s for s in self.steps() if s != step and _is_complete(self.folder / str(s))]
    last = f"the last complete checkpoint is step {complete[-1]}" if complete else "there is no earlier checkpoint"
    return CheckpointError(f"{self.folder}: step {step} was not saved: {reason}; {last}")

  def is_sound(self, step: int) -> bool:
    """Whether all files of a step are as they were written; names what is wrong in the log.

    All processes of a job call it together. Each hashes its share of the files, as many bytes as the others.
    """
    problems = hosts.gather(damage(self.folder / str(step), jax.process_index(), jax.process_count()))
    problem = next((text for text in problems if text), None)
    if problem is not None:
      log.warning("%s: checkpoint of step %d is damaged (%s); falling back", self.folder, step, problem)
    return problem is None

  def newest_sound(self) -> int | None:
    """The newest step whose files are all as they were written; older ones are not read. For all processes."""
    return newest_common([self])

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

  def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a step, as its seal says it."""
    marks = read_seal(self.folder / str(step))["arrays"]
    return {name: ast.literal_eval(mark.rsplit(" ", 2)[0]) for name, mark in marks.items()}

  def arrays(
    self, step: int, prefix: str, shardings: Mapping[str, jax.sharding.Sharding | None] | None = None
  ) -> dict[str, Any]:
    """Arrays of a verified step whose names begin with `prefix`; no config is needed to read them, nor the others read.

    On the host; or, with `shardings` by name without the prefix, those that are named there, and what has one name,
    the prefix: each process then reads the parts that its devices hold. Where a sharding is None: on the host.
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
    joined = {f"{JOINED_NAME}{kind}": (kind, names) for kind, names in sealed.get("joined", {}).items()}
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


def newest_common(stores: Sequence[Checkpoints], most: int | None = None) -> int | None:
  """The newest step, up to `most`, of which all have a sound checkpoint. Steps are verified from the newest on.

  All processes of a job call it together.
  """
  tried: set[int] = set()

  def candidate() -> int | None:
    # Looks again each time: meanwhile another writer may have committed a newer one and removed an older one.
    common = set.intersection(*({*store.steps()} for store in stores)) - tried
    return max((step for step in common if most is None or step <= most), default=None)

  while (step := hosts.first(candidate)) is not None:
    tried.add(step)
    if all(store.is_sound(step) for store in stores):
      return step
  return None


def _join(arrays: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
  """Copies of the arrays on the host, small ones joined to one of each type, and the names in those."""
  joined: dict[str, list[str]] = {}
  total = 0
  for name, array in sorted(arrays.items(), key=lambda item: item[1].nbytes):
    total += array.nbytes
    if array.nbytes < LARGE and total <= JOINED:
      joined.setdefault(str(array.dtype), []).append(name)
  inside = {name for names in joined.values() for name in names}
  whole = {name: np.array(array) for name, array in arrays.items() if name not in inside}
  for kind, names in joined.items():
    whole[f"{JOINED_NAME}{kind}"] = np.concatenate([np.ravel(arrays[name]) for name in names])
  return whole, joined


def _save_args(arrays: dict[str, Any]) -> ocp.args.StandardSave:
  return ocp.args.StandardSave(arrays, save_args={name: _in_pieces(name, x) for name, x in arrays.items()})


def _in_pieces(name: str, array: Any) -> ocp.SaveArgs:
  """How orbax stores an array: in pieces of at most `CHUNK` bytes, where its shape allows.

  Orbax cuts axes at divisors of their lengths only, so a prime axis would be stored number by number. Joined arrays
  have any length, and are read as a whole.
  """
  whole = name.startswith(JOINED_NAME) or any(_largest_prime_factor(size) > MOST_CUTS for size in array.shape)
  return ocp.SaveArgs(chunk_byte_size=None if whole else CHUNK)


def _largest_prime_factor(number: int) -> int:
  largest, factor = 1, 2
  while factor * factor <= number:
    while number % factor == 0:
      largest, number = factor, number // factor
    factor += 1
  return max(largest, number)


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


def seal(
  folder: epath.PathLike, sums: dict[str, dict[str, Any]], marks: dict[str, str], joined: dict[str, list[str]]
) -> None:
  """Writes SEAL: what every file (`checksums`) and array of a checkpoint must be, and which arrays are in one."""
  body = json.dumps({"files": sums, "arrays": marks, "joined": joined}, sort_keys=True)
  write_text(epath.Path(folder) / SEAL, hashlib.sha256(body.encode()).hexdigest() + "\n" + body)


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


def damage(folder: epath.PathLike, part: int = 0, parts: int = 1) -> str | None:
  """What is wrong with a checkpoint's files, or None. Of `parts` processes, which together hash all, this one hashes
  the share `part`.
  """
  folder = epath.Path(folder)
  try:
    blocks = [block for name, facts in sorted(_sealed_files(folder).items()) for block in _blocks(name, facts)]
    ends = list(itertools.accumulate(block.size for block in blocks))
    # The share in which a block's middle lies.
    share_of = lambda block, end: min(parts - 1, int((end - block.size / 2) * parts / max(1, ends[-1])))
    own = [block for block, end in zip(blocks, ends, strict=True) if share_of(block, end) == part]
    found = _in_threads(lambda block: block.sha256 == _sha256(folder, block), own, sum(block.size for block in own))
    for block, same in zip(own, found, strict=True):
      if not same or (folder / block.file).stat().length != block.of:
        return f"file {block.file} has changed"
  except FileNotFoundError as error:
    return f"file {os.path.relpath(error.filename or folder, folder)} is missing"
  except ValueError as error:
    return str(error)
  return None


@dataclasses.dataclass(frozen=True)
class _Block:
  """A part of a file that is hashed as one."""

  file: str
  start: int
  size: int
  of: int  # bytes of the file
  sha256: str


def _blocks(name: str, facts: dict[str, Any]) -> list[_Block]:
  size, step = facts["bytes"], max(1, facts["block"])
  return [_Block(name, i * step, min(step, size - i * step), size, value) for i, value in enumerate(facts["sha256"])]


def _sealed_files(folder: epath.Path) -> dict[str, dict[str, Any]]:
  """What the seal says of every file. Seals from before files were hashed in blocks have one sha256 of each."""
  sealed = read_seal(folder)["files"]
  for name, facts in sealed.items():
    if isinstance(facts, str):
      size = (folder / name).stat().length
      sealed[name] = {"bytes": size, "block": size, "sha256": [facts]}
  return sealed


def checksums(folder: epath.Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Size and sha256 of these files below `folder`, block by block, as the seal keeps them."""
  sizes = {name: (folder / name).stat().length for name in names}
  blocks = {
    name: [_Block(name, start, min(BLOCK, size - start), size, "") for start in range(0, max(size, 1), BLOCK)]
    for name, size in sizes.items()
  }
  every = [block for own in blocks.values() for block in own]
  found = iter(_in_threads(lambda block: _sha256(folder, block), every, sum(sizes.values())))
  return {
    name: {"bytes": sizes[name], "block": BLOCK, "sha256": [next(found) for _ in own]} for name, own in blocks.items()
  }


def _sha256(folder: epath.Path, block: _Block) -> str:
  """Of the bytes that are there now in the place of a block."""
  digest, left = hashlib.sha256(), block.size
  with (folder / block.file).open("rb") as file:
    file.seek(block.start)
    while left and (content := file.read(min(left, 1 << 20))):
      digest.update(content)
      left -= len(content)
  return digest.hexdigest()


def _in_threads(work: Callable[[_Block], T], blocks: Sequence[_Block], total: int) -> list[T]:
  """What `work` makes of each; hashing lets other threads run, which pays where there are many bytes in all."""
  if total < LARGE:
    return [work(block) for block in blocks]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(work, blocks))


def _is_complete(folder: epath.Path) -> bool:
  """Whether all files are there in their sizes; their content is not read."""
  try:
    return all((folder / name).stat().length == facts["bytes"] for name, facts in _sealed_files(folder).items())
  except (FileNotFoundError, ValueError):
    return False


def _same_content(one: epath.Path, other: epath.Path) -> bool:
  """Whether two checkpoints are complete and hold the same arrays; not so if another writer removes one meanwhile."""
  try:
    return _is_complete(one) and _is_complete(other) and read_seal(one)["arrays"] == read_seal(other)["arrays"]
  except (FileNotFoundError, ValueError):
    return False


def _is_abandoned(temporary: epath.Path) -> bool:
  """Whether the writer of a temporary folder is gone: certainly, or as nothing has changed in it for a day."""
  parts = temporary.name.split(".")
  if len(parts) > 2 and processes.has_certainly_ended(parts[2]):
    return True
  if len(parts) > 2 and parts[2] == processes.this_process():
    return False
  try:
    changed = max(path.stat().mtime for path in (temporary, *map(temporary.joinpath, _files(temporary))))
  except FileNotFoundError:  # it is in use, or being removed
    return False
  return time.time() - changed > ABANDONED_SECONDS


def _discard(folder: epath.Path) -> None:
  """Removes a checkpoint or temporary folder; others may do the same, and readers never see half of a checkpoint."""
  if not hosts.is_first():
    return
  hidden = folder
  if folder.name.isdigit():
    hidden = folder.parent / f".{folder.name}.{processes.this_process()}.{uuid.uuid4().hex[:12]}.removed"
    try:
      folder.rename(hidden)
    except FileNotFoundError:
      return
  for _ in range(3):  # files may come while it is removed
    try:
      remove(hidden)
      return
    except OSError:
      continue


def _writer_of(file: str) -> int:
  """The process that wrote a file: of orbax's, each has a folder with its data; the first wrote all else, which is
  little.
  """
  found = re.match(r"arrays/ocdbt\.process_(\d+)/", file)
  return int(found[1]) if found else 0


def _files(folder: epath.Path) -> list[str]:
  """Every file below `folder` but the seal, by its relative name."""
  found = []
  for path in folder.iterdir():
    if path.is_dir():
      found += [f"{path.name}/{name}" for name in _files(path)]
    elif path.name != SEAL:
      found.append(path.name)
  return sorted(found)
