"""The page of `bigmodel compare`: two recipes along their compute, and what one is worth in the other's terms."""

from typing import Any

import plotly.graph_objects as go

from bigmodel.report import figures, page

COLORS = (figures.FORECAST, figures.TRUTH)


def write(path: str, a: str, b: str, result: dict[str, Any]) -> None:
  """Writes the page of two recipes, named by where they came from."""
  rows = [
    (row["C"], row["loss_a"], row["loss_b"], row["multiplier"], row["interval90"], "yes" if row["beyond"] else "")
    for row in result["rows"]
  ]
  laws = [
    (name, parameter, value, law["intervals"][parameter])
    for name, law in zip("AB", result["laws"], strict=True)
    for parameter, value in law["params"].items()
  ]
  tables = [
    ("What B's compute is worth", "Times its own, in A's terms; 90% intervals.",
     ("compute C", "loss of A", "loss of B", "multiplier", "90% interval", "beyond the runs of one"), rows),
    ("The laws", "", ("recipe", "parameter", "value", "90% interval"), laws),
  ]  # fmt: skip
  crossing = result["crossing"]
  where = "They do not cross near the runs."
  if crossing["interval90"]:
    where = (
      f"In {crossing['share_of_draws']:.0%} of the resamples they cross, between"
      f" {page.number(crossing['interval90'][0])} and {page.number(crossing['interval90'][1])} FLOPs (90%)."
    )
  plots = [
    ("Loss at the best size for the compute", where, _losses(result)),
    ("Compute multiplier of B over A", "Above 1, B saves compute. Bands are 90%.", _multipliers(result)),
  ]
  what = f"{result['verdict']}. A: {a}, B: {b}."
  page.tables(path, f"{a} and {b}", "Does the other recipe pay?", what, tables, plots, plots_first=True)


def _band(figure: go.Figure, C: list[float], curve: dict[str, Any], name: str, color: str) -> None:
  pairs = curve["interval90"]
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  figure.add_scatter(
    x=[*C, *reversed(C)], y=[*(high for _, high in pairs), *(low for low, _ in reversed(pairs))], fill="toself",
    fillcolor=f"rgba({red},{green},{blue},0.15)", line={"width": 0}, showlegend=False, hoverinfo="skip",
  )  # fmt: skip
  figure.add_scatter(
    x=C, y=curve["value"], mode="lines", name=name, line={"color": color},
    hovertemplate="C %{x:.3g}<br>%{y:.4g}<extra></extra>",
  )  # fmt: skip


def _losses(result: dict[str, Any]) -> go.Figure:
  figure, curves = figures.blank("compute C (FLOPs)", "held-out loss"), result["curves"]
  for key, color, points in zip("ab", COLORS, result["points"], strict=True):
    figure.add_scatter(
      x=points["C"], y=points["loss"], mode="markers", name=f"runs of {key.upper()}",
      marker={"color": color, "size": 6, "opacity": 0.5}, hovertemplate="C %{x:.3g}<br>%{y:.4f}<extra></extra>",
    )  # fmt: skip
    _band(figure, curves["C"], curves[key], f"law of {key.upper()} at its optimum", color)
  return figure


def _multipliers(result: dict[str, Any]) -> go.Figure:
  figure, curves = figures.blank("compute C (FLOPs)", "multiplier", log_y=True, height=340), result["curves"]
  _band(figure, curves["C"], curves["multiplier"], "B in A's terms", COLORS[1])
  figure.add_hline(y=1, line={"color": figures.QUIET, "dash": "dot"})
  return figure
