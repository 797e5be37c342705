"""The page of `bigmodel compare`: two recipes along their compute, and the compute of one in terms of the other's."""

import plotly.graph_objects as go

from bigmodel.laws.compare import Band, Comparison
from bigmodel.report import figures, page
from bigmodel.report.page import Page, Plot, Table

COLORS = (figures.FORECAST, figures.TRUTH)


def write(path: str, a: str, b: str, comparison: Comparison) -> None:
  """Writes the page of two recipes, named by where their runs came from."""
  rows = [
    (row.C, row.loss_a, row.loss_b, row.multiplier, row.interval90, "yes" if row.beyond else "")
    for row in comparison.rows
  ]
  laws = [
    (name, parameter, value, law.intervals[parameter])
    for name, law in zip("AB", comparison.laws, strict=True)
    for parameter, value in law.params.items()
  ]
  columns = ("compute C", "loss of A", "loss of B", "multiplier", "90% interval", "beyond the runs of one")
  worth = Table("The compute of B in A's terms", "As a multiple of B's own compute, with 90% intervals.", columns, rows)
  fitted = Table("The laws", "", ("recipe", "parameter", "value", "90% interval"), laws)
  crossing = comparison.crossing
  where = "The losses of A and B do not cross near these budgets."
  if crossing.interval90:
    low, high = map(page.number, crossing.interval90)
    where = (
      f"The losses of A and B cross in {crossing.share_of_draws:.0%} of the resamples, between {low} and {high} FLOPs"
      " (90% interval)."
    )
  plots = [
    Plot("Loss at the best size for the compute", where, _losses(comparison)),
    Plot(
      "Compute multiplier of B over A", "Above 1, B saves compute. Bands are 90% intervals.", _multipliers(comparison)
    ),
  ]
  summary = f"{comparison.verdict}. A: {a}, B: {b}."
  heading = "Does the other recipe pay?"
  page.write_page(path, Page(f"{a} and {b}", heading, summary, [worth, fitted], plots, plots_first=True))


def _band(figure: go.Figure, C: list[float], band: Band, name: str, color: str) -> None:
  lows, highs = zip(*band.interval90, strict=True)
  red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
  figure.add_scatter(
    x=[*C, *reversed(C)],
    y=[*highs, *reversed(lows)],
    fill="toself",
    fillcolor=f"rgba({red},{green},{blue},0.15)",
    line={"width": 0},
    showlegend=False,
    hoverinfo="skip",
  )
  figure.add_scatter(
    x=C,
    y=band.value,
    mode="lines",
    name=name,
    line={"color": color},
    hovertemplate="C %{x:.3g}<br>%{y:.4g}<extra></extra>",
  )


def _losses(comparison: Comparison) -> go.Figure:
  figure, curves = figures.blank("compute C (FLOPs)", "held-out loss"), comparison.curves
  for name, band, color, runs in zip("AB", (curves.a, curves.b), COLORS, comparison.points, strict=True):
    figure.add_scatter(
      x=runs.C,
      y=runs.loss,
      mode="markers",
      name=f"runs of {name}",
      marker={"color": color, "size": 6, "opacity": 0.5},
      hovertemplate="C %{x:.3g}<br>%{y:.4f}<extra></extra>",
    )
    _band(figure, curves.C, band, f"law of {name} at its optimum", color)
  return figure


def _multipliers(comparison: Comparison) -> go.Figure:
  figure, curves = figures.blank("compute C (FLOPs)", "multiplier", log_y=True, height=340), comparison.curves
  _band(figure, curves.C, curves.multiplier, "B in A's terms", COLORS[1])
  figure.add_hline(y=1, line={"color": figures.QUIET, "dash": "dot"})
  return figure
