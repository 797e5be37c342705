"""Does the noise of gradients say how large a batch may be?

Claim (McCandlish et al. 2018): the steps S and tokens E to reach a loss obey (S / S_min - 1) (E / E_min - 1) = 1. The
critical batch E_min / S_min, at which both are twice their minimum, is near the gradient noise scale of the run.

Method: a decoder of width 32 on Python source with batches of 2 to 128 rows of 64 tokens, each at the best of several
constant learning rates. Counted are the steps until the training loss, averaged over the last tokens, is below 2.45.
The noise scale is that of a run with 32 rows at that moment, from 8 microbatches per step.

Result: the steps fall from 726 with 2 rows to 61 with 128, and the law of steps and tokens fits them within 5%. The
critical batch is 1,810 tokens (8% standard error) and the noise scale on the way is 311, a sixth of it. The noise scale
gives the order of magnitude and no more. These runs use Adam; the paper's argument is about plain gradient descent.
The experiment took 10 minutes on 2 cores that were also doing other work.

    bigmodel reproduce noise_scale
"""

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result
from bigmodel.train import metrics

ROWS = (2, 4, 8, 16, 32, 64, 128)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
TARGET, CONTEXT = 2.45, 64


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.context = CONTEXT
  config.model.update(width=32, head_size=16)
  config.optim.update(schedule="constant", final=0.1, warmup=0.02, weight_decay=0.0)  # final: the default, unused
  config.train.update(checkpoint_every=1 << 30, log_every=1)
  config.eval.tokens = 1 << 14
  measured, results, noise_scale = [], [], np.nan
  for rows in ROWS:
    steps = {2: 3000, 4: 2000, 8: 1400, 16: 1000, 32: 700, 64: 500, 128: 400}[rows]
    noise = {"train.noise_scale": True, "train.accumulate": 8} if rows == 32 else {}
    runs = [{"optim.lr": r, "train.batch_size": rows, "train.steps": steps, **noise} for r in RATES]
    ended = study.run_all(config, "noise_scale", runs, workdir / str(rows), quiet)
    found = [(*reached(workdir / str(rows) / "runs" / one.run_id, rows), rate)
             for one, rate in zip(ended, RATES, strict=True)]  # fmt: skip
    needed, scale, rate = min(found)
    if needed < np.inf:
      measured.append((rows, needed))
      results.append(Result(f"steps at {rows} rows, rate {rate:g}", None, needed))
    if noise:
      noise_scale = scale
  rows, steps = np.array(measured).T
  tokens = rows * steps * CONTEXT

  def residuals(p: np.ndarray) -> np.ndarray:
    least, critical = np.exp(p)  # S = S_min (1 + B_crit / B)
    return np.log(least * (1 + critical / (rows * CONTEXT))) - np.log(steps)

  fit = least_squares(residuals, (np.log(steps.min()), np.log(1000.0)))
  error = np.sqrt(np.linalg.inv(fit.jac.T @ fit.jac)[1, 1] * 2 * fit.cost / max(1, len(steps) - 2))
  critical = float(np.exp(fit.x[1]))
  results.append(Result("critical batch, tokens", None, critical))
  results.append(Result("relative standard error of it", None, float(error)))
  results.append(Result("deviation of the fit, of the log of steps", None, float(np.sqrt(np.mean(fit.fun**2)))))
  results.append(Result("gradient noise scale on the way, tokens", None, noise_scale))
  results.append(Result("noise scale over critical batch", None, noise_scale / critical))
  results.append(Result("least tokens, in millions", None, float(np.exp(fit.x[0]) * critical / 1e6)))
  results.append(Result("most tokens spent here, in millions", None, float(tokens.max() / 1e6)))
  return results


def reached(folder: Path, rows: int) -> tuple[float, float]:
  """The step at which the averaged loss is first below the target, and the noise scale there; infinite if none is."""
  history = metrics.read(folder)
  over = max(1, round(20_000 / (rows * CONTEXT)))  # steps of so many tokens
  losses = np.array([np.inf if row["loss"] is None else row["loss"] for row in history])
  if len(losses) < over:
    return np.inf, np.nan
  averages = np.convolve(losses, np.ones(over) / over, mode="valid")
  below = np.flatnonzero(averages < TARGET)
  if not len(below):
    return np.inf, np.nan
  step = int(below[0]) + over - 1
  return float(step + 1 - (over - 1) / 2), history[step].get("noise_scale") or np.nan
