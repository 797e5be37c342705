"""One page for a study: report.html, self-contained, and report.json with the same numbers."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.offline
import polars as pl
from etils import epath

from bigmodel import record
from bigmodel.accounting import params_in
from bigmodel.errors import UserError
from bigmodel.files import absolute, read_json, write_bytes, write_json, write_text
from bigmodel.report import figures, sweeps
from bigmodel.sweep import folder, folds, leaderboard
from bigmodel.tasks.metrics import LARGER, main
from bigmodel.train import metrics
from bigmodel.train.display import duration

Facts = dict[str, Any]
LOSSES = {
  "causal_lm": "loss (nats per token)",
  "masked_lm": "loss (nats per masked token)",
  "seq2seq": "loss (nats per target token)",
  "classification": "loss (nats per example)",
  "contrastive_divergence": "reconstruction (nats per example)",
  "regression": "squared error (of the variance)",
}


def write(workdir: epath.PathLike, forecast: Facts | None, figure_format: str | None = None) -> Facts:
  """Writes report.json and report.html (and figures/*.pdf or *.svg); returns report.json."""
  workdir = absolute(workdir)
  facts = gather(workdir, forecast)
  drawn = draw(workdir, facts)
  if figure_format:
    _save_figures(workdir, drawn, figure_format)
  write_json(workdir / "report.json", facts)
  write_text(workdir / "report.html", _html(facts, drawn))
  return facts


def gather(workdir: epath.Path, forecast: Facts | None) -> Facts:
  """Everything that the report says, as report.json has it."""
  about, plan = read_json(workdir / "study.json"), folder.read_plan(workdir)
  if plan is None:
    raise UserError(f"{workdir}: the study has no plan yet; run bigmodel study")
  path = workdir / "fits.json"
  fits = read_json(path) if path.exists() else {"laws": [], "optimum": [], "noise_floor": None, "scans": []}
  roles = {run["run_id"]: run["roles"] for run in plan["runs"]}
  records = record.collect(workdir)
  measured = [folder.as_measured(one, about["measure"]) for one in records]
  runs = [one | {"roles": roles.get(one["run_id"], ["target"])} for one in measured]
  runs.sort(key=lambda r: (r["roles"] == ["target"], r["flops_6nd"], r["params_total"]))
  return {
    "study": about["name"],
    "question": about["question"],
    "convention": about["convention"],
    "unit": "tokens" if about["config"]["data.kind"] == "text" else "examples",
    "loss": _measured(about),
    "metrics": sorted({name for one in records for name in main(one["metrics"])}),
    "runs": runs,
    "sweep": None if about["laws"] else leaderboard.board(plan["runs"], measured),
    "cross_validation": folds.cells(plan["runs"], records, about["config"]),
    "planned": [{"run_id": run["run_id"], "overrides": run["overrides"]} for run in plan["runs"]],
    "cost": {
      "expected_seconds": plan["total"]["expected_seconds"],
      "actual_seconds": sum(one["seconds"] for one in records),
      "flops": {name: sum(one[name] for one in records) for name in ("flops_6nd", "flops_exact")},
      "expected_flops": plan["total"]["flops_6nd"],
      "tokens": sum(one["tokens"] for one in records),
      "shared": _shared(records),
    },
    "plan_error": plan_error(plan, records),
    "laws": fits["laws"],
    "forecast": forecast,
    "noise_floor": fits["noise_floor"],
    "optimum": fits["optimum"],
    "scans": fits["scans"],
    "programs": [group["run_ids"] for group in plan["groups"]],
    "provenance": _provenance(records),
  }


def _shared(records: list[Facts]) -> float:
  """The share of all FLOPs that branches did not spend, because a trunk had."""
  spent = sum(one["flops_6nd"] for one in records)
  begun = sum(
    one["flops_6nd"] * one["trunk"]["step"] / one["steps"] for one in records if one["trunk"] and one["steps"]
  )
  return begun / spent if spent else 0.0


def _measured(about: Facts) -> str:
  """What the laws are of, and the axes of the figures."""
  name = about["measure"]
  if name == "loss":
    return LOSSES[about["config"]["task.name"]]
  return f"1 - {name}" if name.startswith(LARGER) else name


def plan_error(plan: Facts, records: list[Facts]) -> Facts | None:
  """Seconds that runs took over the seconds that were planned for them: of all together, and of single runs."""
  planned = {run["run_id"]: run["expected_seconds"] for run in plan["runs"]}
  known = [(one["seconds"], planned[one["run_id"]]) for one in records if planned.get(one["run_id"])]
  if not known:
    return None
  ratios = np.array([actual / expected for actual, expected in known])
  total = sum(actual for actual, _ in known) / sum(expected for _, expected in known)
  low, middle, high = (float(x) for x in np.quantile(ratios, (0.05, 0.5, 0.95)))
  return {"runs": len(known), "total": float(total), "median": middle, "interval90": [low, high]}


def _provenance(records: list[Facts]) -> Facts:
  """Versions, devices and data: one value of each unless runs differ."""
  facts: Facts = {}
  for name in ("versions", "devices", "data_sha256"):
    values = [one[name] for one in records]
    facts[name] = [value for index, value in enumerate(values) if value not in values[:index]]
  return facts


def draw(workdir: epath.Path, facts: Facts) -> dict[str, tuple[str, Any]]:
  """`{name: (title, figure)}` of every figure that the study has data for."""
  convention, n = facts["convention"], "N"
  runs = [run | {n: params_in(run, convention)} for run in facts["runs"]]
  finished = [r for r in runs if r["status"] == "finished"]
  fitted = [r for r in finished if "fit" in r["roles"]]
  target = next((r for r in finished if r["roles"] == ["target"]), None)
  law = next((law for law in facts["laws"] if law["name"] == "chinchilla"), None)
  profiles = next((law["profiles"] for law in facts["laws"] if law["name"] == "isoflop"), [])
  noise = (facts["noise_floor"] or {}).get("std")
  words = figures.Words(facts["unit"], facts["loss"])
  drawn: dict[str, tuple[str, Any]] = sweeps.draw(facts["sweep"], facts["loss"]) if facts["sweep"] else {}
  if facts["forecast"] and fitted:
    figure = figures.forecast(fitted, convention, facts["forecast"], law, n, noise, words)
    drawn["forecast"] = ("The forecast and the truth", figure)
  if profiles and fitted:
    groups = _by_budget(fitted, convention)
    drawn["isoflop"] = ("Loss over size at each budget", figures.isoflop(groups, profiles, facts["optimum"], n, words))
  if fitted and not profiles and not facts["sweep"]:
    drawn["data"] = ("Loss over data at each size", figures.loss_over_data(fitted, words))
    for name in facts["metrics"]:
      drawn[name] = (f"{name} over data at each size", figures.loss_over_data(fitted, words, name))
  if fitted and not facts["sweep"]:
    drawn["surface"] = ("Loss over size and data", figures.loss_over_n_and_d(fitted, law, n, target, words))
  if facts["scans"]:
    drawn["learning_rate"] = ("Is the learning rate right?", figures.learning_rates(facts["scans"], words))
  curves = [(r, metrics.read(workdir / "runs" / r["run_id"])) for r in finished if "fit" in r["roles"] or r is target]
  if curves:
    drawn["curves"] = ("Training", figures.loss_curves(curves, words))
  return drawn


def _by_budget(records: list[Facts], convention: str) -> list[tuple[float, list[Facts]]]:
  """Records within 15% of each other in C, by budget."""
  groups: list[list[Facts]] = []
  for one in sorted(records, key=lambda r: r[convention]):
    if groups and one[convention] <= groups[-1][0][convention] * 1.15:
      groups[-1].append(one)
    else:
      groups.append([one])
  return [(float(np.exp(np.mean([math.log(r[convention]) for r in g]))), g) for g in groups]


def environment() -> jinja2.Environment:
  """Of this room's templates, with numbers as people read them."""
  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
  )
  made.filters |= {"duration": duration, "number": number, "interval": interval, "cell": cell}
  return made


def _html(facts: Facts, drawn: dict[str, tuple[str, Any]]) -> str:
  # One button: save as SVG.
  removed = ["zoom", "pan", "select", "lasso", "lasso2d", "select2d", "zoomIn", "zoomOut", "autoScale", "resetScale"]
  save = {
    "displaylogo": False,
    "modeBarButtonsToRemove": removed,
    "responsive": True,
    "toImageButtonOptions": {"format": "svg"},
  }
  plots = {
    name: (title, figure.to_html(full_html=False, include_plotlyjs=False, config=save, div_id=f"plot-{name}"))
    for name, (title, figure) in drawn.items()
  }
  return (
    environment().get_template("page.html.j2").render(facts=facts, plots=plots, plotly=plotly.offline.get_plotlyjs())
  )


def write_table(path: str, facts: Facts) -> None:
  """Every run as a row: what is one value of its record, its metrics, and what of its config the study varies."""
  planned = {run["run_id"]: run["overrides"] for run in facts["planned"]}
  rows = []
  for one in facts["runs"]:
    plain = {name: value for name, value in one.items() if not isinstance(value, dict | list)}
    changed = {name: x if isinstance(x, int | float) else str(x) for name, x in planned.get(one["run_id"], {}).items()}
    rows.append(
      plain | {"roles": ", ".join(one["roles"])} | {f"metric.{k}": v for k, v in one["metrics"].items()} | changed
    )
  table = pl.DataFrame(rows, infer_schema_length=None)
  buffer = io.BytesIO()
  (table.write_csv if path.endswith(".csv") else table.write_parquet)(buffer)
  write_bytes(absolute(path), buffer.getvalue())


Table = tuple[str, str, Sequence[str], Sequence[Sequence[Any]]]  # title, text, columns, rows


def tables(
  path: epath.PathLike, title: str, heading: str, what: str, shown: Sequence[Table],
  plots: Sequence[tuple[str, str, Any]], texts: Sequence[str] = (), plots_first: bool = False,
) -> None:  # fmt: skip
  """Writes a page of tables, plots (title, text, figure) and texts."""
  button = {"displayModeBar": False, "responsive": True}
  drawn = [
    (name, text, figure.to_html(full_html=False, include_plotlyjs=False, config=button, div_id=f"plot-{i}"))
    for i, (name, text, figure) in enumerate(plots)
  ]
  facts = {
    "title": title, "heading": heading, "what": what, "tables": shown, "plots": drawn, "texts": texts,
    "plots_first": plots_first, "plotly": plotly.offline.get_plotlyjs() if drawn else "",
  }  # fmt: skip
  write_text(absolute(path), environment().get_template("tables.html.j2").render(facts))


def _save_figures(workdir: epath.Path, drawn: dict[str, tuple[str, Any]], form: str) -> None:
  try:
    import kaleido  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
  except ImportError as error:
    raise UserError("--figures: needs kaleido and Chrome or Chromium; pip install 'bigmodel[figures]'") from error
  out = workdir / "figures"
  out.mkdir(parents=True, exist_ok=True)
  for name, (_, figure) in drawn.items():
    try:
      (out / f"{name}.{form}").write_bytes(figure.to_image(format=form, width=720, height=460))
    except Exception as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"--figures: {reason} (is Chrome or Chromium installed?)") from error


def number(value: Any, digits: int = 4) -> str:
  """A number as people read it: 12,345 or 1.234 or 3.8e12; '-' for None."""
  if value is None:
    return "-"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}" if abs(value) < 1e9 else f"{value:.3g}"
  if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def cell(value: Any) -> str:
  """A cell of a table: numbers, intervals and words."""
  if isinstance(value, list | tuple):
    return interval(value)
  return number(value) if value is None or isinstance(value, int | float) else str(value)


def interval(pair: Any) -> str:
  return f"{number(pair[0])} to {number(pair[1])}" if pair and pair[0] is not None else "-"
