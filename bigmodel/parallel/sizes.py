"""Sizes of the axes of a mesh: sizes in the config are requirements, sizes of a preset are preferences."""

import math
from collections.abc import Mapping

import jax

from bigmodel import models, user_files
from bigmodel.config import Config, require
from bigmodel.parallel.fields import PRESETS
from bigmodel.parallel.logical_axes import AXES, BATCH

# The size of an axis has to divide the values of these fields.
DIVIDES = {
  "tensor": ("model.heads", "model.kv_heads"),
  "sequence": ("data.context",),
  "pipeline": ("model.layers",),
  "expert": ("model.experts",),
}


def mesh_sizes(config: Config, devices: int) -> dict[str, int]:
  """Returns the size of each axis except `member`; raises `UserError` if the sizes in the config are impossible.

  Sizes in the config are used exactly. Sizes that a preset prefers shrink until they divide the devices, the model and
  the rows of a batch. The axis that takes the remaining devices (-1) takes fewer of them if they do not divide the rows
  or, for `fsdp`, the widths of the model. So a small batch runs on a large machine, and `data` gets the devices that
  the `fsdp` of a preset cannot use.
  """
  requested = {axis: config.parallel[axis] for axis in AXES[1:]}
  for axis, size in requested.items():
    require(size >= -1, f"config.parallel.{axis}: {size} is neither positive nor 0 nor -1")
  free = [axis for axis, size in requested.items() if size == -1]
  require(len(free) <= 1, f"config.parallel: only one axis may be -1, not {' and '.join(free)}")
  fixed = math.prod(size for size in requested.values() if size > 0)
  require(devices >= fixed, f"config.parallel: {fixed} devices are required, {devices} are available")
  left = devices // fixed
  sizes = {axis: max(size, 1) for axis, size in requested.items()}
  for axis, wish in PRESETS[config.parallel.preset].items():
    if requested[axis] == 0 and wish == -1 and not free:
      free = [axis]
    elif requested[axis] == 0 and wish > 0:
      limit = math.gcd(left, _limit(config, axis, sizes))
      possible = (n for n in range(2, wish + 1) if limit % n == 0 and _rows_fit(config, {**sizes, axis: n}))
      sizes[axis] = max(possible, default=1)
      left //= sizes[axis]
  return _with_devices_left(config, sizes, free[0], left) if free else sizes


def _rows_fit(config: Config, sizes: Mapping[str, int]) -> bool:
  """Whether the rows of a batch can be sharded over axes of these sizes."""
  rows = math.gcd(config.train.batch_size // config.train.accumulate, config.eval.batch_size)
  return rows % (math.prod(sizes[axis] for axis in BATCH) * microbatches(config, sizes["pipeline"])) == 0


def _with_devices_left(config: Config, sizes: dict[str, int], axis: str, left: int) -> dict[str, int]:
  """Assigns the remaining devices to one axis, as far as it can use them, and returns all sizes."""
  if axis not in BATCH:
    return {**sizes, axis: left}
  fitting = [n for n in range(1, left + 1) if _rows_fit(config, {**sizes, axis: n})] or [1]
  if axis != "fsdp":
    return {**sizes, axis: max(fitting)}
  stored = math.gcd(*_widths(config)) // math.prod(sizes[other] for other in ("sequence", "expert"))
  options = [(math.gcd(n, stored), n) for n in fitting]  # (size of fsdp, devices of fsdp and data together)
  if config.parallel.fsdp or config.parallel.data:
    options = [(fsdp, n) for fsdp, n in options if fsdp == n or not stored] or [(1, 1)]
  if any(2 * n >= left for _, n in options):
    # Memory comes before speed, as long as at least half of the devices are used.
    options = [(fsdp, n) for fsdp, n in options if 2 * n >= left]
  fsdp, n = max(options) if stored else (max(fitting),) * 2
  return {**sizes, "fsdp": fsdp} | ({"data": n // fsdp} if n > fsdp else {})


def _widths(config: Config) -> tuple[int, ...]:
  """Returns the lengths of the axes named `embed` of a model's parameters."""
  model = config.model
  if user_files.is_reference(model.family):  # a user's model is sharded only if it names its axes
    return ()
  if "hidden" in model:
    return (model.hidden,) if isinstance(model.hidden, int) else tuple(model.hidden)
  return (model.width,) if "heads" in model else ()


def _limit(config: Config, axis: str, sizes: Mapping[str, int]) -> int:
  """Returns the number that a preset's size of an axis has to divide, given the sizes of the other axes."""
  numbers = [divided_number(config, name) or 1 for name in DIVIDES[axis]]
  if axis == "tensor":
    numbers.append(config.model.get("feed_forward", 0))
  if axis in ("sequence", "expert"):  # axes named `embed` are sharded over these and `fsdp`
    others = math.prod(sizes[other] for other in ("fsdp", "sequence", "expert") if other != axis)
    numbers.append(math.gcd(*_widths(config)) // others)
  if axis == "sequence" and divided_number(config, "model.experts"):
    numbers.append(groups_of_experts(config))
  if axis == "pipeline" and config.model.get("dropout"):
    numbers.append(1)
  return math.gcd(*numbers)


def divided_number(config: Config, name: str) -> int | None:
  """Returns the number that an axis of the mesh has to divide; None if the model or its data do not have it."""
  if user_files.is_reference(config.model.family):
    return None
  group, field = name.split(".")
  field = "heads" if field == "kv_heads" and field not in config.model else field
  if name in ("data.context", "model.layers") and name not in models.in_pieces(config.model):
    return None
  return config[group].get(field)


def groups_of_experts(config: Config) -> int:
  """Returns the number of groups of a row whose tokens are routed to experts together."""
  return config.data.context // (config.model.expert_group or config.data.context)


def microbatches(config: Config, stages: int) -> int:
  """Returns the number of microbatches that pass through a pipeline; 1 without a pipeline."""
  return 1 if stages == 1 else config.parallel.microbatches or 2 * stages


def notes(config: Config, sizes: Mapping[str, int], devices: int) -> list[str]:
  """Returns notes about idle devices and about sizes of a preset that were reduced."""
  wishes, used = PRESETS[config.parallel.preset].items(), math.prod(sizes.values())
  idle = [
    f"{devices - used} of {devices} devices are idle: the batch of {config.train.batch_size} and the model can be split"
    f" over {used}; other batch sizes or config.parallel may use more"
  ]
  return (idle if used < devices else []) + [
    f"config.parallel.preset: {config.parallel.preset} prefers {axis}={wish}, but {axis}={sizes[axis]} is the"
    " largest size that divides the devices, the model and the batch"
    for axis, wish in wishes
    if wish > sizes[axis] and not config.parallel[axis]
  ]


def notes_here(config: Config) -> list[str]:
  """Returns the notes about a run on the devices of this job."""
  return notes(config, mesh_sizes(config, jax.device_count()), jax.device_count())
