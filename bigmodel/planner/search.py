"""Search over layouts: every mesh, remat policy and number of microbatches that fits, best first."""

from collections.abc import Iterator
from typing import Any

from bigmodel import models, parallel
from bigmodel.config import Config
from bigmodel.errors import UserError
from bigmodel.parallel.topology import Topology
from bigmodel.planner import compiled
from bigmodel.train.whole import with_overrides

Facts = dict[str, Any]
KEPT = 8
COMPILED = 3  # of the best by arithmetic, the compiler decides


def search(config: Config, topology: Topology, prices: dict[str, float]) -> list[Facts]:
  """Plans of all layouts that fit, fastest first; the first few are compiled where the compiler is here.

  Each has `overrides`, which make its config from the given one.
  """
  if not models.in_pieces(config.model):
    raise UserError(f"--search: knows layouts of decoders, not of a {config.model.family}")
  rows = []
  for overrides in candidates(config, topology):
    changed = with_overrides(config, overrides)
    try:
      parallel.check(changed, topology.count)
    except UserError:
      continue
    facts = compiled.plan(changed, topology, prices, compile_step=False, memory=False)
    rows.append((facts["step_seconds"], overrides, changed))
  rows.sort(key=lambda row: row[0])
  fitting: list[Facts] = []
  for _, overrides, changed in rows:
    facts = compiled.plan(changed, topology, prices, compile_step=False)
    if facts["fits"] is not False:
      fitting.append(facts | {"overrides": overrides})
    if len(fitting) == KEPT:
      break
  if topology.devices is None or not topology.kind:
    return fitting
  best: list[Facts] = []
  while fitting and len(best) < COMPILED:  # arithmetic can be wrong about what fits
    row = fitting.pop(0)
    facts = compiled.plan(with_overrides(config, row["overrides"]), topology, prices)
    if facts["fits"]:
      best.append(facts | {"overrides": row["overrides"]})
  return sorted(best, key=lambda row: row["step_seconds"]) + fitting


def candidates(config: Config, topology: Topology) -> Iterator[Facts]:
  """Meshes whose axes are powers of two and fill the devices, with every remat policy and some microbatches."""
  model, n = config.model, topology.count
  powers = lambda limit: [2**i for i in range(20) if 2**i <= limit]
  experts = powers(model.experts) if model.experts else [1]
  for tensor in powers(min(n, model.kv_heads, 16)):
    for sequence in powers(min(n // tensor, 8 if config.data.context >= 8192 else 1)):
      for expert in experts:
        for pipeline in powers(min(8, model.layers)):
          taken = tensor * sequence * expert * pipeline
          if n % taken:
            continue
          for data in powers(n // taken):
            fsdp = n // taken // data
            if data * fsdp * taken != n:
              continue
            sizes = dict(data=data, fsdp=fsdp, tensor=tensor, sequence=sequence, expert=expert, pipeline=pipeline)
            for remat in ("none", "dots", "full"):
              for pieces in (2 * pipeline, 4 * pipeline) if pipeline > 1 else (0,):
                layout = {**sizes, "remat": remat, "microbatches": pieces}
                for accumulate in (1, 4, 16) if pipeline == 1 else (1,):
                  yield {f"parallel.{k}": v for k, v in layout.items()} | {"train.accumulate": accumulate}
