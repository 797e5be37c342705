"""The page of a coordinate check: how much a step moves each layer's output, by size."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigmodel.report import figures, page


def write(
  path: str, checks: Sequence[dict[str, Any]], rows: Sequence[Sequence[Any]], refused: Mapping[str, str]
) -> None:
  """`refused` says of each parametrization that was not measured why."""
  plots = []
  for one in checks:
    figure = figures.blank(f"model.{one['axis']}", "change (root of the mean square)", log_y=True, height=320)
    for index, (kind, change) in enumerate(one["change"].items()):
      figure.add_scatter(
        x=one["sizes"], y=[steps[-1] for steps in change], mode="lines+markers", name=kind,
        line={"color": figures.color(index, len(one["change"]))},
      )  # fmt: skip
    plots.append((f"{one['parametrization']}, by {one['axis']}", f"Steepest slope {one['steepest']:.2f}.", figure))
  columns = ("parametrization", "axis", "sizes", "steepest slope")
  what = "After five steps on one batch. Where lines are flat, one learning rate serves all sizes."
  what += "".join(f" Not measured: {kind}: {reason}." for kind, reason in refused.items())
  page.tables(
    path, "Coordinate check", "Does a learning rate carry over?", what, [("Slopes", "", columns, rows)], plots
  )
