"""Figures of a study's report, as plotly figures. Nothing is fitted here."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from msgspec import UNSET

from bigmodel.laws.facts import BudgetProfile, LawFit, Optimum, RateScan
from bigmodel.report.facts import ScoredForecast

SEQUENCE = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d8b400", "#e07b00", "#c0392b")
TRUTH, FORECAST, QUIET, DARK = "#c0392b", "#2a788e", "#9aa3ad", "#27313b"
AXIS = {
  "gridcolor": "#e8ebee",
  "linecolor": "#c5ccd3",
  "zeroline": False,
  "ticks": "outside",
  "tickcolor": "#c5ccd3",
}
STANDARD_ERRORS = 1.645  # on each side of a 90% interval


@dataclasses.dataclass(frozen=True)
class Labels:
  """The unit of D and the name of the loss, for axes."""

  unit: str = "tokens"
  loss: str = "loss (nats per token)"


@dataclasses.dataclass(frozen=True)
class Point:
  """A finished run, with N and C as the study's convention counts them."""

  run_id: str
  N: int
  D: float
  C: float
  size: int  # parameters in all, by which runs are coloured
  loss: float
  stderr: float | None = None
  metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LossCurve:
  """The training loss of a run over the data seen, and its held-out losses during training."""

  run_id: str
  size: int
  seen: list[float]
  loss: list[float]
  held_out: list[tuple[float, float]]  # (data seen, loss)


def blank(x: str, y: str, log_x: bool = True, log_y: bool = False, height: int = 420) -> go.Figure:
  """An empty figure with titled axes."""
  figure = go.Figure()
  x_axis = {"title": {"text": x}, "type": "log" if log_x else "linear", "exponentformat": "power"}
  figure.update_layout(
    template="none",
    height=height,
    margin={"l": 62, "r": 16, "t": 12, "b": 52},
    font={"family": "system-ui, sans-serif", "size": 13, "color": DARK},
    xaxis=AXIS | x_axis,
    yaxis=AXIS | {"title": {"text": y}, "type": "log" if log_y else "linear"},
    legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    hovermode="closest",
  )
  if log_x:
    figure.update_xaxes(dtick=None, minor={"ticks": "outside", "ticklen": 3, "tickcolor": "#c5ccd3"})
  return figure


def error_bars(centers: Sequence[float], intervals: Sequence[Sequence[float | None]]) -> dict[str, object]:
  """Error bars of intervals; an end that is None has none."""
  pairs = [(center, low, high) for center, (low, high) in zip(centers, intervals, strict=True)]
  return {
    "type": "data",
    "symmetric": False,
    "array": [0.0 if high is None else max(0.0, high - center) for center, _, high in pairs],
    "arrayminus": [0.0 if low is None else max(0.0, center - low) for center, low, _ in pairs],
    "thickness": 1.5,
  }


def color(index: int, count: int) -> str:
  """The colour of one of `count` lines, from dark to light."""
  return SEQUENCE[round(index * (min(count, len(SEQUENCE)) - 1) / max(count - 1, 1))] if count > 1 else SEQUENCE[2]


def loss_curves(curves: Sequence[LossCurve], labels: Labels) -> go.Figure:
  """Training loss over the data seen, a line for each run, coloured by size; diamonds are held-out losses."""
  figure = blank(f"{labels.unit} seen", f"training {labels.loss}")
  sizes = sorted({curve.size for curve in curves})
  in_legend = set()
  for curve in curves:
    shade = color(sizes.index(curve.size), len(sizes))
    figure.add_scatter(
      x=curve.seen,
      y=_smooth(curve.loss),
      mode="lines",
      line={"width": 1.2, "color": shade},
      name=f"N {curve.size:,}",
      legendgroup=str(curve.size),
      showlegend=curve.size not in in_legend,
      hovertemplate=f"{curve.run_id}<br>%{{x:.3s}} {labels.unit}, loss %{{y:.3f}}<extra></extra>",
    )
    in_legend.add(curve.size)
    if curve.held_out:
      figure.add_scatter(
        x=[seen for seen, _ in curve.held_out],
        y=[loss for _, loss in curve.held_out],
        mode="markers",
        marker={"symbol": "diamond", "size": 7, "color": shade},
        legendgroup=str(curve.size),
        showlegend=False,
        hovertemplate=f"{curve.run_id}<br>%{{x:.3s}} {labels.unit}, held-out loss %{{y:.3f}}<extra></extra>",
      )
  return figure


def _smooth(values: Sequence[float], decay: float = 0.9) -> list[float]:
  """The exponential average, debiased; for drawing only."""
  smooth, total = [], 0.0
  for index, value in enumerate(values, 1):
    total = decay * total + (1 - decay) * value
    smooth.append(total / (1 - decay**index))
  return smooth


