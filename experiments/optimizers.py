"""Is another optimizer worth more than AdamW when each is tuned alike?

Claim (Wen et al. 2025; Semenov et al. 2025): with equal tuning, matrix-based optimizers (Muon, SOAP) need fewer steps
than AdamW, by a factor of at most about 1.4, and others hardly improve on it, if at all.

Method: a decoder of width 64 on Python source, 1,000 steps of 512 tokens, five learning rates a factor of 2 apart for
each optimizer, and the best rate again with two other seeds. AdamW is also tuned at half and at twice as many steps. An
optimizer is worth the number of steps that AdamW would need for the same loss, divided by the steps it had.

Result: the claim holds for Muon, Lion and Sophia. SOAP is worth more than claimed, and so is the average of
schedule-free; at so few steps of so small a model this says little about large ones. The best rate of momentum is the
lowest that was tried.

                    rate   loss (deviation between seeds)   steps of AdamW a step is worth
    soap            .008   1.906 (.004)                     1.73
    schedule_free   .016   1.956 (.006)                     1.42
    muon            .016   1.959 (.018)                     1.40
    adamw           .004   2.043 (.003)                     1
    lion            .001   2.048 (.013)                      .98
    sophia          .001   2.058 (.004)                      .95
    momentum        .125   2.307 (.011)                      .39

    bigmodel reproduce optimizers
"""

from pathlib import Path

import numpy as np

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result

CENTERS = {
  "adamw": 8e-3, "momentum": 0.5, "lion": 1e-3, "sophia": 2e-3, "muon": 1.6e-2, "soap": 8e-3, "schedule_free": 1.6e-2,
}  # fmt: skip
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS, HORIZONS = 1000, (500, 2000)


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.context = 64
  config.model.update(width=64, head_size=32)
  config.train.update(batch_size=8, checkpoint_every=1 << 30)

  def tuned(name: str, steps: int) -> tuple[np.ndarray, float, bool]:
    """The losses of three seeds at the best rate, that rate, and whether it lies at an edge of those tried."""
    schedule = {"optim.schedule": "constant", "optim.final": 0.1} if name == "schedule_free" else {}
    own = {"optim.name": name, "train.steps": steps, **schedule}
    rates = [CENTERS[name] * factor for factor in FACTORS]
    folder = workdir / f"{name}-{steps}"
    runs = study.run_all(config, "optimizers", [own | {"optim.lr": rate} for rate in rates], folder / "rates", quiet)
    losses = [one.loss if one.finished else np.inf for one in runs]
    best = int(np.argmin(losses))
    again = [own | {"optim.lr": rates[best], "seed": seed, "data.seed": seed} for seed in (1, 2)]
    others = study.run_listed(config, "optimizers", again, folder / f"seeds-{best}", quiet)
    found = np.array([losses[best], *(one.loss for one in others)])
    return found, rates[best], best in (0, len(rates) - 1)

  found = {name: tuned(name, STEPS) for name in CENTERS}
  horizons = sorted([*HORIZONS, STEPS])
  adamw = [tuned("adamw", steps)[0].mean() if steps != STEPS else found["adamw"][0].mean() for steps in horizons]
  results = []
  for name, (losses, rate, edge) in found.items():
    said = ", the edge of those tried" if edge else ""
    results.append(Result(f"{name}: loss at its best rate, {rate:g}{said}", None, float(losses.mean())))
    results.append(Result(f"{name}: deviation between seeds", None, float(losses.std(ddof=1))))
    # Along the line through the two horizons beside it, in the log of the steps.
    i = int(np.clip(np.searchsorted(-np.array(adamw), -losses.mean()) - 1, 0, len(horizons) - 2))
    share = (adamw[i] - losses.mean()) / (adamw[i] - adamw[i + 1])
    steps = horizons[i] * (horizons[i + 1] / horizons[i]) ** share
    results.append(Result(f"{name}: steps of AdamW that one of its steps is worth", None, float(steps / STEPS)))
  return results
