"""Figures of a sweep: all its settings beside its losses, and learning rates by size."""

import math
from typing import Any

import plotly.graph_objects as go

from bigmodel.report import figures

Facts = dict[str, Any]


def draw(board: Facts, loss: str) -> dict[str, tuple[str, go.Figure]]:
  """`{name: (title, figure)}` of a leaderboard."""
  drawn = {}
  cells = [cell for cell in board["cells"] if cell["loss"] is not None]
  if len(board["axes"]) > 1 and len(cells) > 2:
    drawn["axes"] = ("Every setting, beside what it came to", parallel(cells, board["axes"], loss))
  cells = [cell for cell in cells if "optim.lr" in cell["overrides"]]
  if board["learning_rates"]:
    size = next((n for n in board["axes"] if n.startswith("model.") and _numeric(cells, n)), None)
    if size is None:
      drawn["rates"] = ("Which learning rate?", rates(cells, board["axes"], loss))
    else:
      drawn["rates"] = (f"Which learning rate, by {size}?", heat_map(cells, board["learning_rates"], size, loss))
  return drawn


def _numeric(cells: list[Facts], name: str) -> bool:
  return all(type(cell["overrides"].get(name)) in (int, float) for cell in cells)


def parallel(cells: list[Facts], axes: list[str], loss: str) -> go.Figure:
  """A line a setting through its values, coloured by loss; numbers over more than a decade in their logs."""
  dimensions = []
  for name in axes:
    values = [cell["overrides"].get(name) for cell in cells]
    if _numeric(cells, name):
      least, most = min(values), max(values)
      log = least > 0 and most / least > 10
      ticks = sorted(set(values)) if len(set(values)) <= 9 else None
      scaled = [math.log10(v) for v in values] if log else values
      if ticks is None and log:
        ticks = [10.0**k for k in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]
      shown = {} if ticks is None else {"tickvals": [math.log10(t) if log else t for t in ticks],
                                        "ticktext": [f"{t:.3g}" for t in ticks]}  # fmt: skip
      dimensions.append({"label": name, "values": scaled, **shown})
    else:
      names = sorted({str(v) for v in values})
      places = [names.index(str(v)) for v in values]
      dimensions.append({"label": name, "values": places, "tickvals": list(range(len(names))), "ticktext": names})
  losses = [cell["loss"] for cell in cells]
  dimensions.append({"label": "loss", "values": losses})
  figure = figures.blank("", "", log_x=False)
  middle = sorted(losses)[len(losses) // 2]
  figure.add_trace(go.Parcoords(
    dimensions=dimensions,
    line={"color": losses, "colorscale": "Viridis", "cmin": min(losses), "cmax": 2 * middle - min(losses),
          "colorbar": {"title": {"text": loss, "side": "right"}, "thickness": 12}},
    labelfont={"size": 13},
  ))  # fmt: skip
  figure.update_layout(margin={"l": 70, "r": 40, "t": 50, "b": 24}, height=400)
  return figure


def rates(cells: list[Facts], axes: list[str], loss: str) -> go.Figure:
  """Loss over the learning rate, a line for each setting of the other axes; bars are deviations between seeds."""
  figure = figures.blank("learning rate", loss)
  groups: dict[str, list[Facts]] = {}
  for cell in cells:
    others = [f"{n.split('.')[-1]} {cell['overrides'][n]}" for n in axes if n != "optim.lr" and n in cell["overrides"]]
    groups.setdefault(", ".join(others), []).append(cell)
  for index, (name, group) in enumerate(groups.items()):
    group.sort(key=lambda cell: cell["overrides"]["optim.lr"])
    bars = {"type": "data", "array": [cell["std"] or 0.0 for cell in group], "thickness": 1.5}
    figure.add_scatter(
      x=[cell["overrides"]["optim.lr"] for cell in group], y=[cell["loss"] for cell in group], error_y=bars,
      mode="lines+markers", name=name or "loss", line={"color": figures.color(index, len(groups))},
      showlegend=len(groups) > 1,
    )  # fmt: skip
  return figure


def heat_map(cells: list[Facts], best: list[Facts], size: str, loss: str) -> go.Figure:
  """The least loss of all cells at each learning rate and size, and the best rates with their intervals."""
  figure = figures.blank("learning rate", size, log_y=False, height=360)
  found: dict[tuple[Any, float], float] = {}
  for cell in cells:
    key = cell["overrides"][size], cell["overrides"]["optim.lr"]
    found[key] = min(found.get(key, math.inf), cell["loss"])
  sizes, tried = (sorted(set(values)) for values in zip(*found, strict=True))
  rows = [str(s) for s in sizes]
  excess = [[found.get((s, r)) for r in tried] for s in sizes]
  lows = [min(z for z in row if z is not None) for row in excess]
  excess = [[None if z is None else z - low for z in row] for row, low in zip(excess, lows, strict=True)]
  highest = (
    sorted(z for row in excess for z in row if z is not None)[int(0.8 * len(found)) - 1] if len(found) > 4 else 1.0
  )
  figure.add_trace(go.Heatmap(
    x=tried, y=rows, z=excess, zmin=0, zmax=max(highest, 1e-3), colorscale="Viridis", reversescale=True,
    colorbar={"title": {"text": "above the least of its row", "side": "right"}, "thickness": 12},
    hovertemplate=f"{size} %{{y}}<br>rate %{{x:.3g}}<br>%{{z:.4f}} above<extra></extra>",
  ))  # fmt: skip
  least: dict[Any, Facts] = {}
  for row in best:
    one = row["others"].get(size)
    if (row["best"] or row["flat"]) and (one not in least or row["loss"] < least[one]["loss"]):
      least[one] = row
  best_rates = [row["best"] or row["best_tried"] for row in least.values()]
  pairs = [row["interval90"] or [rate, rate] for row, rate in zip(least.values(), best_rates, strict=True)]
  figure.add_scatter(
    x=best_rates, y=[str(one) for one in least], mode="markers", name="best",
    marker={"color": figures.TRUTH, "size": 9, "symbol": "diamond", "line": {"color": "white", "width": 1}},
    error_x=figures.bars(best_rates, pairs) | {"color": figures.TRUTH},
    hovertemplate="best %{x:.3g}<extra></extra>",
  )  # fmt: skip
  figure.update_yaxes(type="category")
  return figure
