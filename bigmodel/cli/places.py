"""The scales that `--at` asks about: numbers on the command line, or the rows of a table."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.laws.source import Source


@dataclasses.dataclass(frozen=True)
class Place:
  """The values of the wanted scales, or of C alone if one number is given for N and D.

  The group comes from a row of a table; None means all groups.
  """

  scales: dict[str, float]
  group: str | None = None

  def asked(self) -> str:
    """The option, for messages."""
    return f"--at={','.join(f'{value:g}' for value in self.scales.values())}"


def read(texts: Sequence[str], source: "Source", wanted: Sequence[str]) -> list[Place]:
  """The places of all --at options, with values for the `wanted` scales."""
  from bigmodel.readers import packed, tables

  places = []
  for text in texts:
    is_file = packed.suffix(text) in tables.SUFFIXES or Path(text).is_file()
    places += _of_table(text, source, wanted) if is_file else [_of_text(text, wanted)]
  return places


def _of_table(path: str, source: "Source", wanted: Sequence[str]) -> list[Place]:
  from bigmodel.laws import table

  rows = table.read(dataclasses.replace(source, path=path)).frame
  values = table.columns(rows, path, wanted, source.columns)
  groups = rows[source.group].to_list() if source.group in rows.columns else [None] * len(rows)
  return [
    Place({name: float(values[name][i]) for name in wanted}, None if group is None else str(group))
    for i, group in enumerate(groups)
  ]


def _of_text(text: str, wanted: Sequence[str]) -> Place:
  """A place like 1e9,2e10 or 1e9,2e10,U=5e9: values in the order of `wanted`, or with their names."""
  parts, values = text.split(","), dict[str, float]()
  try:
    for position, part in enumerate(parts):
      name, equals, number = part.rpartition("=")
      values[name.strip() if equals else wanted[min(position, len(wanted) - 1)]] = float(number)
  except ValueError as error:
    raise UserError(f"--at: {text!r} is neither numbers nor a CSV") from error
  is_budget = len(wanted) == 2 and len(parts) == 1 and "=" not in text
  complete = is_budget or (len(parts) == len(wanted) and set(values) == set(wanted))
  if not complete or not all(0 < value < math.inf for value in values.values()):
    raise UserError(f"--at: {text!r} is not {_needed(wanted)}")
  return Place({"C": values[wanted[0]]} if is_budget else {name: values[name] for name in wanted})


def _needed(wanted: Sequence[str]) -> str:
  if len(wanted) == 1:
    return "a positive number"
  if len(wanted) == 2:
    return f"{','.join(wanted)} or a budget C" if set(wanted) == {"N", "D"} else ",".join(wanted)
  return f"{','.join(wanted)} in this order, or with names such as {wanted[-1]}=5e9"
