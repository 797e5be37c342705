"""The page of a coordinate check: how much a step changes each layer's output, by size."""

from bigmodel.planner.parametrizations import Comparison, Measured
from bigmodel.report import figures, page
from bigmodel.report.page import Page, Plot, Table


def write(path: str, comparison: Comparison) -> None:
  """Writes the page, with a plot for each axis of each parametrization."""
  rows = [
    (each.parametrization, each.axis, f"{each.sizes[0]} to {each.sizes[-1]}", each.check.steepest)
    for each in comparison.measured
  ]
  summary = "After five steps on one batch. Where the lines are flat, one learning rate serves all sizes."
  summary += "".join(f" {kind} was not measured: {reason}." for kind, reason in comparison.refused.items())
  table = Table("Slopes", "", ("parametrization", "axis", "sizes", "steepest slope"), rows)
  plots = [_plot(each) for each in comparison.measured]
  page.write_page(path, Page("Coordinate check", "Does a learning rate carry over?", summary, [table], plots))


def _plot(measured: Measured) -> Plot:
  figure = figures.blank(f"model.{measured.axis}", "change (root mean square)", log_y=True, height=320)
  changes = measured.check.change
  for index, (layer, change) in enumerate(changes.items()):
    figure.add_scatter(
      x=list(measured.sizes),
      y=change[:, -1].tolist(),
      mode="lines+markers",
      name=layer,
      line={"color": figures.color(index, len(changes))},
    )
  text = f"Steepest slope {measured.check.steepest:.2f}."
  return Plot(f"{measured.parametrization}, by {measured.axis}", text, figure)
