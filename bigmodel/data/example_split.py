"""The split of examples into those to train on and those to evaluate on."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import splits
from bigmodel.data.fields import has_numeric_targets
from bigmodel.data.prepared import chunks
from bigmodel.data.sources import Arrays
from bigmodel.declarations import Value
from bigmodel.files import JsonObject


@dataclasses.dataclass(frozen=True)
class Split:
  """Examples with their split and what was learned from the training part, before targets are checked."""

  arrays: Arrays
  train: np.ndarray  # bool[examples]
  heldout: np.ndarray  # bool[examples]
  mean: np.ndarray
  deviation: np.ndarray
  sha256: str  # of what was read
  facts: Mapping[str, Value]  # beside those that `examples.finish` adds
  card: JsonObject


def divide(config: Config, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
  """The training and the held-out examples by `data.split`, as masks; copies of an image are in the same split."""
  data, classes = config.data, not has_numeric_targets(config.task)
  if data.split == "own" and arrays.heldout is not None:
    return ~arrays.heldout, arrays.heldout
  kind = ("stratified" if classes else "random") if data.split == "own" else data.split
  for field, column in (("group", arrays.group), ("time", arrays.time)):
    require(kind != field or column is not None, f"config.data.split: {field}; these data have no {field}")
  mine = np.arange(len(arrays.targets)) if arrays.heldout is None else np.flatnonzero(~arrays.heldout)
  copy_of = np.arange(len(mine))  # the place of the first copy of each example
  if kind in ("stratified", "random") and arrays.identities is not None:
    _, first, which = np.unique(arrays.identities[mine], return_index=True, return_inverse=True)
    copy_of = first[which]
  firsts, place = np.unique(copy_of, return_inverse=True)  # only first copies are drawn; the others follow them
  drawn = mine[firsts]
  folds = splits.Folds(kind, data.folds, data.fold, data.split_seed)
  group = None if arrays.group is None else arrays.group[drawn]
  time = None if arrays.time is None else arrays.time[drawn]
  parts = splits.split(folds, arrays.targets[drawn], group, time)
  train, heldout = np.zeros(len(arrays.targets), bool), np.zeros(len(arrays.targets), bool)
  train[mine], heldout[mine] = (part[place] for part in parts)
  return train, heldout


def in_both(split: Split) -> int:
  """The number of held-out examples with the inputs of a training example."""
  identities = split.arrays.identities
  if identities is None:
    values = np.ascontiguousarray(split.arrays.inputs, np.float32).view(np.uint32)
    odd = np.random.default_rng(0).integers(0, 1 << 63, values.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    identities = np.concatenate(
      [values[rows].astype(np.uint64) @ odd for rows in chunks(len(values), values.shape[1])] or [np.empty(0)]
    )
  return int(np.isin(identities[split.heldout], identities[split.train]).sum())
