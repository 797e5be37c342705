"""The price of runs on this machine: FLOPs, bytes and seconds, from a short measured calibration."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bigmodel import models, optim, tasks, train
from bigmodel.config import Config
from bigmodel.train import programs
from bigmodel.train.run import Run

CALIBRATED = 4  # shapes that are measured; the others are interpolated
MEASURED_STEPS = 10
STATE_BYTES = 12  # a parameter: float32 value and two moments


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Seconds a step over exact FLOPs a step, as measured points; and seconds to compile a shape."""

  flops: list[float]
  seconds: list[float]
  compile_seconds: float

  def step_seconds(self, flops: float) -> float:
    """Interpolated in the logs; beyond the measured shapes at their rate."""
    x, y = np.log(self.flops), np.log(self.seconds)
    value = float(np.interp(np.log(flops), x, y))
    outside = np.log(flops) - np.clip(np.log(flops), x[0], x[-1])
    return float(np.exp(value + outside))


def flops_per_step(run: Run) -> float:
  counts = models.counts_of(run.config)
  return counts.exact_per_token * train.batch_tokens(run.config)


def program_of(run: Run, members: int) -> tuple:
  """What a compiled program depends on: runs alike in this compile once."""
  return models.shape_of(run.config), run.config.train.batch_size, run.config.train.accumulate, members


def calibrate(runs: Sequence[Run]) -> Calibration:
  """Compiles and times a few steps of some of the runs' programs, from the smallest to the largest."""
  distinct = {(flops_per_step(run), run.config.train.batch_size): run for run in runs}
  ordered = [distinct[key] for key in sorted(distinct)]
  chosen = [ordered[i] for i in sorted({round(i) for i in np.linspace(0, len(ordered) - 1, CALIBRATED)})]
  flops, seconds, compiles = [], [], []
  for run in chosen:
    compile_seconds, step_seconds = _measure(run)
    flops.append(flops_per_step(run))
    seconds.append(step_seconds)
    compiles.append(compile_seconds)
  return Calibration(flops, seconds, float(np.mean(compiles)))


def _measure(run: Run) -> tuple[float, float]:
  """(seconds to compile, seconds a step) of one run's program, on random rows."""
  config = run.config
  began = time.perf_counter()
  program = programs.program(config)
  state = program.place([program.init(0)])
  rows = program.put_rows([_random_rows(config)])
  hyperparameters = program.put_hyperparameters([optim.hyperparameters(config, run.steps)])
  state, _ = program.step(state, rows, hyperparameters)
  jax.block_until_ready(state)
  compile_seconds = time.perf_counter() - began
  times = []
  for _ in range(MEASURED_STEPS):
    start = time.perf_counter()
    state, _ = program.step(state, rows, hyperparameters)
    jax.block_until_ready(state)
    times.append(time.perf_counter() - start)
  return compile_seconds, float(np.median(times))


def _random_rows(config: Config) -> Any:
  rng, limit = np.random.default_rng(0), config.model.vocab if config.data.kind == "text" else config.model.outputs
  draw = lambda x: rng.integers(0, limit, x.shape) if x.dtype == np.int32 else rng.standard_normal(x.shape)
  shapes = tasks.batch_shape(config, config.train.batch_size)
  return jax.tree.map(lambda x: draw(x).astype(x.dtype), shapes)


def price(run: Run, calibration: Calibration) -> dict[str, Any]:
  """What one run costs: FLOPs under every convention, bytes and expected seconds."""
  config = run.config
  counts = models.counts_of(config)
  tokens = train.tokens_at(config, run.steps)
  steps = (tokens + config.eval.tokens / 3) / train.batch_tokens(config)  # a forward pass is a third of a step
  seconds = steps * calibration.step_seconds(flops_per_step(run))
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
