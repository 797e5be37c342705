"""Options that name the columns of a CSV that laws need."""

import argparse
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.source import Source

COMPUTE = {
  "N": "column of the parameters N (for fit, several separated by commas; laws use the first, others are compared)",
  "D": "column of the tokens D",
  "C": "column of the FLOPs C; of N, D and C, the one without a column follows from C = 6 N D",
}


def add(parser: argparse.ArgumentParser) -> None:
  """Adds options for the columns of runs with parameters, tokens and FLOPs."""
  for name, text in COMPUTE.items():
    parser.add_argument(f"--{name.lower()}", metavar="COLUMN", help=text)
  parser.add_argument("--loss", default="loss", metavar="COLUMN", help="column of the loss (default: loss)")
  parser.add_argument(
    "--stderr", metavar="COLUMN", help="column of the losses' standard errors, by which runs are weighted"
  )
  parser.add_argument(
    "--drop-largest",
    type=options.whole_number(0),
    default=0,
    metavar="K",
    help="leave out the runs with the K largest losses",
  )
  parser.add_argument(
    "--skip-bad-rows", action="store_true", help="leave out rows without positive numbers, and count them"
  )


def add_curves(parser: argparse.ArgumentParser) -> None:
  """Adds options for the columns of curves with a single scale."""
  parser.add_argument("--x", metavar="COLUMN", help="column of the only scale, for laws of one scale")
  parser.add_argument("--group", default="", metavar="COLUMN", help="fit each value of this column separately")


def add_others(parser: argparse.ArgumentParser) -> None:
  """Adds the option for columns of quantities that only some laws need."""
  parser.add_argument(
    "--column",
    action="append",
    default=[],
    metavar="NAME=COLUMN",
    help="column of another quantity that a law needs (repeatable)",
  )


def source(arguments: argparse.Namespace, path: str) -> "Source":
  """The CSV at `path` with the columns that the options name."""
  from bigmodel.laws.source import Source

  group = getattr(arguments, "group", "")  # like --x and --column, not an option of every verb
  return Source(
    path,
    _named(arguments),
    arguments.loss,
    arguments.stderr or "",
    group,
    arguments.drop_largest,
    arguments.skip_bad_rows,
  )


def _named(arguments: argparse.Namespace) -> dict[str, str]:
  """The columns that the options name, by the names that laws use."""
  given = {name: getattr(arguments, name.lower(), None) for name in (*COMPUTE, "x")}
  columns: dict[str, str] = {name: column for name, column in given.items() if column}
  for text in getattr(arguments, "column", ()):
    name, equals, column = text.partition("=")
    if not equals:
      raise UserError(f"--column: {text!r} is not NAME=COLUMN")
    columns[name] = column
  return columns
