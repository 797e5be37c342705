"""Search over layouts: every mesh, remat policy and number of microbatches that fits, fastest first."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping

from bigmodel import models, parallel
from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.parallel.topology import Topology
from bigmodel.planner.plan import RunPlan, plan_run
from bigmodel.train.configs import with_overrides

KEPT = 8
COMPILED = 3  # layouts to compile, the fastest by arithmetic; the compiler decides whether they fit


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh, remat policy and number of microbatches, as overrides of a config, and the plan with them."""

  overrides: dict[str, int | str]
  plan: RunPlan


def search(config: Config, topology: Topology, prices: Mapping[str, float]) -> list[Layout]:
  """The layouts that fit, fastest first; the first few are compiled where a compiler is installed.

  Raises `UserError` for models other than decoders.
  """
  if not models.in_pieces(config.model):
    raise UserError(f"--search: supports decoders only, not {config.model.family}")
  fitting = _fitting(config, topology, prices)
  if topology.devices is None or not topology.kind:
    return fitting
  best: list[Layout] = []
  while fitting and len(best) < COMPILED:  # arithmetic can be wrong about what fits
    overrides = fitting.pop(0).overrides
    compiled = plan_run(with_overrides(config, overrides), topology, prices)
    if compiled.costs.fits:
      best.append(Layout(overrides, compiled))
  return sorted(best, key=_step_seconds) + fitting


def _fitting(config: Config, topology: Topology, prices: Mapping[str, float]) -> list[Layout]:
  """The fastest layouts that fit, by arithmetic."""
  layouts = []
  for overrides in candidates(config, topology):
    changed = with_overrides(config, overrides)
    try:
      parallel.check(changed, topology.count)
    except UserError:
      continue
    layouts.append(Layout(overrides, plan_run(changed, topology, prices, compiles=False, memory=False)))
  fitting: list[Layout] = []
  for layout in sorted(layouts, key=_step_seconds):
    plan = plan_run(with_overrides(config, layout.overrides), topology, prices, compiles=False)
    if plan.costs.fits is not False:
      fitting.append(Layout(layout.overrides, plan))
    if len(fitting) == KEPT:
      break
  return fitting


def _step_seconds(layout: Layout) -> float:
  return layout.plan.costs.step_seconds


def candidates(config: Config, topology: Topology) -> Iterator[dict[str, int | str]]:
  """Meshes whose axes are powers of two and fill the devices, with every remat policy and some microbatches."""
  for sizes in _meshes(config, topology.count):
    pipeline = sizes["pipeline"]
    pieces = (2 * pipeline, 4 * pipeline) if pipeline > 1 else (0,)
    accumulations = (1, 4, 16) if pipeline == 1 else (1,)
    for remat, microbatches, accumulate in itertools.product(("none", "dots", "full"), pieces, accumulations):
      layout: dict[str, int | str] = {f"parallel.{axis}": size for axis, size in sizes.items()}
      yield layout | {
        "parallel.remat": remat,
        "parallel.microbatches": microbatches,
        "train.accumulate": accumulate,
      }


def _meshes(config: Config, devices: int) -> Iterator[dict[str, int]]:
  """Sizes of the axes that fill the devices."""
  model = config.model
  experts = _powers(model.experts) if model.experts else [1]
  for tensor in _powers(min(devices, model.kv_heads, 16)):
    sequences = _powers(min(devices // tensor, 8 if config.data.context >= 8192 else 1))
    for sequence, expert, pipeline in itertools.product(sequences, experts, _powers(min(8, model.layers))):
      taken = tensor * sequence * expert * pipeline
      if devices % taken:
        continue
      for data in _powers(devices // taken):
        fsdp = devices // taken // data
        if data * fsdp * taken == devices:
          yield dict(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence, expert=expert, pipeline=pipeline)


def _powers(limit: int) -> list[int]:
  """The powers of two up to a limit."""
  return [2**i for i in range(20) if 2**i <= limit]
