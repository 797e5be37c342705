"""Pages: report.html of a study, self-contained, with report.json beside it, and pages of tables and plots."""

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import jinja2
import msgspec
import plotly.graph_objects as go
import plotly.offline
import polars as pl
from etils import epath

from bigmodel.accounting import params_in
from bigmodel.errors import UserError
from bigmodel.files import JsonObject, absolute, write_bytes, write_json, write_text
from bigmodel.laws import reach
from bigmodel.report import figures, sweeps
from bigmodel.report.facts import Report, Run
from bigmodel.report.figures import LossCurve, Point
from bigmodel.train import metrics
from bigmodel.train.display import duration

# The buttons that plotly shows beside a figure, all of which but "save" a reader of a report does not need.
BUTTONS = ["zoom", "pan", "select", "lasso", "lasso2d", "select2d", "zoomIn", "zoomOut", "autoScale", "resetScale"]


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure with its title and a sentence about it."""

  title: str
  text: str
  figure: go.Figure


@dataclasses.dataclass(frozen=True)
class Table:
  """A table with its title and a sentence about it. A cell is text, a number, an interval or None."""

  title: str
  text: str
  columns: Sequence[str]
  rows: Sequence[Sequence[object]]


@dataclasses.dataclass(frozen=True)
class Page:
  """A page of tables, plots and texts; `summary` stands below the heading."""

  title: str
  heading: str
  summary: str
  tables: Sequence[Table]
  plots: Sequence[Plot] = ()
  texts: Sequence[str] = ()
  plots_first: bool = False


def write(workdir: epath.Path, document: JsonObject, figure_format: str | None = None) -> JsonObject:
  """Writes report.json, report.html and, in the format pdf or svg, figures/; returns the document of report.json."""
  plots = draw(workdir, msgspec.convert(document, Report))
  if figure_format:
    _save_figures(workdir, plots, figure_format)
  write_json(workdir / "report.json", document)
  save_as_svg = {
    "displaylogo": False,
    "modeBarButtonsToRemove": BUTTONS,
    "responsive": True,
    "toImageButtonOptions": {"format": "svg"},
  }
  drawn = {name: (plot.title, _html_of(plot, name, save_as_svg)) for name, plot in plots.items()}
  script = plotly.offline.get_plotlyjs()
  html = environment().get_template("page.html.j2").render(facts=document, plots=drawn, plotly=script)
  write_text(workdir / "report.html", html)
  return document


def draw(workdir: epath.Path, report: Report) -> dict[str, Plot]:
  """Every figure for which the study has data, by name."""
  labels = figures.Labels(report.unit, report.loss)
  finished = [run for run in report.runs if run.status == "finished" and run.loss_eval is not None]
  fitted = [_point(run, report.convention) for run in finished if "fit" in run.roles]
  target = next((run for run in finished if run.roles == ["target"]), None)
  law = next((law for law in report.laws if law.name == "chinchilla"), None)
  isoflop = next((law for law in report.laws if law.name == "isoflop"), None)
  plots = sweeps.draw(report.sweep, report.loss) if report.sweep else {}
  drawn = {name: Plot(title, "", figure) for name, (title, figure) in plots.items()}
  if report.forecast and fitted:
    noise = report.noise_floor.std if report.noise_floor else None
    figure = figures.forecast(fitted, report.forecast, law, noise, labels)
    drawn["forecast"] = Plot("The forecast and the truth", "", figure)
  if isoflop and isoflop.profiles and fitted:
    figure = figures.isoflop(fitted, isoflop.profiles, report.optimum, labels)
    drawn["isoflop"] = Plot("Loss over size at each budget", "", figure)
  elif fitted and not report.sweep:
    drawn["data"] = Plot("Loss over data at each size", "", figures.loss_over_data(fitted, labels))
    for name in report.metrics:
      drawn[name] = Plot(f"{name} over data at each size", "", figures.loss_over_data(fitted, labels, name))
  if fitted and not report.sweep:
    star = _point(target, report.convention) if target else None
    figure = figures.loss_over_n_and_d(fitted, star, law, labels)
    drawn["surface"] = Plot("Loss over size and data", "", figure)
  if report.scans:
    figure = figures.learning_rates(report.scans, labels)
    drawn["learning_rate"] = Plot("Is the learning rate right?", "", figure)
  curves = [_loss_curve(workdir, run) for run in finished if "fit" in run.roles or run is target]
  if curves:
    drawn["curves"] = Plot("Training", "", figures.loss_curves(curves, labels))
  return drawn


def _point(run: Run, convention: str) -> Point:
  assert run.loss_eval is not None
  N = params_in(msgspec.to_builtins(run), convention)
  C = float(getattr(run, convention))
  size = run.params_total
  return Point(run.run_id, N, run.tokens, C, size, run.loss_eval, run.loss_eval_stderr, run.metrics)


def _loss_curve(workdir: epath.Path, run: Run) -> LossCurve:
  rows = [row for row in metrics.read(workdir / "runs" / run.run_id) if row["loss"] is not None]
  held_out = [(row["tokens"], row["loss_eval"]) for row in rows if row.get("loss_eval") is not None]
  seen, losses = [row["tokens"] for row in rows], [row["loss"] for row in rows]
  return LossCurve(run.run_id, run.params_total, seen, losses, held_out)


def _html_of(plot: Plot, name: str, config: JsonObject) -> str:
  return plot.figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"plot-{name}")


def environment() -> jinja2.Environment:
  """The environment of this room's templates, with filters that format numbers."""
  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
  )
  made.filters |= {"duration": duration, "number": number, "interval": interval, "cell": cell, "beyond": beyond}
  made.filters["setting"] = setting
  return made


