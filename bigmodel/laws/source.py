"""A table of runs, and which of its columns hold what laws need."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Source:
  """A CSV with one row per run.

  `columns` maps what a law calls a quantity (N, D, C, x, ...) to the column that holds it. `stderr` names the column
  with standard errors of the losses, `group` the column that separates curves or fits; empty means none.
  `drop_largest` leaves out the points with that many largest losses, and `skip_bad_rows` the rows without a positive
  number in one of the columns. Shares r1, r2, ... of a mixture may be 0; losses may be 0 or negative if `signed`.
  """

  path: str
  columns: Mapping[str, str]
  loss: str = "loss"
  stderr: str = ""
  group: str = ""
  drop_largest: int = 0
  skip_bad_rows: bool = False
  signed: bool = False

  def with_column(self, name: str, column: str) -> "Source":
    """The same CSV with another column for one quantity."""
    return dataclasses.replace(self, columns={**self.columns, name: column})
