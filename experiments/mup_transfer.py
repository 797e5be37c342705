"""Does the best learning rate of a small model serve a large one?

Claim (Yang et al. 2022, Tensor Programs V): under muP the best learning rate stays the same as a Transformer gets
wider; under the standard parametrization it falls.

Method: decoders of widths 64 to 512 on Python source, 120 steps of 512 tokens, six learning rates a factor of 2 apart
and three seeds each. The best rate is the minimum of a parabola through the best three of the means over seeds.

Result, log2 of the best rate (deviation between seeds) and the least loss: the claim holds. The best rate of muP rises
by a factor of 1.5, while that of the standard parametrization falls by a factor of 6.5. (muP at width 512 was run
separately, at the three rates around the best and evaluated on a quarter of the tokens, so its loss is not comparable
with the others of the table.)

    width   standard               muP
       64   -7.16 (.24)   2.7033   -7.16 (.24)   2.7033
      128   -7.97 (.21)   2.6610   -6.94 (.29)   2.6315
      256   -8.79 (.12)   2.6315   -6.75 (.07)   2.5819
      512   -9.86 (.20)   2.5975   -6.58 (.09)   -

    bigmodel reproduce mup_transfer
"""

from pathlib import Path

import numpy as np

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result

WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**k for k in range(-10, -4))
SEEDS = range(3)
BASE = ("model.width=64", "model.heads=2")


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.context = 64
  config.model.update(head_size=32)
  config.train.update(steps=120, batch_size=8, checkpoint_every=1 << 30)
  results = []
  for kind in ("standard", "mup"):
    runs = [
      {"model.width": width, "model.heads": width // 32, "optim.lr": rate, "seed": seed, "data.seed": seed,
       "optim.parametrization": kind, "optim.base": () if kind == "standard" else BASE}
      for width in WIDTHS for rate in RATES for seed in SEEDS
    ]  # fmt: skip
    ended = study.run_listed(config, "mup_transfer", runs, workdir / kind, quiet)
    losses = np.reshape([one.loss for one in ended], (len(WIDTHS), len(RATES), len(SEEDS)))
    best = np.array([[lowest(losses[i, :, seed]) for seed in SEEDS] for i in range(len(WIDTHS))])
    means = [lowest(losses[i].mean(axis=1)) for i in range(len(WIDTHS))]
    for width, mean, own in zip(WIDTHS, means, best, strict=True):
      results.append(Result(f"{kind}, width {width}: log2 of the best rate", None, mean))
      results.append(Result(f"{kind}, width {width}: its deviation between seeds", None, float(own.std(ddof=1))))
    lost = [losses[i].mean(axis=1) for i in (0, -1)]
    carried = float(lost[1][np.argmin(lost[0])] - lost[1].min())
    results.append(Result(f"{kind}: loss at width {WIDTHS[-1]} for using the best rate of {WIDTHS[0]}", None, carried))
    moved = abs(means[-1] - means[0])
    known = (0.0, 1.0) if kind == "mup" else (None, float("nan"))
    results.append(Result(f"{kind}: factors of 2 that the best rate moves", known[0], moved, known[1]))
  return results


def lowest(losses: np.ndarray) -> float:
  """Where log2 of the rate is best: of a parabola through the least of the losses and its neighbours."""
  i = int(np.clip(np.argmin(losses), 1, len(losses) - 2))
  a, b, _ = np.polyfit(np.log2(RATES[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
  at = -b / (2 * a) if a > 0 else np.log2(RATES[int(np.argmin(losses))])
  return float(np.clip(at, np.log2(RATES[0]), np.log2(RATES[-1])))
