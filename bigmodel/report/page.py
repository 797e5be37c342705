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

from bigmodel.accounting import params_in
from bigmodel.errors import UserError
from bigmodel.files import absolute, write_bytes, write_json, write_text
from bigmodel.report import figures, sweeps
from bigmodel.train import metrics
from bigmodel.train.display import duration

Facts = dict[str, Any]


def write(workdir: epath.Path, facts: Facts, figure_format: str | None = None) -> Facts:
  """Writes report.json, which holds these facts, and report.html (and figures/*.pdf or *.svg); returns the facts."""
  drawn = draw(workdir, facts)
  if figure_format:
    _save_figures(workdir, drawn, figure_format)
  write_json(workdir / "report.json", facts)
  write_text(workdir / "report.html", _html(facts, drawn))
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