def isoflop(
  points: Sequence[Point], profiles: Sequence[BudgetProfile], optima: Sequence[Optimum], labels: Labels
) -> go.Figure:
  """Loss over N at each budget, the parabola through it, and its minimum with the 90% interval."""
  figure = blank("parameters N", f"held-out {labels.loss}")
  groups = _by_budget(points)
  for index, (budget, group) in enumerate(groups):
    shade = color(index, len(groups))
    group = sorted(group, key=lambda point: point.N)
    N = np.array([point.N for point in group], float)
    figure.add_scatter(
      x=N,
      y=[point.loss for point in group],
      mode="markers",
      marker={"color": shade, "size": 8},
      name=f"{budget:.2g} FLOPs",
      legendgroup=str(index),
      hovertemplate="N %{x:,}<br>loss %{y:.4f}<extra></extra>",
    )
    nearest = min(profiles, key=lambda profile: abs(math.log(profile.C / budget)), default=None)
    if nearest is not None and abs(math.log(nearest.C / budget)) < 0.15:
      _add_parabola(figure, nearest, N, {"line": {"color": shade, "width": 1.5}, "legendgroup": str(index)})
  inside = [optimum for optimum in optima if optimum.law == "isoflop" and optimum.inside is True]
  if inside:
    best = [optimum.N for optimum in inside]
    figure.add_scatter(
      x=best,
      y=[optimum.loss for optimum in inside],
      mode="markers",
      name="minimum, 90%",
      marker={"symbol": "diamond", "size": 11, "color": DARK},
      error_x=error_bars(best, [optimum.N_interval90 for optimum in inside]),
      hovertemplate="minimum at N %{x:,.0f}<br>loss %{y:.4f}<extra></extra>",
    )
  return figure


def _by_budget(points: Sequence[Point]) -> list[tuple[float, list[Point]]]:
  """Points within 15% of each other in C, by budget."""
  groups: list[list[Point]] = []
  for point in sorted(points, key=lambda point: point.C):
    if groups and point.C <= groups[-1][0].C * 1.15:
      groups[-1].append(point)
    else:
      groups.append([point])
  return [(float(np.exp(np.mean([math.log(point.C) for point in group]))), group) for group in groups]


def _add_parabola(figure: go.Figure, profile: BudgetProfile, N: np.ndarray, style: Mapping[str, object]) -> None:
  """Draws the parabola of a budget a little beyond its sizes N; a profile without a minimum has none."""
  c0, c1, c2 = profile.coefficients
  if c0 is None or c1 is None or c2 is None:
    return
  x = np.linspace(np.log(N.min() * 0.85), np.log(N.max() * 1.15), 60)
  figure.add_scatter(x=np.exp(x), y=c0 + c1 * x + c2 * x**2, mode="lines", showlegend=False, hoverinfo="skip", **style)


def loss_over_data(points: Sequence[Point], labels: Labels, metric: str = "") -> go.Figure:
  """The held-out loss, or a metric, over the data seen, with a line for each size."""
  figure = blank(f"{labels.unit} seen", f"held-out {metric or labels.loss}")
  sizes = sorted({point.size for point in points})
  for index, size in enumerate(sizes):
    of_size = sorted((point for point in points if point.size == size), key=lambda point: point.D)
    errors = {"type": "data", "array": [STANDARD_ERRORS * (point.stderr or 0) for point in of_size], "thickness": 1}
    figure.add_scatter(
      x=[point.D for point in of_size],
      y=[point.metrics.get(metric) if metric else point.loss for point in of_size],
      mode="lines+markers",
      line={"color": color(index, len(sizes)), "width": 1.5},
      marker={"size": 8},
      error_y=None if metric else errors,
      name=f"N {size:,}",
      text=[point.run_id for point in of_size],
      hovertemplate="%{text}<br>%{x:,} seen<br>%{y:.4f}<extra></extra>",
    )
  return figure


