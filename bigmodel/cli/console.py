"""Prints tables and lines for people; rich interprets no markup in their text.

Progress bars are in `bigmodel/train/display.py`, because the training loop draws them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich is slow to import, and --help does not need it
  from rich.console import Console

# Types that json.dumps accepts.
Json = Mapping[str, "Json"] | Sequence["Json"] | str | int | float | bool | None
# A JSON object, as functions of other rooms return it.
Facts = Mapping[str, Any]


class Output:
  """Standard output for people; prints nothing when quiet, as with --json."""

  def __init__(self, quiet: bool = False):
    self.quiet, self.failed = quiet, False

  def fail(self) -> None:
    """Makes the command exit with 1 although it completed, for example because a run diverged."""
    self.failed = True

  def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table whose first column is aligned to the left and all others to the right."""
    if self.quiet:
      return
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
      table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
      table.add_row(*map(show, row))
    self._console().print(table)

  def say(self, text: str) -> None:
    """Prints one line, which only a terminal wraps."""
    if not self.quiet:
      self._console().print(text, highlight=False, soft_wrap=True)

  def notes(self, notes: Iterable[str]) -> None:
    """Prints each distinct note on a line."""
    for note in dict.fromkeys(notes):
      self.say(note)

  def write(self, text: str) -> None:
    """Prints text unchanged, such as the content of a file."""
    if not self.quiet:
      print(text, end="")

  def clear(self) -> None:
    if not self.quiet:
      self._console().clear()

  def _console(self) -> "Console":
    from bigmodel.train import display

    return display.plain_console()


def show(value: object) -> str:
  """A value as a cell of a table: '-' for None, four digits of a float, 'a to b' for an interval."""
  if value is None:
    return "-"
  if isinstance(value, bool):
    return "yes" if value else "no"
  if isinstance(value, int):
    return f"{value:,}"
  if isinstance(value, float):
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
  if isinstance(value, list | tuple) and len(value) == 2 and all(x is None or isinstance(x, float) for x in value):
    return f"{show(value[0])} to {show(value[1])}"
  return str(value)
