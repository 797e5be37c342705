"""Options that name the columns of a CSV that laws need."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.cli import options
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.measured import MeasuredRuns
  from bigmodel.laws.source import Source

COMPUTE = {
  "N": "column of the parameters N, or COLUMN*1e6 if they are in millions, and so on for all columns (for fit, several"
  " separated by commas; laws use the first, others are compared)",
  "D": "column of the tokens D",
  "C": "column of the FLOPs C; of N, D and C, the one without a column follows from C = 6 N D",
}


def add(parser: argparse.ArgumentParser) -> None:
  """Adds options for the columns of runs with parameters, tokens and FLOPs."""
  for name, text in COMPUTE.items():
    parser.add_argument(f"--{name.lower()}", metavar="COLUMN", help=text)
  parser.add_argument(
    "--loss", default="loss", metavar="COLUMN", help="column of the loss (default: loss), or 1-COLUMN of an accuracy"
  )
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
  add_group(parser)


def add_group(parser: argparse.ArgumentParser) -> None:
  """Adds the option for runs that are fitted separately."""
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


def add_force(parser: argparse.ArgumentParser) -> None:
  """Adds the option for answers far beyond the points."""
  parser.add_argument(
    "--force",
    action="store_true",
    help="answer although the units of columns are in doubt, or the scale lies over 1e8 times beyond the points",
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


def runs(arguments: argparse.Namespace, path: str) -> "MeasuredRuns":
  """The runs of a CSV, or the fitted runs of a study's folder."""
  from bigmodel.laws import measured

  return runs_of_study(path) if Path(path).is_dir() else measured.runs_of_csv(source(arguments, path))


def groups(arguments: argparse.Namespace, path: str) -> "tuple[dict[str, MeasuredRuns], list[str]]":
  """The runs of each group of a CSV, and notes; those of a CSV without --group, or of a study, are the group ""."""
  from bigmodel.laws import measured

  if Path(path).is_dir() or not arguments.group:
    return {"": runs(arguments, path)}, []
  return measured.groups_of_csv(source(arguments, path))


def runs_of_study(path: str) -> "MeasuredRuns":
  """The finished runs of a study's folder that are there to be fitted; raises `UserError` if there are none."""
  from bigmodel.laws import measured
  from bigmodel.study import folder

  require_study(path)
  convention = folder.read_about(path).convention
  records = folder.of_role(path, "fit")
  if not any(record.finished for record in records):
    raise UserError(f"{path}: none of the study's {len(records)} runs for the fit of laws has finished")
  return measured.runs_of_records(records, convention)


def require_study(path: str) -> None:
  """Raises `UserError` if the folder is not that of a study."""
  if not (Path(path) / "study.json").exists():
    held = "holds a run, not a study" if (Path(path) / "config.json").exists() else "holds no study (no study.json)"
    raise UserError(f"{path} {held}")


def refuse(arguments: argparse.Namespace) -> None:
  """Raises `UserError` for options about the columns of a CSV, which the folder of a study does not have."""
  defaults = {"n": None, "d": None, "c": None, "x": None, "loss": "loss", "stderr": None, "group": "", "column": []}
  defaults |= {"drop_largest": 0, "skip_bad_rows": False}
  given = [name for name, default in defaults.items() if getattr(arguments, name, default) != default]
  if given:
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
    raise UserError(f"{flags}: for the columns of a CSV; the points are the folder of a study")


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