def loss_over_n_and_d(points: Sequence[Point], target: Point | None, law: LawFit | None, labels: Labels) -> go.Figure:
  """Every run at its (N, D), coloured by loss, over the contours of the fitted law; a star is the target."""
  figure = blank("parameters N", f"training {labels.unit} D", log_y=True)
  every = [*points, *([target] if target else [])]
  N, D = np.array([point.N for point in every], float), np.array([point.D for point in every], float)
  losses = [point.loss for point in every]
  if law:
    p = {name: value or 0.0 for name, value in law.params.items()}
    x = np.geomspace(N.min() / 1.4, N.max() * 1.4, 60)
    y = np.geomspace(D.min() / 1.6, D.max() * 1.6, 60)
    figure.add_contour(
      x=x,
      y=y,
      z=p["E"] + p["A"] / x[None, :] ** p["alpha"] + p["B"] / y[:, None] ** p["beta"],
      colorscale="Viridis_r",
      opacity=0.45,
      zmin=min(losses),
      zmax=max(losses),
      contours={"showlabels": True, "size": 0.1},
      line={"width": 0.6},
      showscale=False,
      hovertemplate="N %{x:.3s}<br>D %{y:.3s}<br>law %{z:.3f}<extra></extra>",
    )
  stars = len(every) - len(points)
  marker = {
    "color": losses,
    "colorscale": "Viridis_r",
    "size": [9] * len(points) + [15] * stars,
    "colorbar": {"title": {"text": "loss"}, "thickness": 12, "outlinewidth": 0},
    "line": {"color": DARK, "width": 1},
    "symbol": ["circle"] * len(points) + ["star"] * stars,
  }
  figure.add_scatter(
    x=N,
    y=D,
    mode="markers",
    showlegend=False,
    marker=marker,
    text=[point.run_id for point in every],
    hovertemplate="%{text}<br>N %{x:,}<br>D %{y:,}<br>loss %{marker.color:.4f}<extra></extra>",
  )
  return figure


def forecast(
  points: Sequence[Point], sealed: ScoredForecast, law: LawFit | None, noise: float | None, labels: Labels
) -> go.Figure:
  """Fitted runs over compute, the frontier of the law, and the forecast with its interval beside the truth.

  `noise` is the standard deviation between seeds.
  """
  figure = blank("compute C (FLOPs)", f"held-out {labels.loss}")
  figure.add_scatter(
    x=[point.C for point in points],
    y=[point.loss for point in points],
    mode="markers",
    name="fitted runs",
    marker={"color": QUIET, "size": 7},
    text=[point.run_id for point in points],
    hovertemplate="%{text}<br>C %{x:.3g}<br>loss %{y:.4f}<extra></extra>",
  )
  C = sealed.target.C
  if law and law.flops_per_nd is not UNSET:
    budgets = np.geomspace(min(point.C for point in points), C * 1.3, 80)
    figure.add_scatter(
      x=budgets,
      y=_frontier(law, law.flops_per_nd, budgets),
      mode="lines",
      line={"color": FORECAST, "dash": "dot"},
      name="Chinchilla's law at its optimum",
      hoverinfo="skip",
    )
  low, high = sealed.interval90
  figure.add_scatter(
    x=[C],
    y=[sealed.predicted],
    mode="markers",
    name="forecast, 90% interval",
    marker={"color": FORECAST, "size": 11, "symbol": "square"},
    error_y=error_bars([sealed.predicted], [(low, high)]) | {"width": 8},
    hovertemplate=f"forecast %{{y:.4f}}<br>{low:.4f} to {high:.4f}<extra></extra>",
  )
  if sealed.actual is not None:
    figure.add_scatter(
      x=[C],
      y=[sealed.actual],
      mode="markers",
      name="truth",
      marker={"color": TRUTH, "size": 12, "symbol": "star"},
      error_y={"type": "data", "array": [STANDARD_ERRORS * noise], "thickness": 1} if noise else None,
      hovertemplate="truth %{y:.4f}<extra></extra>",
    )
  return figure


def _frontier(law: LawFit, flops_per_nd: float, C: np.ndarray) -> np.ndarray:
  """The loss of Chinchilla's law at its optimum for each budget."""
  p = {name: value or 0.0 for name, value in law.params.items()}
  G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
  N = G * (C / flops_per_nd) ** (p["beta"] / (p["alpha"] + p["beta"]))
  return p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (C / flops_per_nd / N) ** p["beta"]


def learning_rates(scans: Sequence[RateScan], labels: Labels) -> go.Figure:
  """Held-out loss over the learning rate; the ring is the rate that the study's rule gives."""
  figure = blank("learning rate", f"held-out {labels.loss}", height=340)
  for index, scan in enumerate(scans):
    shade = color(index, len(scans))
    figure.add_scatter(
      x=scan.rates,
      y=scan.losses,
      mode="lines+markers",
      name=f"N {scan.N:,}, D {scan.D:,}",
      line={"color": shade, "width": 1.5},
      marker={"size": 8},
      hovertemplate="rate %{x:.4g}<br>loss %{y:.4f}<extra></extra>",
    )
    at_rule = dict(zip(scan.rates, scan.losses, strict=True)).get(scan.rule)
    if at_rule is not None:
      figure.add_scatter(
        x=[scan.rule],
        y=[at_rule],
        mode="markers",
        showlegend=False,
        hoverinfo="skip",
        marker={"size": 16, "color": "rgba(0,0,0,0)", "line": {"color": shade, "width": 2}},
      )
  return figure
