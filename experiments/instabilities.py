"""What makes training insensitive to its learning rate?

Claim (Wortsman et al. 2023): small models show the instabilities of large ones at high learning rates. QK-norm keeps
the logits of attention from growing, and z-loss those of the output. Both widen the range of learning rates that work
well and lower the sensitivity of the final loss, and more so the larger the model.

Method: decoders of widths 32, 64 and 128 on Python source, 400 steps of 512 tokens, nine learning rates from .0003
to 3. The sensitivity is defined as in the paper: the mean over rates of min(loss, initial loss) minus the best loss.

Result (108 runs, none diverged): QK-norm does what is claimed, and more so the larger the model. z-loss makes no
difference at these sizes.

    width   neither   z-loss   QK-norm   both
       32   .494      .506     .423      .415
       64   .478      .478     .389      .401
      128   .536      .523     .385      .380

    bigmodel reproduce instabilities
"""

from pathlib import Path

import numpy as np

from bigmodel import study
from bigmodel.config import load
from bigmodel.laws.reproduce import Result

WIDTHS = (32, 64, 128)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
ARMS = {
  "neither": {"model.qk_norm": False, "task.z_loss": 0.0},
  "z-loss": {"model.qk_norm": False, "task.z_loss": 1e-4},
  "QK-norm": {"model.qk_norm": True, "task.z_loss": 0.0},
  "both": {"model.qk_norm": True, "task.z_loss": 1e-4},
}


def measure(workdir: Path, quiet: bool) -> list[Result]:
  config, _ = load(str(Path(__file__).parents[1] / "configs" / "small_decoder.py"), [])
  config.data.context = 64
  config.train.update(steps=400, batch_size=8, checkpoint_every=1 << 30)
  runs = [
    {"model.width": width, "model.head_size": width // 2, **arm, "optim.lr": rate}
    for width in WIDTHS for arm in ARMS.values() for rate in RATES
  ]  # fmt: skip
  ended = study.run_all(config, "instabilities", runs, workdir, quiet)
  start = np.log(256)
  losses = np.reshape(
    [one.loss if one.finished else start for one in ended],
    (len(WIDTHS), len(ARMS), len(RATES)),
  )
  of = (np.minimum(losses, start) - losses.min(axis=2, keepdims=True)).mean(axis=2)
  results = [
    Result(f"sensitivity of width {width}, {arm}", None, float(of[i, j]))
    for i, width in enumerate(WIDTHS)
    for j, arm in enumerate(ARMS)
  ]
  for j, arm in list(enumerate(ARMS))[1:]:
    results.append(
      Result(f"sensitivity with {arm}, of that with neither, width {WIDTHS[-1]}", None, of[-1, j] / of[-1, 0])
    )
  diverged = [not one.finished for one in ended]
  results.append(Result("runs that diverged", None, float(sum(diverged))))
  return results
