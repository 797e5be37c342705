"""Figures of a study's report, as plotly figures: numbers in, nothing computed but curves to draw."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Words:
  """What a study counts, and what its loss is."""

  unit: str = "tokens"
  loss: str = "loss (nats per token)"


SEQUENCE = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#d8b400", "#e07b00", "#c0392b")
TRUTH, FORECAST, QUIET = "#c0392b", "#2a788e", "#9aa3ad"


def blank(x: str, y: str, log_x: bool = True, log_y: bool = False, height: int = 420) -> go.Figure:
  figure = go.Figure()
  axis: dict[str, Any] = {
    "gridcolor": "#e8ebee",
    "linecolor": "#c5ccd3",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": "#c5ccd3",
  }
  figure.update_layout(
    template="none",
    height=height,
    margin={"l": 62, "r": 16, "t": 12, "b": 52},
    font={"family": "system-ui, sans-serif", "size": 13, "color": "#27313b"},
    xaxis=axis
    | {
      "title": {"text": x},
      "type": "log" if log_x else "linear",
      "exponentformat": "power",
      "dtick": 1 if log_x else None,
    },
    yaxis=axis | {"title": {"text": y}, "type": "log" if log_y else "linear"},
    legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    hovermode="closest",
  )
  if log_x:
    figure.update_xaxes(dtick=None, minor={"ticks": "outside", "ticklen": 3, "tickcolor": "#c5ccd3"})
  return figure


def bars(centers: Sequence[float], intervals: Sequence[Sequence[float]]) -> dict[str, Any]:
  """Error bars from intervals."""
  pairs = list(zip(centers, intervals, strict=True))
  return {
    "type": "data",
    "symmetric": False,
    "array": [max(0.0, high - center) for center, (_, high) in pairs],
    "arrayminus": [max(0.0, center - low) for center, (low, _) in pairs],
    "thickness": 1.5,
  }


def color(index: int, count: int) -> str:
  return SEQUENCE[round(index * (min(count, len(SEQUENCE)) - 1) / max(count - 1, 1))] if count > 1 else SEQUENCE[2]


def loss_curves(curves: Sequence[tuple[Record, list[dict[str, Any]]]], words: Words) -> go.Figure:
  """Training loss over what was seen, a line for each run, coloured by size; diamonds are held-out losses."""
  figure = blank(f"{words.unit} seen", f"training {words.loss}")
  sizes = sorted({record["params_total"] for record, _ in curves})
  named = set()
  for record, rows in curves:
    rows = [row for row in rows if row["loss"] is not None]
    size = sizes.index(record["params_total"])
    smooth = _smooth([row["loss"] for row in rows])
    figure.add_scatter(
      x=[row["tokens"] for row in rows],
      y=smooth,
      mode="lines",
      line={"width": 1.2, "color": color(size, len(sizes))},
      name=f"N {record['params_total']:,}",
      legendgroup=str(size),
      showlegend=size not in named,
      hovertemplate=f"{record['run_id']}<br>%{{x:.3s}} {words.unit}, loss %{{y:.3f}}<extra></extra>",
    )
    named.add(size)
    if held_out := [row for row in rows if row.get("loss_eval") is not None]:
      figure.add_scatter(
        x=[row["tokens"] for row in held_out],
        y=[row["loss_eval"] for row in held_out],
        mode="markers",
        marker={"symbol": "diamond", "size": 7, "color": color(size, len(sizes))},
        legendgroup=str(size),
        showlegend=False,
        hovertemplate=f"{record['run_id']}<br>%{{x:.3s}} {words.unit}, held-out loss %{{y:.3f}}<extra></extra>",
      )
  return figure


def _smooth(values: Sequence[float], decay: float = 0.9) -> list[float]:
  """Exponential average, debiased; what is drawn, never what is fitted."""
  smooth, total = [], 0.0
  for index, value in enumerate(values, 1):
    total = decay * total + (1 - decay) * value
    smooth.append(total / (1 - decay**index))
  return smooth


def isoflop(
  groups: Sequence[tuple[float, list[Record]]],
  profiles: Sequence[dict[str, Any]],
  optima: Sequence[dict[str, Any]],
  n: str,
  words: Words,
) -> go.Figure:
  """Loss over N at each budget, the parabola through it, and its minimum with the 90% interval."""
  figure = blank("parameters N", f"held-out {words.loss}")
  by_budget = {profile["C"]: profile for profile in profiles}
  for index, (budget, records) in enumerate(groups):
    shade = color(index, len(groups))
    records = sorted(records, key=lambda r: r[n])
    N = np.array([r[n] for r in records], float)
    figure.add_scatter(
      x=N, y=[r["loss_eval"] for r in records], mode="markers", marker={"color": shade, "size": 8},
      name=f"{budget:.2g} FLOPs", legendgroup=str(index),
      hovertemplate="N %{x:,}<br>loss %{y:.4f}<extra></extra>",
    )  # fmt: skip
    near = min(by_budget, key=lambda C: abs(math.log(C / budget)), default=None)
    profile = by_budget[near] if near is not None and abs(math.log(near / budget)) < 0.15 else None
    if profile and profile["coefficients"][0] is not None:
      x = np.linspace(np.log(N.min() * 0.85), np.log(N.max() * 1.15), 60)
      c0, c1, c2 = profile["coefficients"]
      figure.add_scatter(
        x=np.exp(x), y=c0 + c1 * x + c2 * x**2, mode="lines", line={"color": shade, "width": 1.5},
        legendgroup=str(index), showlegend=False, hoverinfo="skip",
      )  # fmt: skip
  inside = [o for o in optima if o["law"] == "isoflop" and o["inside"]]
  if inside:
    N = [o["N"] for o in inside]
    figure.add_scatter(
      x=N, y=[o["loss"] for o in inside], mode="markers", name="minimum, 90%",
      marker={"symbol": "diamond", "size": 11, "color": "#27313b"},
      error_x=bars(N, [o["N_interval90"] for o in inside]),
      hovertemplate="minimum at N %{x:,.0f}<br>loss %{y:.4f}<extra></extra>",
    )  # fmt: skip
  return figure


def loss_over_data(records: Sequence[Record], words: Words, value: str = "loss_eval") -> go.Figure:
  """What is held out over the data that were seen, a line a size; `value` is the loss or a metric."""
  figure = blank(f"{words.unit} seen", f"held-out {words.loss if value == 'loss_eval' else value}")
  sizes = sorted({one["params_total"] for one in records})
  for index, size in enumerate(sizes):
    own = sorted((one for one in records if one["params_total"] == size), key=lambda one: one["tokens"])
    figure.add_scatter(
      x=[one["tokens"] for one in own],
      y=[one["loss_eval"] if value == "loss_eval" else one["metrics"].get(value) for one in own],
      mode="lines+markers", line={"color": color(index, len(sizes)), "width": 1.5}, marker={"size": 8},
      error_y={"type": "data", "array": [1.645 * (one["loss_eval_stderr"] or 0) for one in own], "thickness": 1}
      if value == "loss_eval" else None,
      name=f"N {size:,}", text=[one["run_id"] for one in own],
      hovertemplate="%{text}<br>%{x:,} seen<br>%{y:.4f}<extra></extra>",
    )  # fmt: skip
  return figure


def loss_over_n_and_d(
  records: Sequence[Record], law: dict[str, Any] | None, n: str, target: Record | None, words: Words
) -> go.Figure:
  """Every run at its (N, D), coloured by loss, over the contours of the fitted law."""
  figure = blank("parameters N", f"training {words.unit} D", log_y=True)
  every = [*records, *([target] if target else [])]
  N, D = (np.array([r[name] for r in every], float) for name in (n, "tokens"))
  losses = [r["loss_eval"] for r in every]
  if law:
    p = law["params"]
    x = np.geomspace(N.min() / 1.4, N.max() * 1.4, 60)
    y = np.geomspace(D.min() / 1.6, D.max() * 1.6, 60)
    z = p["E"] + p["A"] / x[None, :] ** p["alpha"] + p["B"] / y[:, None] ** p["beta"]
    figure.add_contour(
      x=x, y=y, z=z, colorscale="Viridis_r", opacity=0.45,
      zmin=min(losses), zmax=max(losses), contours={"showlabels": True, "size": 0.1},
      line={"width": 0.6}, showscale=False, hovertemplate="N %{x:.3s}<br>D %{y:.3s}<br>law %{z:.3f}<extra></extra>",
    )  # fmt: skip
  figure.add_scatter(
    x=N, y=D, mode="markers", showlegend=False,
    marker={"color": losses, "colorscale": "Viridis_r", "size": [9] * len(records) + [15],
            "colorbar": {"title": {"text": "loss"}, "thickness": 12, "outlinewidth": 0},
            "line": {"color": "#27313b", "width": 1}, "symbol": ["circle"] * len(records) + ["star"]},
    text=[r["run_id"] for r in every],
    hovertemplate="%{text}<br>N %{x:,}<br>D %{y:,}<br>loss %{marker.color:.4f}<extra></extra>",
  )  # fmt: skip
  return figure


def forecast(
  records: Sequence[Record],
  convention: str,
  sealed: dict[str, Any],
  law: dict[str, Any] | None,
  n: str,
  noise: float | None,
  words: Words,
) -> go.Figure:
  """Fitted runs over compute, the frontier of the law, and the forecast with its interval beside the truth."""
  figure = blank("compute C (FLOPs)", f"held-out {words.loss}")
  figure.add_scatter(
    x=[r[convention] for r in records], y=[r["loss_eval"] for r in records], mode="markers", name="fitted runs",
    marker={"color": QUIET, "size": 7}, text=[r["run_id"] for r in records],
    hovertemplate="%{text}<br>C %{x:.3g}<br>loss %{y:.4f}<extra></extra>",
  )  # fmt: skip
  target = sealed["target"]
  if law:
    p = law["params"]
    C = np.geomspace(min(r[convention] for r in records), target["C"] * 1.3, 80)
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    k = law["flops_per_nd"]
    N = G * (C / k) ** (p["beta"] / (p["alpha"] + p["beta"]))
    best = p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (C / k / N) ** p["beta"]
    figure.add_scatter(
      x=C,
      y=best,
      mode="lines",
      line={"color": FORECAST, "dash": "dot"},
      name="Chinchilla's law at its optimum",
      hoverinfo="skip",
    )
  low, high = sealed["interval90"]
  figure.add_scatter(
    x=[target["C"]], y=[sealed["predicted"]], mode="markers", name="forecast, 90% interval",
    marker={"color": FORECAST, "size": 11, "symbol": "square"},
    error_y=bars([sealed["predicted"]], [(low, high)]) | {"width": 8},
    hovertemplate=f"forecast %{{y:.4f}}<br>{low:.4f} to {high:.4f}<extra></extra>",
  )  # fmt: skip
  if sealed["actual"] is not None:
    figure.add_scatter(
      x=[target["C"]], y=[sealed["actual"]], mode="markers", name="truth",
      marker={"color": TRUTH, "size": 12, "symbol": "star"},
      error_y={"type": "data", "array": [1.645 * noise], "thickness": 1} if noise else None,
      hovertemplate="truth %{y:.4f}<extra></extra>",
    )  # fmt: skip
  return figure


def learning_rates(scans: Sequence[dict[str, Any]], words: Words) -> go.Figure:
  """Held-out loss over the learning rate; the ringed point is the rule's own."""
  figure = blank("learning rate", f"held-out {words.loss}", height=340)
  for index, scan in enumerate(scans):
    shade = color(index, len(scans))
    figure.add_scatter(
      x=scan["rates"], y=scan["losses"], mode="lines+markers", name=f"N {scan['N']:,}, D {scan['D']:,}",
      line={"color": shade, "width": 1.5}, marker={"size": 8},
      hovertemplate="rate %{x:.4g}<br>loss %{y:.4f}<extra></extra>",
    )  # fmt: skip
    at = dict(zip(scan["rates"], scan["losses"], strict=True)).get(scan["rule"])
    if at is not None:
      figure.add_scatter(
        x=[scan["rule"]], y=[at], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"size": 16, "color": "rgba(0,0,0,0)", "line": {"color": shade, "width": 2}},
      )  # fmt: skip
  return figure