def write_table(path: str, document: JsonObject) -> None:
  """Writes a table of all runs of report.json to a .csv or .parquet file.

  A run's columns are the single values of its record, its metrics, and what it changes of the study's config.
  """
  planned = {run["run_id"]: run["overrides"] for run in document["planned"]}
  rows = []
  for run in document["runs"]:
    row = {name: value for name, value in run.items() if not isinstance(value, dict | list)}
    row["roles"] = ", ".join(run["roles"])
    row |= {f"metric.{name}": value for name, value in run["metrics"].items()}
    changes = planned.get(run["run_id"], {})
    row |= {name: value if isinstance(value, int | float) else str(value) for name, value in changes.items()}
    rows.append(row)
  table = pl.DataFrame(rows, infer_schema_length=None)
  buffer = io.BytesIO()
  (table.write_csv if path.endswith(".csv") else table.write_parquet)(buffer)
  write_bytes(absolute(path), buffer.getvalue())


def write_page(path: epath.PathLike, page: Page) -> None:
  """Writes a page of tables, plots and texts."""
  config: JsonObject = {"displayModeBar": False, "responsive": True}
  plots = [(plot.title, plot.text, _html_of(plot, str(i), config)) for i, plot in enumerate(page.plots)]
  script = plotly.offline.get_plotlyjs() if plots else ""
  html = environment().get_template("tables.html.j2").render(page=page, plots=plots, plotly=script)
  write_text(absolute(path), html)


def _save_figures(workdir: epath.Path, plots: dict[str, Plot], figure_format: str) -> None:
  try:
    import kaleido  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
  except ImportError as error:
    raise UserError("--figures: needs kaleido and Chrome or Chromium; pip install 'bigmodel[figures]'") from error
  out = workdir / "figures"
  out.mkdir(parents=True, exist_ok=True)
  for name, plot in plots.items():
    try:
      image = plot.figure.to_image(format=figure_format, width=720, height=460)
      (out / f"{name}.{figure_format}").write_bytes(image)
    except Exception as error:
      reason = str(error).strip().splitlines()[0]
      raise UserError(f"--figures: {reason} (is Chrome or Chromium installed?)") from error


def number(value: float | None, digits: int = 4) -> str:
  """A number as people read it: 12,345 or 1.234 or 3.8e12; '-' for None."""
  if value is None:
    return "-"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}" if abs(value) < 1e9 else f"{value:.3g}"
  if abs(value) >= 1e6 or 0 < abs(value) < 1e-3:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"
  return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def beyond(distance: float) -> str:
  """A distance in ln C beyond the largest run as part of a sentence."""
  return reach.sentence(math.exp(distance))


def cell(value: object) -> str:
  """A cell of a table: a number, an interval or text."""
  if isinstance(value, list | tuple):
    return interval(value)
  return number(value) if value is None or isinstance(value, int | float) else str(value)


def setting(value: object) -> str:
  """The value of a config's field as a cell of a table."""
  return ", ".join(map(str, value)) if isinstance(value, list | tuple) else cell(value)


def interval(pair: Sequence[float | None] | None) -> str:
  """'low to high', or '-' for an interval that is None or has no low end."""
  return f"{number(pair[0])} to {number(pair[1])}" if pair and pair[0] is not None else "-"
