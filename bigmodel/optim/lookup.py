"""Optimizers by the value of `optim.name`, and the fields of a config with that value."""

from bigmodel import user_files
from bigmodel.declarations import Field, Value
from bigmodel.optim import optimizers, user_optimizers
from bigmodel.optim.definitions import Optimizer
from bigmodel.optim.fields import FIELDS


def by_name(name: str) -> Optimizer:
  """The built-in optimizer of this name, or a user's from FILE.py:NAME."""
  return user_optimizers.load(name) if user_files.is_reference(name) else optimizers.BUILT_IN[name]


def declared(name: str = "adamw") -> dict[str, Field]:
  """The fields of `config.optim` with this optimizer: those of every config, and those that a user's declares."""
  return FIELDS | dict(by_name(name).fields) if user_files.is_reference(name) else FIELDS


def defaults(name: str = "adamw") -> dict[str, Value]:
  """The fields of `config.optim` with their defaults."""
  return {field: one.default for field, one in declared(name).items()}
