"""How much is a model with experts worth?

Claim (Clark et al. 2022): the loss of routed models is bilinear in the logarithms of the size of the dense model and of
the number of experts, which saturates. Routing helps less the larger the model.

Method: the law is fitted to the published runs with hash layers and to the dense ones.

    bigmodel reproduce routing
"""

from pathlib import Path

import polars as pl

from bigmodel.laws import fitting
from bigmodel.laws.forms import LAWS
from bigmodel.laws.reproduce import Result

PUBLISHED = {"a": (-0.0874, 5e-5), "b": (-0.138, 5e-4), "c": (0.0126, 5e-5), "d": (1.1595, 5e-5)}


def reproduce(data: Path) -> list[Result]:
  curves = pl.read_csv(data / "clark_moe" / "curves.csv.gz")
  runs = curves.filter(pl.col("step") == pl.col("step").max().over("hyper_id")).filter(
    pl.col("routing_frequency") == 0.5, pl.col("k") == 1, pl.col("seed") == 42,
    pl.col("router_type").is_in(["Hash", "Dense"]),
  )  # fmt: skip
  columns = runs["dense_parameter_count"].to_numpy(), runs["num_experts"].to_numpy()
  fit = fitting.fit(LAWS["routed"], columns, runs["loss_validation"].to_numpy(), how=fitting.Loss("squares", 1.0))
  results = [Result(name, value, fit.params[name], within) for name, (value, within) in PUBLISHED.items()]
  cutoff = 10 ** (-fit.params["b"] / fit.params["c"])
  return [*results, Result("size from which routing no longer helps (b + c log10 N = 0)", None, cutoff)]
