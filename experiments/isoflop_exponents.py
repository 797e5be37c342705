"""What moves the exponent of the optimal model size from Kaplan's to Chinchilla's?

Claim (Porian et al. 2024): counting the FLOPs of the last layer, a warm-up in proportion to the model, and settings
tuned for each size move the exponent a of N* ~ C^a from .84 to .50.

Method: the published optimal sizes by budget; the exponent is a weighted least-squares fit of ln N* to ln C.

    bigmodel reproduce isoflop_exponents
"""

from pathlib import Path

import numpy as np
import polars as pl

from bigmodel.laws.reproduce import Result

STEPS = {  # hparams, warmup, decay, param_count on RefinedWeb: the exponent
  ("base", "long", "kaplan", "kaplan"): ("as Kaplan et al.", 0.835),
  ("base", "long", "kaplan", "standard"): ("with the last layer's FLOPs", 0.706),
  ("base", "short", "kaplan", "standard"): ("with a shorter warm-up", 0.602),
  ("base", "short", "chinchilla", "standard"): ("with a decay to the end", 0.571),
  ("tuned", "short", "const", "standard"): ("with settings tuned for each size", 0.497),
}


def reproduce(data: Path) -> list[Result]:
  pairs = pl.read_csv(data / "porian" / "optimal_pairs.csv").filter(pl.col("dataset") == "rw")
  results = []
  for key, (what, published) in STEPS.items():
    names = ("hparams", "warmup", "decay", "param_count")
    own = pairs.filter(*(pl.col(name) == value for name, value in zip(names, key, strict=True)))
    own = own.filter(pl.col("n").is_finite(), pl.col("n_star_std") > 0, pl.col("n_star_std").is_finite())
    log_c, log_n, weight = np.log(own["flops"]), np.log(own["n"]), 1 / own["n_star_std"].to_numpy()
    results.append(Result(what, published, float(np.polyfit(log_c, log_n, 1, w=weight)[0]), 1e-3))
  return results
