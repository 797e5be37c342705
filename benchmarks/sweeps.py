"""Measures sweeps: what packs save and what the study engine costs, all in one run on the same cores.

    python benchmarks/sweeps.py runs [--widths 64 128]   # 8 learning rates x 4 seeds, from start to leaderboard
    python benchmarks/sweeps.py overhead                 # 200 runs of about a second each
    python benchmarks/sweeps.py packs                    # steps of packs of 1 to 128 members, on any device

`runs` compares one `bigmodel sweep` with the same runs as sequential `bigmodel train` commands, and with PyTorch in two
processes of one thread each, which neither evaluates nor saves. Only some of the separate runs are timed, half before
and half after the sweep, and their time is scaled up to all runs, which do the same work. The number of steps is chosen
so that a command takes at least 20 s (`separate_seconds`; its steps alone: `alone_stepping_seconds`). The sweep starts
with an empty compilation cache. The step speeds of a sweep and of sequential runs are measured alternately in one warm
process. Needs bigmodel[bench] for PyTorch.
"""

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import train_step

RATES, SEEDS = "1e-3,1.5e-3,2e-3,3e-3,4e-3,6e-3,8e-3,1.2e-2", 4
RUNS = 8 * SEEDS
ROWS = 4  # rows of a batch, as in the quickstart: small models and budgets need small batches
SECONDS = 21.5  # planned time of a command: slightly more than 20, so that a faster one still takes 20
TIMED = 4  # number of sequential runs that are timed
LOGGED = 50  # steps per log line
TURNS, STRIDE = 3, 8  # alternations of single run and sweep; steps per log line in these
CONFIG = Path(__file__).parents[1] / "configs" / "small_decoder.py"


def fields(width: int, steps: int) -> list[str]:
  """Returns the config fields of the decoder of `train_step.py`, on the text of the quickstart."""
  values = {
    "data.context": train_step.CONTEXT, "data.repeat": True, "model.width": width, "model.layers": train_step.LAYERS,
    "model.heads": width // train_step.HEAD, "model.head_size": train_step.HEAD, "model.activation": "gelu",
    "model.qk_norm": False, "train.batch_size": ROWS, "train.steps": steps, "train.log_every": LOGGED,
    "train.checkpoint_every": 1000, "eval.tokens": 1 << 15,
  }  # fmt: skip
  return [f"{name}={value}" for name, value in values.items()]


def timed(command: list[str]) -> float:
  began = time.perf_counter()
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
  return time.perf_counter() - began


