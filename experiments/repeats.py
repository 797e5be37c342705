"""How much is a token worth when it is seen again?

Claim (Muennighoff et al. 2023): repeating data up to four times changes the loss little; after that each repetition is
worth less and less. U unique tokens with R repetitions count as D' = U + U R* (1 - exp(-R / R*)) unique ones, with R*
about 15 (15.39 in the paper).

Method: one decoder of width 64 on Python source, with U of 100 thousand to 3.2 million bytes and up to 32 epochs. The
law E + B / D'^beta is fitted to all runs.

Result: the claim does not hold at this scale. R* is 0.2, and the law fits within 5% of the loss. Compared with as many
unique bytes, 4 epochs of 100 thousand bytes have a loss higher by .31, of 400 thousand by .17, of 800 thousand by .07;
16 epochs of 100 thousand by .93. 100 thousand bytes are about ten files, and less than one byte per parameter, whereas
the runs of the paper have tens of tokens per parameter. The cost of repeating falls with the amount of data.
The experiment took 31 minutes on 2 cores that were also doing other work.

    bigmodel reproduce repeats
"""

from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result

UNIQUE = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000)
EPOCHS = (1, 2, 4, 8, 16, 32)
MOST = 3_200_000  # tokens of a run


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.repeat = True
  config.data.context = 64
  config.model.update(width=64, head_size=32)
  config.optim.lr = 5e-3
  config.train.update(batch_size=8, checkpoint_every=1 << 30)
  cells = [(unique, epochs) for unique in UNIQUE for epochs in EPOCHS if unique * epochs <= MOST]
  runs = [
    {"data.tokens": unique, "train.tokens": unique * epochs, "seed": seed, "data.seed": seed}
    for unique, epochs in cells for seed in range(2)
  ]  # fmt: skip
  ended = study.run_listed(config, "repeats", runs, workdir, quiet)
  losses = np.reshape([one.loss for one in ended], (len(cells), 2)).mean(axis=1)
  U, epochs = np.array(cells, float).T

  def residuals(p: np.ndarray) -> np.ndarray:
    E, log_B, beta, log_R = p
    worth = U * (1 + np.exp(log_R) * -np.expm1(-(epochs - 1) / np.exp(log_R)))
    return np.log(E + np.exp(log_B) * worth**-beta) - np.log(losses)

  starts = [(E, 4.0, 0.3, r) for E in (0.5, 1.0, 1.5) for r in (0.0, 1.5, 3.0)]
  fits = [least_squares(residuals, start, bounds=([0, -5, 0.02, -3], [2, 20, 2, 6])) for start in starts]
  best = min(fits, key=lambda fit: fit.cost)
  at = dict(zip(cells, losses, strict=True))
  unique = lambda u, e: at[u, e] - at[u * e, 1]
  results = [Result("R*, repetitions until a token's worth has fallen to 1 / e", 15.39, float(np.exp(best.x[3])))]
  results.append(Result("deviation of the fit, of the log loss", None, float(np.sqrt(np.mean(best.fun**2)))))
  for u, e in ((100_000, 4), (400_000, 4), (800_000, 4), (100_000, 16), (200_000, 16), (100_000, 32)):
    results.append(Result(f"{e} epochs of {u:,}: loss above as many unique ones", None, float(unique(u, e))))
  return results
