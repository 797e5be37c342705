"""The costs of runs on this machine: FLOPs, bytes and seconds, from a short measured calibration."""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import msgspec
import numpy as np

from bigmodel import models, optim, parallel, tasks, train
from bigmodel.config import Config
from bigmodel.parallel import hosts
from bigmodel.planner import analytic
from bigmodel.train import programs
from bigmodel.train.run import Run

CALIBRATED = 4  # shapes to measure, for single runs and for packs; 2 of each with several families or optimizers
MEASURED_CALLS, MEASURED_SECONDS = 10, 0.5  # a measurement ends after this many calls or seconds


class Price(msgspec.Struct, frozen=True, kw_only=True):
  """The costs of one run: parameters and FLOPs under every convention, bytes and expected seconds."""

  params_total: int
  params_non_embedding: int
  params_active: int
  tokens: int
  steps: int
  flops_6nd: float
  flops_6nd_non_embedding: float
  flops_chinchilla: float
  flops_exact: float
  flops_hardware: float
  state_bytes: int
  disk_bytes: int
  expected_seconds: float


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Measured (exact FLOPs, seconds) of steps, for each family, optimizer and kind of program."""

  points: dict[str, list[tuple[float, float]]]
  compile_seconds: float  # of one program

  def step_seconds(self, run: Run, packed: bool) -> float:
    """Seconds of a step, interpolated in logarithms. Beyond the measured shapes the nearest one's FLOP rate is used.

    A family, optimizer or kind of program that was not measured is assumed to be as fast as the first one that was.
    """
    x, y = np.log(self.points.get(_way(run, packed)) or next(iter(self.points.values()))).T
    flops = np.log(flops_per_step(run))
    outside = flops - np.clip(flops, x[0], x[-1])
    return float(np.exp(np.interp(flops, x, y) + outside))


def flops_per_step(run: Run) -> float:
  counts = models.counts_of(run.config)
  return counts.exact_per_token * train.batch_tokens(run.config)


def _way(run: Run, packed: bool) -> str:
  """The key of measured points: what determines the time of a step besides its FLOPs."""
  return f"{run.config.model.family}, {run.config.optim.name}, {'in a pack' if packed else 'alone'}"


def calibrate(
  runs: Sequence[Run], together: Mapping[str, int], smallest_only: bool = False
) -> tuple[Calibration, set[str]]:
  """Compiles and times a few steps of some of the runs' programs, from the smallest to the largest.

  Returns the calibration and the keys of the programs that were compiled. `together` has the number of members of the
  pack in which a run will train, by id; the others train alone. Of packs of one shape, one of the largest is timed.
  With `smallest_only`, for a machine that will not train the runs, only the smallest run is timed, alone.
  """
  if smallest_only:
    runs, together = [min(runs, key=flops_per_step)], {}

  def members_of(run: Run) -> int:
    return together.get(run.run_id, 1)

  ways: dict[str, dict[tuple[float, int], Run]] = {}
  for run in sorted(runs, key=members_of):
    shape = flops_per_step(run), run.config.train.batch_size
    ways.setdefault(_way(run, members_of(run) > 1), {})[shape] = run
  points: dict[str, list[tuple[float, float]]] = {}
  compiled: dict[str, float] = {}
  most = max(2, CALIBRATED // len({(run.config.model.family, run.config.optim.name) for run in runs}))
  for way, distinct in ways.items():
    ordered = [distinct[shape] for shape in sorted(distinct)]
    points[way] = []
    for i in sorted({round(i) for i in np.linspace(0, len(ordered) - 1, most)}):
      run, members = ordered[i], members_of(ordered[i])
      compiled[programs.key(run.config, members)], seconds = _measure(run, members)
      points[way].append((flops_per_step(run), seconds))
  return Calibration(points, float(np.mean([*compiled.values()]))), {*compiled}


def _measure(run: Run, members: int) -> tuple[float, float]:
  """(seconds to compile, seconds a step of one member) of a run's program, on random rows.

  On the lanes of a CPU, where members take turns, one member of each lane makes a step. A call in which no member
  makes a step is timed, too; the difference is the time of one member's step.
  """
  config, began = run.config, time.perf_counter()
  program = programs.program(config, members)
  state = program.place([program.init(0)] * members)
  rows = program.put_rows(*[[_random_rows(config)] * members] * program.stride)
  lanes = members > 1 and parallel.mapped(config)
  turns = -(-members // program.mesh.size) if lanes else 1
  base = optim.hyperparameters(config, run.steps)
  past_horizon, before_horizon = base._replace(steps=np.float32(0)), base._replace(steps=np.float32(1e6))
  resting = program.put_hyperparameters([past_horizon] * members)
  working = program.put_hyperparameters([past_horizon if i % turns else before_horizon for i in range(members)])

  def seconds(hyperparameters: optim.Hyperparameters) -> float:
    nonlocal state
    times: list[float] = []
    # All hosts must make the same number of steps, because they make them together.
    while hosts.first(lambda: len(times) < MEASURED_CALLS and sum(times) < MEASURED_SECONDS):
      start = time.perf_counter()
      state, _ = program.step(state, rows, hyperparameters)
      jax.block_until_ready(state)
      times.append(time.perf_counter() - start)
    return float(np.median(times))

  state, _ = program.step(state, rows, resting)
  jax.block_until_ready(state)
  first = time.perf_counter() - began
  rest = seconds(resting) if lanes else 0.0
  call = seconds(working)
  whole = rest + turns * max(0.0, call - rest)
  return max(0.0, first - (rest or call)), whole / (members * program.stride)


def _random_rows(config: Config) -> hosts.Rows:
  rng, limit = np.random.default_rng(0), config.model.vocab if config.data.kind == "text" else config.model.outputs

  def draw(x: jax.ShapeDtypeStruct) -> np.ndarray:
    values = rng.integers(0, limit, x.shape) if x.dtype == np.int32 else rng.standard_normal(x.shape)
    return values.astype(x.dtype)

  return jax.tree.map(draw, tasks.batch_shape(config, config.train.batch_size))


def price(run: Run, calibration: Calibration, packed: bool = False) -> Price:
  """The costs of one run, alone or as a member of a pack."""
  config = run.config
  counts = models.counts_of(config)
  tokens = train.tokens_at(config, run.steps)
  steps = (tokens + config.eval.tokens / 3) / train.batch_tokens(config)  # a forward pass is a third of a step
  seconds = steps * calibration.step_seconds(run, packed)
  state_bytes = analytic.run_bytes(config)
  return Price(
    **counts.params(),
    tokens=tokens,
    steps=run.steps,
    **counts.flops(tokens),
    state_bytes=state_bytes,
    disk_bytes=state_bytes * config.train.keep,
    expected_seconds=seconds,
  )
