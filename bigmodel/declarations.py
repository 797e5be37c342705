"""Declarations of config fields: each is declared once, with its default, meaning and allowed values.

A room declares the fields of its group as a frozen dataclass:

    @dataclasses.dataclass(frozen=True)
    class Optim:
      lr: float = field(3e-3, "peak learning rate", POSITIVE, TRACED)

Defaults, checks, help texts, run ids and packs (runs that train in one program) are derived from these declarations.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

from bigmodel.config import Config, nearest
from bigmodel.errors import UserError

# The values of config fields.
Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

V = TypeVar("V", bound=Value)
Group = TypeVar("Group")


class Use(enum.Enum):
  """What a field decides about a run."""

  COMPILED = "compiled into the program: runs that differ in it train in different programs"
  TRACED = "an input of the program: runs that differ in it can train side by side in one program"
  PROVENANCE = "how the run is carried out, and not what it computes: left out of the run's id"


COMPILED, TRACED, PROVENANCE = Use.COMPILED, Use.TRACED, Use.PROVENANCE


# Whole numbers that programs compute with have 32 bits. Tokens are only counted, in Python, and stay exact in JSON.
LARGEST_WHOLE, LARGEST_COUNT = 2**31 - 1, 2**53
LARGEST_FLOAT = 3.4028234e38  # of 32 bits


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers from `low` to `high`; a bound that is open is excluded."""

  low: float = -math.inf
  high: float = math.inf
  low_open: bool = False
  high_open: bool = False
  instead: str = ""  # what to do instead of a number outside, for the message

  def problem(self, value: float) -> str:
    """What is wrong with the value, or '' where it is allowed."""
    above = value > self.low if self.low_open else value >= self.low
    below = value < self.high if self.high_open else value <= self.high
    if above and below:
      return ""
    if self.high < LARGEST_COUNT:
      left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
      return f"{value} is not in {left}{self.low:g}, {self.high:g}{right}"
    if self.low == 0:
      return f"{value} is not positive" if self.low_open else f"{value} is negative"
    return f"{value}; at least {self.low:g}"


COUNT = Range(0, LARGEST_COUNT)  # of tokens or examples
DEPTH = Range(1, 10_000)  # of layers, each of which is traced
POSITIVE = Range(0, low_open=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
BELOW_ONE = Range(0, 1, high_open=True)


@dataclasses.dataclass(frozen=True)
class OneOf:
  """The allowed names."""

  choices: Collection[str]

  def problem(self, value: str) -> str:
    """What is wrong with the value, or '' where it is allowed."""
    allowed = sorted(self.choices)
    return "" if value in allowed else f"no {value!r}{nearest(value, allowed)}; known: {', '.join(allowed)}"


@dataclasses.dataclass(frozen=True)
class Field:
  """The declaration of one config field."""

  default: Value
  meaning: str
  allowed: Range | OneOf | None = None  # None: any value of the default's type
  use: Use = COMPILED
  # Extracts the part of the value that is compiled into the program, where only a part is.
  compiled_part: Callable[[Any], object] | None = None
  added_later: bool = False  # enters a run's id only where it differs from its default, so that old ids stay the same

  def problem(self, value: Value) -> str:
    """What is wrong with a value of the field's type, or '' where it is allowed."""
    if problem := self.unusable(value):
      return problem
    problem = self.allowed.problem(cast(Any, value)) if self.allowed is not None else ""
    return f"{problem}{self._instead()}" if problem else ""

  def unusable(self, value: Value) -> str:
    """Why no program can compute with a number of the value: it is not finite, or too large; '' for other values."""
    most = LARGEST_COUNT if isinstance(self.allowed, Range) and self.allowed.high == LARGEST_COUNT else LARGEST_WHOLE
    for part in value if isinstance(value, tuple | list) else (value,):
      if problem := _not_usable(part, most):
        return f"{problem}{self._instead()}"
    return ""

  def _instead(self) -> str:
    return f"; {self.allowed.instead}" if isinstance(self.allowed, Range) and self.allowed.instead else ""

  def compiled(self, value: object) -> Any:
    """The part of the value that runs must share to train side by side in one program."""
    if self.compiled_part is not None:
      return self.compiled_part(value)
    return None if self.use is TRACED else value


def _not_usable(value: Scalar, most: int) -> str:
  if isinstance(value, float):
    if not math.isfinite(value):
      return f"{value} is not a finite number"
    return f"{value:g} is too large; at most {LARGEST_FLOAT:.2g}" if abs(value) > LARGEST_FLOAT else ""
  if not isinstance(value, int) or abs(value) <= most:
    return ""
  shown = value if value.bit_length() < 128 else "a number with more than 38 digits"
  return f"{shown} is too {'large' if value > 0 else 'small'}; at most {most:,}, positive or negative"


def field(
  default: V,
  meaning: str,
  allowed: Range | OneOf | None = None,
  use: Use = COMPILED,
  compiled_part: Callable[[V], object] | None = None,
  added_later: bool = False,
) -> V:
  """A dataclass field that is also a field of the config; see `Field` for the parameters."""
  declared = Field(default, meaning, allowed, use, compiled_part, added_later)
  return dataclasses.field(default=default, metadata={"config": declared})


def declared_in(group: type) -> dict[str, Field]:
  """The config fields that a dataclass declares, by name. Its other fields are not part of the config."""
  return {field.name: field.metadata["config"] for field in dataclasses.fields(group) if "config" in field.metadata}


def defaults(group: type) -> dict[str, Value]:
  """The default of each field of a group of the config, by name."""
  return {name: declared.default for name, declared in declared_in(group).items()}


def check(prefix: str, group: type, values: Config) -> None:
  """Refuses the first value that its field does not allow; `prefix` is the group's name, such as 'optim'."""
  check_fields(prefix, declared_in(group), values)


def check_fields(prefix: str, fields: Mapping[str, Field], values: Config) -> None:
  """Refuses the first value that its field does not allow, as `check` does, for fields by name."""
  for name, declared in fields.items():
    if problem := declared.problem(values[name]):
      raise UserError(f"config.{prefix}.{name}: {problem}")


def read(group: type[Group], values: Config, **others: object) -> Group:
  """An instance of the dataclass `group` with the values of that group of a config; lists become tuples.

  `others` are the values of those fields of the dataclass that are not config fields.
  """
  declared = {name: values[name] for name in declared_in(group)}
  return group(**{name: tuple(x) if isinstance(x, list) else x for name, x in declared.items()}, **others)
