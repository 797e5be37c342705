"""Checks of `config.parallel` against the devices, the batch and the model."""

import math

import jax

from bigmodel import declarations, models
from bigmodel.config import Config, require
from bigmodel.parallel.fields import Parallel
from bigmodel.parallel.logical_axes import BATCH, rules
from bigmodel.parallel.sizes import DIVIDES, divided_number, groups_of_experts, mesh_sizes, microbatches


def check(config: Config, devices: int | None = None) -> None:
  """Raises `UserError` if this batch and model do not fit the mesh; `devices` defaults to this job's devices."""
  declarations.check("parallel", Parallel, config.parallel)
  rules(config)
  sizes = mesh_sizes(config, jax.device_count() if devices is None else devices)
  if devices is None and jax.process_count() > 1:
    used = math.prod(sizes.values())
    require(
      used == jax.device_count(),
      f"config.parallel: {used} of {jax.device_count()} devices would be used, and some of"
      f" {jax.process_count()} processes have none of them; larger batches or other sizes",
    )
  _check_rows(config, sizes)
  _check_divided_numbers(config, sizes)
  _check_model(config, sizes)


def _check_rows(config: Config, sizes: dict[str, int]) -> None:
  """Raises `UserError` if the rows of a batch cannot be sharded evenly over the mesh."""
  pieces = microbatches(config, sizes["pipeline"])
  shards = math.prod(sizes[axis] for axis in BATCH)
  require(
    config.train.batch_size % config.train.accumulate == 0,
    f"config.train.batch_size: {config.train.batch_size} is not divisible by"
    f" config.train.accumulate = {config.train.accumulate}",
  )
  for group, batch in (
    ("train", config.train.batch_size // config.train.accumulate),
    ("eval", config.eval.batch_size),
  ):
    require(
      batch % (shards * pieces) == 0,
      f"config.{group}.batch_size: {batch} rows are not divisible by the mesh (data x fsdp x expert = {shards}"
      + (f", in {pieces} microbatches" if pieces > 1 else "")
      + f"); use a multiple of {shards * pieces} or set config.parallel.data",
    )


def _check_divided_numbers(config: Config, sizes: dict[str, int]) -> None:
  """Raises `UserError` if the size of an axis does not divide what is sharded over it."""
  for axis, names in DIVIDES.items():
    for name in names:
      number = divided_number(config, name)
      require(
        sizes[axis] == 1 or number is not None,
        f"config.parallel.{axis}: {sizes[axis]}; a {config.model.family} has no {name} to be sharded",
      )
      require(
        (number or 0) % sizes[axis] == 0,
        f"config.parallel.{axis}: {sizes[axis]} does not divide {name} = {number}",
      )


def _check_model(config: Config, sizes: dict[str, int]) -> None:
  """Raises `UserError` for options that the model's family does not support."""
  parallel, model = config.parallel, config.model
  supplied = models.family(model.family).SUPPLIED
  if "run_blocks" not in supplied:
    require(
      parallel.remat == "none" and not parallel.scan,
      f"config.parallel: a {model.family} has no stack of blocks to scan or to recompute",
    )
  if "attend" not in supplied or model.positions == "relative":
    require(
      parallel.attention in ("auto", "plain"),
      f"config.parallel.attention: {parallel.attention!r} is not for this {model.family}; use plain",
    )
  require(
    sizes["pipeline"] == 1 or not model.dropout,
    f"config.parallel.pipeline: {sizes['pipeline']} would draw other dropout masks; use 1 or model.dropout=0",
  )
  if divided_number(config, "model.experts"):
    groups = groups_of_experts(config)
    require(
      groups % sizes["sequence"] == 0,
      f"config.parallel.sequence: {sizes['sequence']} does not divide the {groups} groups of a row;"
      " set model.expert_group smaller",
    )
