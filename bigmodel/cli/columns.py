"""Options that say which columns of a CSV hold what laws need."""

import argparse
from typing import TYPE_CHECKING

from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.source import Source

SCALES = {
  "N": "column of the parameters N (for fit, several separated by commas: the others are for comparison)",
  "D": "column of the tokens D",
  "C": "column of the FLOPs C; of N, D and C, the one without a column follows from C = 6 N D",
  "x": "column of the only scale, for laws of one scale",
}


def add(parser: argparse.ArgumentParser) -> None:
  for name, text in SCALES.items():
    parser.add_argument(f"--{name.lower()}", metavar="COLUMN", help=text)
  parser.add_argument("--loss", default="loss", metavar="COLUMN", help="column of the loss (default: loss)")
  parser.add_argument("--stderr", metavar="COLUMN", help="column of the losses' standard errors, which weigh the runs")
  parser.add_argument("--group", default="", metavar="COLUMN", help="fit each value of this column separately")
  parser.add_argument(
    "--column",
    action="append",
    default=[],
    metavar="NAME=COLUMN",
    help="column of another quantity that a law needs (repeatable)",
  )
  parser.add_argument(
    "--drop-largest", type=int, default=0, metavar="K", help="leave out the runs with the K largest losses"
  )


def source(arguments: argparse.Namespace, path: str) -> "Source":
  """The CSV at `path` with the columns that were named."""
  from bigmodel.laws.source import Source

  return Source(
    path,
    named(arguments),
    arguments.loss,
    arguments.stderr or "",
    arguments.group,
    arguments.drop_largest,
  )


def named(arguments: argparse.Namespace) -> dict[str, str]:
  """The columns that were named, by what laws call them."""
  given = {name: getattr(arguments, name.lower()) for name in SCALES}
  columns: dict[str, str] = {name: column for name, column in given.items() if column}
  for text in arguments.column:
    name, equals, column = text.partition("=")
    if not equals:
      raise UserError(f"--column: {text!r} is not NAME=COLUMN")
    columns[name] = column
  return columns
