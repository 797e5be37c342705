"""Writes the seal of a checkpoint, which lists its content, and verifies checkpoints against their seals."""

import ast
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import msgspec
import numpy as np
from etils import epath

from bigmodel.files import write_text

T = TypeVar("T")
SEAL = "SEAL"
BLOCK = 64 << 20  # bytes that are hashed together, so that processes and threads can share a large file
WORTH_THREADS = 1 << 20  # bytes from which several threads hash


class FileSums(msgspec.Struct, frozen=True):
  """The size of a file, and the sha256 of each of its blocks."""

  bytes: int
  block: int  # bytes
  sha256: list[str]


class Seal(msgspec.Struct, frozen=True):
  """The content of a checkpoint."""

  files: dict[str, FileSums | str]  # earlier versions wrote one sha256 of each file
  arrays: dict[str, str]  # 'shape dtype fingerprint' of each array by name, see `hosts.fingerprints`
  joined: dict[str, list[str]] = {}  # by type the names of the arrays that are stored as one


def write_seal(folder: epath.PathLike, seal: Seal) -> None:
  body = json.dumps(msgspec.to_builtins(seal), sort_keys=True)
  write_text(epath.Path(folder) / SEAL, hashlib.sha256(body.encode()).hexdigest() + "\n" + body)


def read_seal(folder: epath.PathLike) -> Seal:
  """The seal of a checkpoint. Raises ValueError where it is missing or damaged."""
  path = epath.Path(folder) / SEAL
  if not path.exists():
    raise ValueError("it has no seal")
  try:
    sha256, _, body = path.read_bytes().decode().partition("\n")
  except UnicodeDecodeError as error:
    raise ValueError("its seal is damaged") from error
  if hashlib.sha256(body.encode()).hexdigest() != sha256:
    raise ValueError("its seal is damaged")
  try:
    return msgspec.convert(json.loads(body), Seal)
  except msgspec.ValidationError as error:
    raise ValueError(f"its seal is not of this version ({error})") from error


def array_of(fingerprint: str) -> jax.ShapeDtypeStruct:
  """The shape and dtype in 'shape dtype fingerprint'."""
  shape, kind, _ = fingerprint.rsplit(" ", 2)
  return jax.ShapeDtypeStruct(ast.literal_eval(shape), np.dtype(kind))


@dataclasses.dataclass(frozen=True)
class _Block:
  """A part of a file that is hashed as one."""

  file: str
  start: int
  size: int
  file_size: int
  sha256: str


def damage(folder: epath.PathLike, part: int = 0, parts: int = 1) -> str | None:
  """Describes what is wrong with a checkpoint's files; None if nothing is.

  `parts` processes together hash all files; this one hashes the share `part`.
  """
  folder = epath.Path(folder)
  try:
    blocks = [block for name, sums in sorted(_file_sums(folder).items()) for block in _blocks(name, sums)]
    share = _share(blocks, part, parts)
    unchanged = _in_threads(lambda block: block.sha256 == _sha256(folder, block), share)
    for block, same in zip(share, unchanged, strict=True):
      if not same or (folder / block.file).stat().length != block.file_size:
        return f"file {block.file} has changed"
  except FileNotFoundError as error:
    return f"file {os.path.relpath(error.filename or folder, folder)} is missing"
  except (NotADirectoryError, IsADirectoryError, PermissionError) as error:
    return f"file {os.path.relpath(error.filename or folder, folder)} cannot be read ({error.strerror})"
  except ValueError as error:
    return str(error)
  return None


def _share(blocks: Sequence[_Block], part: int, parts: int) -> list[_Block]:
  """The blocks of the share `part`, when their bytes are cut into `parts` equal parts."""
  ends = list(itertools.accumulate(block.size for block in blocks))
  share = []
  for block, end in zip(blocks, ends, strict=True):
    middle = end - block.size / 2
    if min(parts - 1, int(middle * parts / max(1, ends[-1]))) == part:
      share.append(block)
  return share


def _blocks(name: str, sums: FileSums) -> list[_Block]:
  size, step = sums.bytes, max(1, sums.block)
  return [_Block(name, i * step, min(step, size - i * step), size, sha256) for i, sha256 in enumerate(sums.sha256)]


def _file_sums(folder: epath.Path) -> dict[str, FileSums]:
  """The sums of every file in the seal; a single sha256 of a file, from an earlier version, becomes one block."""
  sums = {}
  for name, of_file in read_seal(folder).files.items():
    if isinstance(of_file, str):
      size = (folder / name).stat().length
      of_file = FileSums(size, size, [of_file])
    sums[name] = of_file
  return sums


def checksums(folder: epath.Path, names: Sequence[str]) -> dict[str, FileSums]:
  """Size and sha256 of these files below `folder`, block by block."""
  sizes = {name: (folder / name).stat().length for name in names}
  blocks = {
    name: [_Block(name, start, min(BLOCK, size - start), size, "") for start in range(0, max(size, 1), BLOCK)]
    for name, size in sizes.items()
  }
  every = [block for of_file in blocks.values() for block in of_file]
  sha256 = iter(_in_threads(lambda block: _sha256(folder, block), every))
  return {name: FileSums(sizes[name], BLOCK, [next(sha256) for _ in of_file]) for name, of_file in blocks.items()}


def _sha256(folder: epath.Path, block: _Block) -> str:
  """The sha256 of a block's bytes on disk."""
  digest, left = hashlib.sha256(), block.size
  with (folder / block.file).open("rb") as file:
    file.seek(block.start)
    while left and (content := file.read(min(left, 1 << 20))):
      digest.update(content)
      left -= len(content)
  return digest.hexdigest()


def _in_threads(work: Callable[[_Block], T], blocks: Sequence[_Block]) -> list[T]:
  """Applies `work` to each block, in several threads if there are many bytes; hashing releases the interpreter lock."""
  if sum(block.size for block in blocks) < WORTH_THREADS:
    return [work(block) for block in blocks]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    return list(pool.map(work, blocks))


def is_complete(folder: epath.Path) -> bool:
  """Whether all files exist with their sizes; their content is not read."""
  try:
    return all((folder / name).stat().length == sums.bytes for name, sums in _file_sums(folder).items())
  except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError):
    return False


def same_content(one: epath.Path, other: epath.Path) -> bool:
  """Whether two checkpoints are complete and hold the same arrays. False if one is removed meanwhile."""
  try:
    return is_complete(one) and is_complete(other) and read_seal(one).arrays == read_seal(other).arrays
  except (FileNotFoundError, ValueError):
    return False


def difference(stored: Mapping[str, str], wanted: Mapping[str, jax.Array]) -> str:
  """Describes the first array whose shape or dtype differs between a checkpoint and a program; '' if none does."""
  for name in {**stored, **wanted}:
    there = stored[name].rsplit(" ", 1)[0] if name in stored else "missing"
    here = f"{wanted[name].shape} {wanted[name].dtype}" if name in wanted else "missing"
    if there != here:
      return f"array {name} is {there}, and {here} in this program"
  return ""
