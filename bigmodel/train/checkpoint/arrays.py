"""Stores the arrays of a checkpoint with orbax, and reads all or some of them onto the host or onto devices."""

import math
from typing import TypeAlias, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bigmodel.errors import CheckpointError
from bigmodel.parallel import hosts
from bigmodel.train.checkpoint.integrity import Seal, array_of
from bigmodel.types import PyTree

# Arrays by dotted name: on devices or on the host; abstract arrays where they describe what to restore.
Arrays: TypeAlias = dict[str, jax.Array]

SMALL = 1 << 20  # bytes: smaller arrays are joined
JOINED = 16 << 20  # bytes of small arrays that are joined at most, as every process that restores some reads all
JOINED_NAME = "joined."  # and the type: the name of joined arrays
MOST_CUTS = 256  # the largest prime factor of an axis that is cut
CHUNK = 4 << 20  # bytes of the pieces in which arrays are stored: a process that restores a part reads only some


def to_flat(tree: PyTree) -> Arrays:
  """The leaves of a tree by dotted path, the names of arrays in checkpoints and in patterns of a config."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def join(arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
  """Copies the arrays to the host, small ones joined to one per dtype; returns them and the joined names by dtype."""
  joined: dict[str, list[str]] = {}
  total = 0
  for name, array in sorted(arrays.items(), key=lambda item: item[1].nbytes):
    total += array.nbytes
    if array.nbytes < SMALL and total <= JOINED:
      joined.setdefault(str(array.dtype), []).append(name)
  inside = {name for names in joined.values() for name in names}
  stored = {name: np.array(array) for name, array in arrays.items() if name not in inside}
  for kind, names in joined.items():
    stored[f"{JOINED_NAME}{kind}"] = np.concatenate([np.ravel(arrays[name]) for name in names])
  return stored, joined


def save_args(arrays: Arrays | dict[str, np.ndarray]) -> ocp.args.StandardSave:
  """The arguments with which orbax saves these arrays."""
  return ocp.args.StandardSave(arrays, save_args={name: _in_pieces(name, x.shape) for name, x in arrays.items()})


def _in_pieces(name: str, shape: tuple[int, ...]) -> ocp.SaveArgs:
  """How orbax stores an array: in pieces of at most `CHUNK` bytes, where its shape allows.

  Orbax cuts axes at divisors of their lengths only, so a prime axis would be stored number by number. Joined arrays
  have any length, and are read as a whole.
  """
  whole = name.startswith(JOINED_NAME) or any(_largest_prime_factor(size) > MOST_CUTS for size in shape)
  return ocp.SaveArgs(chunk_byte_size=None if whole else CHUNK)


def _largest_prime_factor(number: int) -> int:
  largest, factor = 1, 2
  while factor * factor <= number:
    while number % factor == 0:
      largest, number = factor, number // factor
    factor += 1
  return max(largest, number)


def read(folder: epath.Path, seal: Seal, wanted: Arrays) -> Arrays:
  """Some arrays of a checkpoint by name, each with the sharding of its description in `wanted`, or else on the host.

  Raises `CheckpointError` if an array does not have its fingerprint in the seal.
  """
  joined = {f"{JOINED_NAME}{kind}": names for kind, names in seal.joined.items()}
  inside = {name for names in joined.values() for name in names}
  stored = {name: x if _is_placed(x) else _on_host(x) for name, x in wanted.items() if name not in inside}
  for name, names in joined.items():
    if wanted.keys() & {*names}:
      sizes = [math.prod(array_of(seal.arrays[member]).shape) for member in names]
      stored[name] = np.zeros(sum(sizes), name.removeprefix(JOINED_NAME))
  arrays = _restore(folder, stored)
  for name, names in joined.items():
    if name in arrays:
      arrays |= _split(arrays.pop(name), names, seal, wanted)
  for name, fingerprint in hosts.fingerprints(arrays).items():
    if fingerprint != seal.arrays[name]:
      raise CheckpointError(f"{folder}: array {name} is not what was saved")
  return arrays


def _is_placed(x: jax.Array) -> bool:
  return getattr(x, "sharding", None) is not None


def _on_host(x: jax.Array) -> np.ndarray:
  return np.zeros(x.shape, x.dtype)


def _restore(folder: epath.Path, stored: PyTree) -> Arrays:
  if not stored:
    return {}
  restore_args = ocp.checkpoint_utils.construct_restore_args(stored)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return reader.restore(
      folder / "arrays", args=ocp.args.PyTreeRestore(stored, restore_args=restore_args, partial_restore=True)
    )


def _split(joined: jax.Array, names: list[str], seal: Seal, wanted: Arrays) -> Arrays:
  """The wanted ones of the joined arrays, with the shardings of their descriptions."""
  ends = np.cumsum([math.prod(array_of(seal.arrays[name]).shape) for name in names])[:-1]
  arrays: Arrays = {}
  for name, part in zip(names, np.split(joined, ends), strict=True):
    if name in wanted:
      description, part = wanted[name], part.reshape(wanted[name].shape)
      arrays[name] = hosts.put(part, description.sharding) if _is_placed(description) else cast(jax.Array, part)
  return arrays
