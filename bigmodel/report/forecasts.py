"""The figure of a forecast for notebooks: points, fitted curves with their 90% intervals, and forecast losses."""

import plotly.graph_objects as go
import polars as pl

from bigmodel.laws.notebook import Forecast
from bigmodel.report import figures

AXES = {"C": "compute C (FLOPs)", "x": "x"}


def figure(forecast: Forecast) -> go.Figure:
  """A plotly figure with a curve for each group, on logarithmic axes."""
  drawn = figures.blank(AXES[forecast.scale], "loss", log_y=True)
  groups = forecast.table["group"].unique(maintain_order=True).to_list() if "group" in forecast.table.columns else [""]
  for index, name in enumerate(groups):
    _draw(drawn, forecast, name, figures.color(index, len(groups)))
  return drawn


def _draw(drawn: go.Figure, forecast: Forecast, name: str, color: str) -> None:
  """One group: its points, the forecast along its scale, and the losses that were asked for."""
  tables = (forecast.points, forecast.line, forecast.table)
  points, line, asked = (table.filter(pl.col("group") == name) if name else table for table in tables)
  x, prefix = forecast.scale, f"{name}: " if name else ""
  band = [*line["low90"], *line["high90"].reverse()]
  drawn.add_scatter(
    x=[*line[x], *line[x].reverse()],
    y=band,
    fill="toself",
    fillcolor=color,
    opacity=0.15,
    line={"width": 0},
    hoverinfo="skip",
    showlegend=False,
  )
  drawn.add_scatter(
    x=line[x].to_list(), y=line["predicted"].to_list(), mode="lines", line={"color": color}, name=f"{prefix}fit"
  )
  drawn.add_scatter(
    x=points[x].to_list(), y=points["loss"].to_list(), mode="markers", marker={"color": color}, name=f"{prefix}runs"
  )
  ends = list(zip(asked["low90"], asked["high90"], strict=True))
  drawn.add_scatter(
    x=asked[x].to_list(),
    y=asked["predicted"].to_list(),
    mode="markers",
    marker={"color": color, "symbol": "square", "size": 10},
    error_y=figures.error_bars(asked["predicted"].to_list(), ends),
    name=f"{prefix}forecast, 90% interval",
  )
