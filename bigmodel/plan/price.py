"""The price of runs on this machine: FLOPs, bytes and seconds, from a short measured calibration."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from bigmodel import models, optim, tasks, train
from bigmodel.config import Config
from bigmodel.train import programs
from bigmodel.train.run import Run

CALIBRATED = 4  # shapes that are measured; the others are interpolated
MEASURED_STEPS, MEASURED_SECONDS = 10, 0.5  # at most, and enough
STATE_BYTES = 12  # a parameter: float32 value and two moments


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Seconds a step over exact FLOPs a step, as measured points of runs alone and of members of packs."""

  alone: list[tuple[float, float]]
  packed: list[tuple[float, float]]
  compile_seconds: float  # of one shape

  def step_seconds(self, flops: float, packed: bool) -> float:
    """Interpolated in the logs; beyond the measured shapes at their rate."""
    x, y = np.log((packed and self.packed) or self.alone or self.packed).T
    value = float(np.interp(np.log(flops), x, y))
    outside = np.log(flops) - np.clip(np.log(flops), x[0], x[-1])
    return float(np.exp(value + outside))


def flops_per_step(run: Run) -> float:
  counts = models.counts_of(run.config)
  return counts.exact_per_token * train.batch_tokens(run.config)


def program_of(run: Run, members: int) -> tuple:
  """What a compiled program depends on: runs alike in this compile once."""
  return models.shape_of(run.config), run.config.train.batch_size, run.config.train.accumulate, members


def calibrate(runs: Sequence[Run], together: Mapping[str, int]) -> Calibration:
  """Compiles and times a few steps of some of the runs' programs, from the smallest to the largest.

  `together` says by id how many members the packs have in which runs will train; the others train alone.
  """
  compiles: list[float] = []

  def points(some: Sequence[Run]) -> list[tuple[float, float]]:
    distinct = {(flops_per_step(run), run.config.train.batch_size): run for run in some}
    ordered, found = [distinct[key] for key in sorted(distinct)], []
    for i in sorted({round(i) for i in np.linspace(0, len(ordered) - 1, CALIBRATED)} if ordered else ()):
      compile_seconds, seconds = _measure(ordered[i], together.get(ordered[i].run_id, 1))
      compiles.append(compile_seconds)
      found.append((flops_per_step(ordered[i]), seconds))
    return found

  packed = lambda run: together.get(run.run_id, 1) > 1
  alone = points([run for run in runs if not packed(run)])
  return Calibration(alone, points([run for run in runs if packed(run)]), float(np.mean(compiles)))


def _measure(run: Run, members: int) -> tuple[float, float]:
  """(seconds to compile, seconds a step of one member) of a run's program, on random rows."""
  config = run.config
  began = time.perf_counter()
  program = programs.program(config, members)
  state = program.place([program.init(0)] * members)
  rows = program.put_rows([_random_rows(config)] * members)
  hyperparameters = program.put_hyperparameters([optim.hyperparameters(config, run.steps)] * members)
  state, _ = program.step(state, rows, hyperparameters)
  jax.block_until_ready(state)
  first = time.perf_counter() - began
  times: list[float] = []
  while len(times) < MEASURED_STEPS and sum(times) < MEASURED_SECONDS:
    start = time.perf_counter()
    state, _ = program.step(state, rows, hyperparameters)
    jax.block_until_ready(state)
    times.append(time.perf_counter() - start)
  step = float(np.median(times))
  return max(0.0, first - step), step / members


def _random_rows(config: Config) -> Any:
  rng, limit = np.random.default_rng(0), config.model.vocab if config.data.kind == "text" else config.model.outputs
  draw = lambda x: rng.integers(0, limit, x.shape) if x.dtype == np.int32 else rng.standard_normal(x.shape)
  shapes = tasks.batch_shape(config, config.train.batch_size)
  return jax.tree.map(lambda x: draw(x).astype(x.dtype), shapes)


def price(run: Run, calibration: Calibration, packed: bool = False) -> dict[str, Any]:
  """What one run costs, alone or as a member of a pack: FLOPs under every convention, bytes and expected seconds."""
  config = run.config
  counts = models.counts_of(config)
  tokens = train.tokens_at(config, run.steps)
  steps = (tokens + config.eval.tokens / 3) / train.batch_tokens(config)  # a forward pass is a third of a step
  seconds = steps * calibration.step_seconds(flops_per_step(run), packed)
  return {
    "params_total": counts.params_total,
    "params_non_embedding": counts.params_non_embedding,
    "tokens": tokens,
    "steps": run.steps,
    **counts.flops(tokens),
    "state_bytes": STATE_BYTES * counts.params_total,
    "disk_bytes": STATE_BYTES * counts.params_total * config.train.keep,
    "expected_seconds": seconds,
  }
