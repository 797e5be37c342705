"""Can five small runs forecast the loss of models trained on far more data than is optimal?

Claim (Gadre et al. 2024): with L = E + (a M^eta + b M^-eta) C^-eta, where M is tokens per parameter, five runs forecast
the loss of a model of 1.4 B parameters at M = 640, and of one of 6.9 B at M = 20, within 1%.

Method: the law is fitted to the same five published runs.

    bigmodel reproduce overtraining
"""

from pathlib import Path

import polars as pl

from bigmodel.laws import fitting
from bigmodel.laws.forms import LAWS
from bigmodel.laws.reproduce import Result

TARGETS = {("open_lm_1b", 640.0): 0.007103, ("open_lm_7b", 20.0): 0.007320}  # relative errors on RedPajama


def reproduce(data: Path) -> list[Result]:
  runs = pl.read_csv(data / "gadre" / "overtraining_runs.csv").filter(pl.col("train_dataset") == "rpj")
  sizes = sorted(set(runs["N"]))[:4]
  usual = pl.col("N").is_in(sizes) & (pl.col("chinchilla_multiplier") == 1)
  fitted = runs.filter(usual | ((pl.col("N") == sizes[0]) & (pl.col("chinchilla_multiplier") == 16)))
  columns = fitted["N"].to_numpy(), fitted["D"].to_numpy()
  squares = fitting.Loss("squares", 1.0, plain=True)
  fit = fitting.fit(LAWS["overtraining"], columns, fitted["loss_c4_val"].to_numpy(), how=squares)
  results = []
  for (model, multiple), published in TARGETS.items():
    (run,) = runs.filter(pl.col("model") == model, pl.col("tok_mult") == multiple).iter_rows(named=True)
    error = abs(float(fit.predict(run["N"], run["D"])) / run["loss_c4_val"] - 1)
    results.append(
      Result(f"relative error, {run['N'] / 1e9:.2g} B parameters, M = {multiple:.0f}", published, error, 1e-6)
    )
  return results
