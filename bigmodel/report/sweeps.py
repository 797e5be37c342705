"""Figures of a sweep: its settings beside their losses, and learning rates by size."""

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from bigmodel.report import figures
from bigmodel.report.facts import BestRate, Cell, Leaderboard

RATE = "optim.lr"
MANY_TICKS = 9  # values of an axis above which only powers of ten are labelled


def draw(board: Leaderboard, loss: str) -> dict[str, tuple[str, go.Figure]]:
  """`{name: (title, figure)}` of a leaderboard; `loss` is the label of its losses."""
  drawn = {}
  cells = [cell for cell in board.cells if cell.loss is not None]
  if len(board.axes) > 1 and len(cells) > 2:
    drawn["axes"] = ("Every setting and its loss", parallel(cells, board.axes, loss))
  cells = [cell for cell in cells if RATE in cell.overrides]
  if board.learning_rates:
    size = next((name for name in board.axes if name.startswith("model.") and _numbers(cells, name)), None)
    if size is None:
      drawn["rates"] = ("Which learning rate?", rates(cells, board.axes, loss))
    else:
      drawn["rates"] = (f"Which learning rate, by {size}?", heat_map(cells, board.learning_rates, size))
  return drawn


def _numbers(cells: Sequence[Cell], name: str) -> list[int | float]:
  """The values of an axis in all cells, or none if some of them are no numbers."""
  values = [value for cell in cells if type(value := cell.overrides.get(name)) in (int, float)]
  return [value for value in values if isinstance(value, int | float)] if len(values) == len(cells) else []


def _rate(cell: Cell) -> float:
  rate = cell.overrides[RATE]
  assert isinstance(rate, int | float)
  return rate


def _loss(cell: Cell) -> float:
  assert cell.loss is not None
  return cell.loss


def parallel(cells: Sequence[Cell], axes: Sequence[str], loss: str) -> go.Figure:
  """A line for each setting through its values, coloured by loss."""
  losses = [_loss(cell) for cell in cells]
  dimensions = [_dimension(cells, name) for name in axes] + [{"label": "loss", "values": losses}]
  figure = figures.blank("", "", log_x=False)
  middle = sorted(losses)[len(losses) // 2]
  line = {
    "color": losses,
    "colorscale": "Viridis",
    "cmin": min(losses),
    "cmax": 2 * middle - min(losses),
    "colorbar": {"title": {"text": loss, "side": "right"}, "thickness": 12},
  }
  figure.add_trace(go.Parcoords(dimensions=dimensions, line=line, labelfont={"size": 13}))
  figure.update_layout(margin={"l": 70, "r": 40, "t": 50, "b": 24}, height=400)
  return figure


def _dimension(cells: Sequence[Cell], name: str) -> dict[str, object]:
  """An axis of the parallel coordinates; numbers over more than a decade are in logs."""
  values = _numbers(cells, name)
  if not values:
    texts = [str(cell.overrides.get(name)) for cell in cells]
    names = sorted(set(texts))
    places = [names.index(text) for text in texts]
    return {"label": name, "values": places, "tickvals": list(range(len(names))), "ticktext": names}
  least, most = min(values), max(values)
  log = least > 0 and most / least > 10
  ticks = sorted(set(values)) if len(set(values)) <= MANY_TICKS else []
  if not ticks and log:
    ticks = [10.0**k for k in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1)]
  dimension: dict[str, object] = {"label": name, "values": [math.log10(v) for v in values] if log else values}
  if ticks:
    dimension["tickvals"] = [math.log10(tick) if log else tick for tick in ticks]
    dimension["ticktext"] = [f"{tick:.3g}" for tick in ticks]
  return dimension


def rates(cells: Sequence[Cell], axes: Sequence[str], loss: str) -> go.Figure:
  """Loss over the learning rate, a line for each setting of the other axes; bars are deviations between seeds."""
  figure = figures.blank("learning rate", loss)
  groups: dict[str, list[Cell]] = {}
  for cell in cells:
    others = [
      f"{name.split('.')[-1]} {cell.overrides[name]}" for name in axes if name != RATE and name in cell.overrides
    ]
    groups.setdefault(", ".join(others), []).append(cell)
  for index, (name, group) in enumerate(groups.items()):
    group.sort(key=_rate)
    figure.add_scatter(
      x=[_rate(cell) for cell in group],
      y=[cell.loss for cell in group],
      error_y={"type": "data", "array": [cell.std or 0.0 for cell in group], "thickness": 1.5},
      mode="lines+markers",
      name=name or "loss",
      line={"color": figures.color(index, len(groups))},
      showlegend=len(groups) > 1,
    )
  return figure


def heat_map(cells: Sequence[Cell], best: Sequence[BestRate], size: str) -> go.Figure:
  """The lowest loss at each learning rate and size, and the best rates with their intervals."""
  figure = figures.blank("learning rate", size, log_y=False, height=360)
  lowest: dict[tuple[float, float], float] = {}
  for cell, value in zip(cells, _numbers(cells, size), strict=True):
    key = value, _rate(cell)
    lowest[key] = min(lowest.get(key, math.inf), _loss(cell))
  sizes, tried = sorted({size for size, _ in lowest}), sorted({rate for _, rate in lowest})
  least_of_row = {size: min(loss for (other, _), loss in lowest.items() if other == size) for size in sizes}
  excess = {key: loss - least_of_row[key[0]] for key, loss in lowest.items()}
  highest = sorted(excess.values())[int(0.8 * len(excess)) - 1] if len(excess) > 4 else 1.0
  heat = go.Heatmap(
    x=tried,
    y=[str(size) for size in sizes],
    z=[[excess.get((size, rate)) for rate in tried] for size in sizes],
    zmin=0,
    zmax=max(highest, 1e-3),
    colorscale="Viridis",
    reversescale=True,
    colorbar={"title": {"text": "loss above the lowest of its row", "side": "right"}, "thickness": 12},
    hovertemplate=f"{size} %{{y}}<br>rate %{{x:.3g}}<br>%{{z:.4f}} above<extra></extra>",
  )
  figure.add_trace(heat)
  _add_best(figure, _best_of_each(best, size))
  figure.update_yaxes(type="category")
  return figure


def _best_of_each(best: Sequence[BestRate], size: str) -> Mapping[str, BestRate]:
  """Of the settings of each size, the best rate of the one with the lowest loss."""
  of_size: dict[str, BestRate] = {}
  for row in best:
    name = str(row.others.get(size))
    if (row.best or row.flat) and (name not in of_size or row.loss < of_size[name].loss):
      of_size[name] = row
  return of_size


def _add_best(figure: go.Figure, of_size: Mapping[str, BestRate]) -> None:
  rates = [row.best or row.best_tried for row in of_size.values()]
  pairs = [row.interval90 or (rate, rate) for row, rate in zip(of_size.values(), rates, strict=True)]
  figure.add_scatter(
    x=rates,
    y=list(of_size),
    mode="markers",
    name="best",
    marker={"color": figures.TRUTH, "size": 9, "symbol": "diamond", "line": {"color": "white", "width": 1}},
    error_x=figures.error_bars(rates, pairs) | {"color": figures.TRUTH},
    hovertemplate="best %{x:.3g}<extra></extra>",
  )
