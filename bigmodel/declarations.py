"""How config fields are declared: once each, with default, meaning and allowed values.

A room declares the fields of its group as a frozen dataclass:

    @dataclasses.dataclass(frozen=True)
    class Optim:
      lr: float = field(3e-3, "peak learning rate", POSITIVE, TRACED)

Defaults, checks, help, run ids and packs (which runs can train in one program) are derived from these declarations.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from bigmodel.config import Config, nearest
from bigmodel.errors import UserError

# The plain values that a config holds.
Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]


class Use(enum.Enum):
  """What a field decides about a run."""

  COMPILED = "compiled into the program: runs that differ in it train in different programs"
  TRACED = "an input of the program: runs that differ in it can train side by side in one program"
  PROVENANCE = "how the run is carried out, and not what it computes: left out of the run's id"


COMPILED, TRACED, PROVENANCE = Use.COMPILED, Use.TRACED, Use.PROVENANCE


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `low` to `high`; a bound that is open is excluded."""

  low: float = -math.inf
  high: float = math.inf
  low_open: bool = False
  high_open: bool = False

  def problem(self, value: Any) -> str:
    """What is wrong with the value, or '' where it is allowed."""
    above = value > self.low if self.low_open else value >= self.low
    below = value < self.high if self.high_open else value <= self.high
    if above and below:
      return ""
    if self.high < math.inf:
      left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
      return f"{value} is not in {left}{self.low:g}, {self.high:g}{right}"
    if self.low == 0:
      return f"{value} is not positive" if self.low_open else f"{value} is negative"
    return f"{value}; at least {self.low:g}"


POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)


@dataclasses.dataclass(frozen=True)
class OneOf:
  """One of these names."""

  choices: Collection[str]

  def problem(self, value: Any) -> str:
    known = sorted(self.choices)
    return "" if value in known else f"no {value!r}{nearest(value, known)}; known: {', '.join(known)}"


@dataclasses.dataclass(frozen=True)
class Field:
  """What is declared about one field of a config."""

  default: Value
  meaning: str
  allowed: Range | OneOf | None = None  # None: any value of the default's type
  use: Use = COMPILED
  # The part of the value that is compiled into the program, where only a part is.
  compiled_part: Callable[[Any], Any] | None = None
  added_later: bool = False  # enters run ids only where it is not at its default, so that older runs keep theirs

  def compiled(self, value: Any) -> Any:
    """What must be equal in runs that train side by side in one program."""
    if self.compiled_part is not None:
      return self.compiled_part(value)
    return None if self.use is TRACED else value


def field(
  default: Value,
  meaning: str,
  allowed: Range | OneOf | None = None,
  use: Use = COMPILED,
  compiled_part: Callable[[Any], Any] | None = None,
  added_later: bool = False,
) -> Any:
  """A dataclass field that is a field of the config, too; see `Field`."""
  declared = Field(default, meaning, allowed, use, compiled_part, added_later)
  return dataclasses.field(default=default, metadata={"config": declared})


def declared_in(group: type) -> dict[str, Field]:
  """The config fields that a dataclass declares, by name. Its other fields are not part of the config."""
  return {one.name: one.metadata["config"] for one in dataclasses.fields(group) if "config" in one.metadata}


def defaults(group: type) -> dict[str, Value]:
  """The fields of a group of the config with their defaults."""
  return {name: one.default for name, one in declared_in(group).items()}


def check(prefix: str, group: type, values: Mapping[str, Any]) -> None:
  """Refuses the first value that its field does not allow; `prefix` is the group's name, such as 'optim'."""
  check_fields(prefix, declared_in(group), values)


def check_fields(prefix: str, fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
  """As `check`, for fields by name."""
  for name, one in fields.items():
    if one.allowed is not None and (problem := one.allowed.problem(values[name])):
      raise UserError(f"config.{prefix}.{name}: {problem}")


def read(group: type, values: Config, **others: Any) -> Any:
  """The dataclass with the values of a group of a config; lists become tuples. `others` are its remaining fields."""
  own = {name: values[name] for name in declared_in(group)}
  return group(**{name: tuple(x) if isinstance(x, list) else x for name, x in own.items()}, **others)
