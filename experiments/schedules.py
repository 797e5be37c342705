"""Do runs that share a trunk and decay at their end match runs with a cosine of their own?

Claim (Haegele et al. 2024; Hu et al. 2024): a constant learning rate with a decay over the last fifth does as well as a
cosine of the right length. One trunk with a branch for each horizon therefore serves a scaling study at a fraction of
the compute.

Method: a decoder of width 64 on Python source, six horizons from .4 to 3.2 million bytes, three seeds. Each cosine runs
from the start to zero. The branches leave one trunk and fall to zero linearly. The learning rates of both are tuned at
the middle horizon. The gap is the mean over seeds of the branch's loss minus the cosine's.

Result: the branches take 50% of the compute of six separate runs, and their losses equal those of the cosines within
the noise between seeds (.011): .012 lower on average, from .032 lower at 606 thousand bytes to .007 higher at 3.2
million. The best rate of the branches is the lowest that was tried, so the optimum may be lower. The experiment took 33
minutes on 2 cores that were also doing other work.

    bytes      cosine   branch less cosine
      400,000  2.1044   -.0253
      606,287  2.0018   -.0320
      918,959  1.9072   -.0236
    1,392,881  1.8213   -.0041
    2,111,213  1.7554   +.0043
    3,200,000  1.6920   +.0072

    bigmodel reproduce schedules
"""

from pathlib import Path

import numpy as np

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result
from bigmodel.study import Branches, Grid, Study

HORIZONS = tuple(round(400_000 * 8 ** (k / 5)) for k in range(6))
RATES = (2.5e-3, 5e-3, 1e-2, 2e-2)
SEEDS = range(3)
DECAY = 0.2


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.context = 64
  config.model.update(width=64, head_size=32)
  config.train.update(batch_size=8, checkpoint_every=1 << 30)
  cosine = {"optim.schedule": "cosine", "optim.warmup": 0.05}
  steady = {"optim.schedule": "wsd", "optim.warmup": 0.05, "optim.decay": DECAY}
  best = {}
  for name, own in (("cosine", cosine), ("wsd", steady)):
    runs = [own | {"optim.lr": rate, "train.tokens": HORIZONS[2]} for rate in RATES]
    ended = study.run_listed(config, "schedules", runs, workdir / f"{name}-rates", quiet)
    best[name] = RATES[int(np.argmin([one.loss for one in ended]))]
  seeds = [{"seed": seed, "data.seed": seed} for seed in SEEDS]
  cosines = study.run_listed(
    config, "schedules",
    [cosine | {"optim.lr": best["cosine"], "train.tokens": tokens} | seed for tokens in HORIZONS for seed in seeds],
    workdir / "cosines", quiet,
  )  # fmt: skip
  config.optim.lr = best["wsd"]
  axes = Grid({"seed": tuple(SEEDS)})
  design = Branches(axes, HORIZONS, decay=DECAY, warmup=0.05)
  report = study.run_to_end(config, Study("schedules", "", design, laws=()), workdir / "branches", quiet)
  losses = np.reshape([one.loss for one in cosines], (len(HORIZONS), len(SEEDS)))
  by_horizon = {}
  for one in report["runs"]:
    by_horizon.setdefault(one["tokens"], []).append(one["loss_eval"])
  branches = np.array([by_horizon[tokens] for tokens in sorted(by_horizon)])
  noise = float(np.sqrt(np.mean(losses.var(axis=1, ddof=1) + branches.var(axis=1, ddof=1)) / 2))
  results = [
    Result(f"best rate, {name}{' (an edge)' if rate in (RATES[0], RATES[-1]) else ''}", None, rate)
    for name, rate in best.items()
  ]
  for tokens, a, b in zip(HORIZONS, losses.mean(axis=1), branches.mean(axis=1), strict=True):
    results.append(Result(f"{tokens:,} tokens: cosine", None, float(a)))
    results.append(Result(f"{tokens:,} tokens: branch less cosine", None, float(b - a)))
  shared = report["cost"]["shared"]
  results.append(Result("noise between seeds (deviation)", None, noise))
  results.append(Result("mean gap over horizons", 0.0, float((branches - losses).mean()), 2 * noise))
  results.append(Result("compute of the branches, of six separate runs", None, 1 - shared))
  return results
