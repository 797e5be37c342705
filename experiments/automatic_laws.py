"""Does an automatic choice of laws extrapolate better than the laws that people wrote for a task?

Claim (SLDBench, Lin et al. 2025): laws that were written for vocabularies, fine-tuning, data mixtures and experts
extrapolate with R2 of .966, .957, .671 and .703.

Method: `bigmodel fit --law=auto --predict` on the same splits, with nothing named but the columns and the group. It
sees the places to forecast and not their losses, and chooses by backtests within the training part. R2 is pooled over
the points of a task; the benchmark has the mean of R2 by domain for mixtures. Mixtures of 17 domains (Liu et al. 2024,
RegMix) are ranked at 1M, 60M and 1B parameters by laws fitted at 1M.

    bigmodel reproduce automatic_laws
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from scipy import stats

from bigmodel.laws import fit_csv
from bigmodel.laws.facts import Choice
from bigmodel.laws.reproduce import Result
from bigmodel.laws.source import Source

MIXED = {f"r{i}": f"share_{i}" for i in range(1, 6)}
Task = tuple[pl.DataFrame, pl.DataFrame, dict[str, str], str]  # (training part, held-out part, columns, group)


def vocabularies(data: Path) -> Task:
  runs = pl.read_csv(data / "sld" / "vocab_scaling_law_data.csv").rename({"Lossu": "loss"})
  held_out = pl.col("vocab_size") == runs["vocab_size"].max()
  columns = {"N": "Non_vocab_parameters", "D": "num_characters", "vocab": "vocab_size"}
  return runs.filter(~held_out), runs.filter(held_out), columns, ""


def fine_tuning(data: Path) -> Task:
  parts = []
  for name in ("flan", "gigaword", "wikiword"):
    table = pl.read_csv(data / "sld" / f"rectified_scaling_law_{name}.csv").drop("0")
    rows = table.unpivot(index="model", variable_name="examples", value_name="loss")
    parts.append(rows.with_columns(pl.format("{} {}", pl.lit(name), "model").alias("curve")))
  runs = pl.concat(parts).with_columns(pl.col("examples").cast(pl.Float64))
  held_out = pl.col("examples") == 819200
  return runs.filter(~held_out), runs.filter(held_out), {"x": "examples"}, "curve"


def mixtures(data: Path) -> Task:
  models = json.loads((data / "sld" / "domain_mixture_scaling_law_all_models_data.json").read_text())

  def rows(part: str) -> Iterator[dict[str, float | str]]:
    for model in (name for name in models if name != "1B"):
      for run in models[model][part]:
        shares = {f"share_{i}": share for i, share in enumerate(run["proportions"], start=1)}
        for domain, loss in enumerate(run["loss"], start=1):
          yield {**shares, "loss": loss, "domain": f"{domain}", "model and domain": f"{model} {domain}"}

  return pl.DataFrame(list(rows("train"))), pl.DataFrame(list(rows("eval"))), MIXED, "model and domain"


def experts(data: Path) -> Task:
  runs = pl.read_csv(data / "clark_moe" / "final_step.csv").filter(pl.col("step") == 249000)
  runs = runs.rename({"loss_validation": "loss"})
  held_out = pl.col("dense_parameter_count") == runs["dense_parameter_count"].max()
  return runs.filter(~held_out), runs.filter(held_out), {"N": "dense_parameter_count", "E": "num_experts"}, ""


def forecast(task: Task) -> tuple[np.ndarray, Choice]:
  """The held-out part's losses by `--law=auto`, in its order, and what was tried."""
  train, held_out, columns, group = task
  with tempfile.TemporaryDirectory() as folder:
    runs, places = (str(Path(folder) / name) for name in ("runs.csv", "places.csv"))
    train.write_csv(runs)
    held_out.drop("loss").write_csv(places)
    found = fit_csv.fit(Source(runs, columns, "loss", group=group), "auto", places=places).choice
  assert isinstance(found, Choice)
  # Groups come one after another, in the order of their first rows; rows of a group keep their order.
  order = held_out.with_row_index().partition_by(group, maintain_order=True) if group else [held_out.with_row_index()]
  predicted = np.empty(len(held_out))
  predicted[np.concatenate([part["index"].to_numpy() for part in order])] = [row.loss for row in found.predicted]
  return predicted, found


def r2(predicted: np.ndarray, truth: np.ndarray) -> float:
  return float(1 - np.sum((predicted - truth) ** 2) / np.sum((truth - truth.mean()) ** 2))


def of_task(name: str, published: float, task: Task) -> list[Result]:
  """The combination's R2 on the held-out part, and each candidate's error and weight in the backtests."""
  predicted, found = forecast(task)
  held_out = task[1]
  truth = held_out["loss"].to_numpy()
  results = [Result(f"{name}: R2 of the held-out part, law of people and ours", published, r2(predicted, truth))]
  if "domain" in held_out.columns:
    domains = [(held_out["domain"] == domain).to_numpy() for domain in held_out["domain"].unique()]
    means = float(np.mean([r2(predicted[rows], truth[rows]) for rows in domains]))
    results.append(Result(f"{name}: mean of R2 by domain", published, means))
  for law in found.tried:
    results.append(Result(f"{name}: error in backtests, {law.name} (weight {law.weight:.2f})", None, law.error))
  return results


def ranks(data: Path) -> list[Result]:
  """Spearman's correlations of mixtures at three sizes with forecasts by laws fitted at 1M parameters."""

  def read(part: str, size: str) -> pl.DataFrame:
    shares = pl.read_csv(data / "mixtures" / f"regmix_{part}_mixture_{size}.csv").drop("index")
    losses = pl.read_csv(data / "mixtures" / f"regmix_{part}_pile_loss_{size}.csv").drop("index")
    return pl.concat([shares, losses.select(pile_cc="metric/the_pile_pile_cc_val_loss", mean=pl.mean_horizontal("*"))],
                     how="horizontal")  # fmt: skip

  train, sizes = read("train", "1m"), ("1m", "60m", "1B")
  tests = [read("test", size) for size in sizes]
  names = [name for name in train.columns if name.startswith("train_")]
  columns = {f"r{i}": name for i, name in enumerate(names, start=1)}
  results = []
  for target in ("pile_cc", "mean"):
    asked = pl.concat([test.select(*names, loss=target) for test in tests])
    predicted, _ = forecast((train.select(*names, loss=target), asked, columns, ""))
    for size, test in zip(sizes, tests, strict=True):
      own, predicted = predicted[: len(test)], predicted[len(test) :]
      correlation = float(np.corrcoef(stats.rankdata(own), stats.rankdata(test[target].to_numpy()))[0, 1])
      results.append(Result(f"ranks of mixtures by the loss of {target} at {size}, Spearman", None, correlation))
  return results


def reproduce(data: Path) -> list[Result]:
  return [
    *of_task("vocabularies", 0.966, vocabularies(data)),
    *of_task("fine-tuning", 0.957, fine_tuning(data)),
    *of_task("mixtures", 0.671, mixtures(data)),
    *of_task("experts", 0.703, experts(data)),
    *ranks(data),
  ]
