"""Does a ladder of small models forecast a model of 13 B parameters?

Claim (Bhagia et al. 2024): Chinchilla's law, fitted to 16 runs of 190 M to 1.3 B parameters at 1 to 10 times the usual
amount of data, forecasts the loss of 7 B and 13 B models trained on 4 to 5 trillion tokens. On C4 the forecast is 4%
too low at 13 B; the authors therefore fit losses of tasks instead.

Method: the law is fitted to the published runs of the ladder and compared with the two large models.

    bigmodel reproduce ladder
"""

from pathlib import Path

import polars as pl

from bigmodel.laws import fitting
from bigmodel.laws.forms import LAWS
from bigmodel.laws.reproduce import Result

LOSS = "eval/c4_en-validation/CrossEntropyLoss"


def reproduce(data: Path) -> list[Result]:
  last = pl.read_csv(data / "olmo_ladder" / "ladder_last5.csv")
  runs = last.group_by("run", maintain_order=True).agg(
    pl.col("mode", "N").first(), pl.col("D_tokens").max().alias("D"), pl.col(LOSS).mean().alias("loss")
  )
  small, large = (runs.filter(pl.col("mode") == mode).sort("N") for mode in ("train", "eval"))
  fit = fitting.fit(LAWS["chinchilla"], (small["N"].to_numpy(), small["D"].to_numpy()), small["loss"].to_numpy())
  at_7b, at_13b = (float(x) for x in fit.predict(large["N"].to_numpy(), large["D"].to_numpy()))
  true_7b, true_13b = large["loss"]
  return [
    Result("loss on C4 at 13 B, forecast", 2.34439, at_13b, 5e-6),
    Result("loss on C4 at 13 B, true", 2.43788, true_13b, 5e-6),
    Result("relative error at 13 B", None, at_13b / true_13b - 1),
    Result("relative error at 7 B", None, at_7b / true_7b - 1),
  ]