def runs(width: int) -> dict[str, Any]:
  bigmodel = [sys.executable, "-m", "bigmodel.cli"]
  with TemporaryDirectory() as folder:
    config = lambda steps: [f"--config={CONFIG}", *(f"--config.{field}" for field in fields(width, steps))]
    train = lambda seed, steps, name: timed(
      [*bigmodel, "train", *config(steps), f"--config.seed={seed}", f"--workdir={folder}/{name}"]
    )
    # This run puts the corpus and its compiled programs into the cache, for all other commands.
    train(0, 500, "first")
    step_seconds = ROWS * train_step.CONTEXT / logged_speed([Path(folder, "first")])
    left = max(0.0, SECONDS - train(0, LOGGED, "short"))
    steps = LOGGED + 10 * math.ceil(left / (10 * step_seconds))
    separate = torch = 0.0

    def others(seeds: range) -> None:
      nonlocal separate, torch
      separate += sum(train(seed, steps, str(seed)) for seed in seeds)
      torch += torch_seconds(width, steps, len(seeds))

    others(range(TIMED // 2))
    sweep = timed([*bigmodel, "sweep", *config(steps), f"--axis=optim.lr={RATES}", f"--seeds={SEEDS}",
                   f"--workdir={folder}/sweep", "--json"])  # fmt: skip
    others(range(TIMED // 2, TIMED))
    record = json.loads(next(Path(folder, "sweep", "runs").glob("*/record.json")).read_text())
    speed = logged_speed([Path(folder, str(i)) for i in range(TIMED)], statistics.harmonic_mean)
    plan = json.loads(Path(folder, "sweep", "plan.json").read_text())
    members = max(len(group["run_ids"]) for group in plan["groups"])
  tokens = steps * ROWS * train_step.CONTEXT
  compared = outputs_of([sys.executable, __file__, "steady", str(width), str(members)])[0].split()[-1]
  return {
    "width": width,
    "parameters": record["params_total"],
    "steps": steps,
    "alone_stepping_seconds": tokens / speed,
    "separate_seconds": separate / TIMED,
    "sweep_seconds": sweep,
    "separate_over_sweep": separate * RUNS / TIMED / sweep,
    "torch_over_sweep": torch * RUNS / TIMED / sweep,
    "members": members,
    "steady_over_one_after_another": float(compared),
    "tokens_per_second": tokens * RUNS / sweep,
  }


def outputs_of(*commands: list[str]) -> list[str]:
  """Runs commands side by side and returns what they print."""
  processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
  printed = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    sys.exit(f"{' '.join(commands[0])} failed")
  return printed


def steady(width: int, members: int) -> None:
  """Prints the tokens per second of a sweep over those of a single run: the median of several turns."""
  from bigmodel import hardware, study
  from bigmodel.config import load

  hardware.setup()

  def speed(count: int, steps: int) -> float:
    config, _ = load(str(CONFIG), fields(width, steps))
    config.train.log_every, config.eval.tokens = STRIDE, 1 << 12
    axes = [{"seed": seed} for seed in range(count)]
    with TemporaryDirectory() as folder:
      study.run_to_end(config, study.Study("steady", "", study.Listed(axes), laws=()), folder, quiet=True)
      return count * logged_speed(list(Path(folder, "runs").iterdir()), statistics.harmonic_mean)

  ratios = []
  for _ in range(1 + TURNS):
    single = speed(1, 17 * STRIDE)
    ratios.append(speed(members, 3 * STRIDE) / single)
  print(statistics.median(ratios[1:]))  # the first turn compiles


def logged_speed(folders: list[Path], middle: Callable[[list[float]], float] = statistics.median) -> float:
  """Returns the tokens per second from the metrics of runs: the middle of all log lines but the first of each run."""
  rows = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()[1:]]
  return middle([row["tokens_per_second"] for row in rows])


def torch_seconds(width: int, steps: int, count: int) -> float:
  """Returns the seconds of `count` runs in two processes, without imports."""
  command = [sys.executable, __file__, "torch", str(width), str(steps), str(count // 2)]
  return max(map(float, outputs_of(command, command)))


def torch_runs(width: int, steps: int, count: int) -> None:
  """Trains runs one after another in this process, on random rows, and prints the seconds."""
  import numpy as np

  train_step.torch_trainer(width, 1)  # imports
  rng, began = np.random.default_rng(0), time.perf_counter()
  for seed in range(count):
    step = train_step.torch_trainer(width, 1, seed=seed)
    for _ in range(steps):
      step(rng.integers(0, train_step.VOCAB, (ROWS, train_step.CONTEXT + 1)))
  print(time.perf_counter() - began)


def overhead(count: int = 200) -> dict[str, Any]:
  """Measures the share of a sweep's time that is neither training steps nor evaluation.

  The speed of a shared machine drifts by more than this share. So steps are timed within the sweep, and
  `steps_over_bare` is the ratio to the time of the same steps outside it, measured before and after.
  """
  import jax

  from bigmodel import hardware, study, train
  from bigmodel.config import load
  from bigmodel.data import pipeline
  from bigmodel.optim import evaluated, hyperparameters
  from bigmodel.train import evaluate, programs

  hardware.setup()
  config, _ = load(str(CONFIG), [])
  config.data.update(context=64, repeat=True)
  config.model.update(width=32, head_size=16)
  config.train.update(steps=180, batch_size=16, checkpoint_every=1 << 30)
  config.eval.update(tokens=1 << 15)
  axes = [{"optim.lr": 1e-3 * (1 + i / count)} for i in range(count)]
  with TemporaryDirectory() as folder:
    prepared = study.prepare(config, study.Study("overhead", "", study.Listed(axes), laws=()), folder)
    plan = study.make_plan(prepared)
    members = max(len(group.run_ids) for group in plan.groups)
    one = next(iter(prepared.runs.values()))
    data = prepared.data(one.config)
    program, rows = programs.program(one.config, members), pipeline.train_pipeline(one.config, data, one.steps)
    state = program.place([program.init(0)] * members)
    h = program.put_hyperparameters([hyperparameters(one.config, one.steps)] * members)

    def bare(state, count: int):
      for first in range(0, count, program.stride):
        some = range(first, min(count, first + program.stride))
        state, _ = program.step(state, program.put_rows(*([rows.part(step)] * members for step in some)), h)
      jax.block_until_ready(state)
      return state

    held_out = pipeline.eval_rows(one.config, data)
    state = bare(state, 2)
    own = program.member(program.fetch(state), 0)

    def judge() -> None:
      params = evaluated(one.config, own.params, own.opt_state)
      for values in evaluate.measure(program, [params] * program.at_once, one.config, held_out, lambda: None):
        evaluate.judge(one.config, held_out, values)

    judge()
    bare_stepping = evaluating = 0.0

    def measure() -> None:
      """Times a quarter of the steps and some evaluations; called before and after the sweep."""
      nonlocal state, bare_stepping, evaluating
      began = time.perf_counter()
      state = bare(state, one.steps // 4)
      bare_stepping += (time.perf_counter() - began) * 2 * count / members
      began = time.perf_counter()
      judge()
      evaluating += (time.perf_counter() - began) / program.at_once * count / 2

    measure()
    began = time.perf_counter()
    study.run_to_end(config, prepared.study, folder, quiet=True)
    whole = time.perf_counter() - began
    measure()
    speed = logged_speed(list(Path(folder, "runs").iterdir()), statistics.harmonic_mean)
    stepping = train.tokens_at(one.config, one.steps) * -(-count // members) / speed
  return {
    "runs": count, "members": members, "steps": one.steps, "tokens_each": train.tokens_at(one.config, one.steps),
    "seconds": whole, "stepping_seconds": stepping, "evaluating_seconds": evaluating,
    "overhead": 1 - (stepping + evaluating) / whole, "steps_over_bare": stepping / bare_stepping,
  }  # fmt: skip


def packs(width: int) -> list[dict[str, Any]]:
  """Returns the tokens per second of packs of several sizes and of a single run."""
  import jax
  import numpy as np

  from bigmodel import hardware, models, optim
  from bigmodel.study import default_config
  from bigmodel.train import programs

  hardware.setup()
  results, rng = [], np.random.default_rng(0)
  shape = (train_step.ROWS, train_step.CONTEXT + 1)
  for dtype in ("float32", "bfloat16") if jax.default_backend() != "cpu" else ("float32",):
    config = default_config()
    config.model.update(width=width, layers=train_step.LAYERS, heads=width // train_step.HEAD)
    config.model.update(head_size=train_step.HEAD, activation="gelu")
    config.train.update(batch_size=train_step.ROWS, steps=1000, compute_dtype=dtype)
    config.data.context = train_step.CONTEXT
    models.resolve(config.model, {"vocab": train_step.VOCAB})
    for members in (1, 8, 32, 128):
      program = programs.program(config, members)
      rows: list[Any] = [rng.integers(0, train_step.VOCAB, shape).astype(np.int32) for _ in range(members)]
      h = program.put_hyperparameters([optim.hyperparameters(config, 1 << 20)] * members)
      state = program.place([program.init(seed) for seed in range(members)])

      def step() -> None:
        nonlocal state
        state, metrics = program.step(state, program.put_rows(*[rows] * program.stride), h)  # noqa: B023
        np.asarray(metrics["loss"])

      seconds = train_step.best_step(step) / program.stride
      rate = members * train_step.ROWS * train_step.CONTEXT / seconds
      alone = rate if members == 1 else results[-1]["tokens_per_second"] / results[-1]["over_one"]
      results.append({
        "device": jax.devices()[0].device_kind, "dtype": dtype, "width": width, "members": members,
        "tokens_per_second": rate, "over_one": rate / alone,
      })  # fmt: skip
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("runs", "overhead", "packs", "torch", "steady"))
  parser.add_argument("more", nargs="*", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
  arguments = parser.parse_args()
  if arguments.what in ("torch", "steady"):
    {"torch": torch_runs, "steady": steady}[arguments.what](*arguments.more)
    return
  print(f"{len(os.sched_getaffinity(0))} cores", flush=True)
  if arguments.what == "overhead":
    rows = [overhead()]
  elif arguments.what == "packs":
    rows = itertools.chain.from_iterable(map(packs, arguments.widths))
  else:
    rows = map(runs, arguments.widths)
  for row in rows:  # prints each row as soon as it is measured
    rounded = {name: round(x, 4) if isinstance(x, float) else x for name, x in row.items()}
    print(json.dumps(rounded), flush=True)


if __name__ == "__main__":
  main()
