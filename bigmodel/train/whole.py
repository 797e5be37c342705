"""The config of a run as a whole: the fields of all rooms, and which of them make the run what it is."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from bigmodel import config as configs
from bigmodel import data, models, optim, tasks, user_files
from bigmodel.config import Config, unflatten
from bigmodel.declarations import PROVENANCE, TRACED, Field, declared_in
from bigmodel.parallel.fields import Parallel
from bigmodel.train.fields import Eval, Train

# Fields whose defaults are other ones where a row is one example.
OF_EXAMPLES = {"eval.tokens": 10_000, "eval.batch_size": 256, "train.batch_size": 64}


# Fields that may name a user's own as FILE.py:NAME.
EXTENSIBLE = ("model.family", "task.name", "optim.name", "data.name")


def declared(family: str, task: str, optimizer: str = "adamw") -> dict[str, Field]:
  """Every field of a config by its dotted name, for a family of models, a task and an optimizer."""
  return _declared(
    user_files.complete(family, "config.model.family"),
    user_files.complete(task, "config.task.name"),
    user_files.complete(optimizer, "config.optim.name"),
  )


@functools.cache
def _declared(family: str, task: str, optimizer: str) -> dict[str, Field]:
  groups = {
    "model": models.declared(family),
    "task": tasks.declared(task),
    "data": data.declared(tasks.task(task).DATA),
    "optim": optim.declared(optimizer),
    "parallel": declared_in(Parallel),
    "train": declared_in(Train),
    "eval": declared_in(Eval),
  }
  found = {"seed": Field(0, "of initial values, dropout and what a task draws", use=TRACED)}
  return found | {f"{group}.{name}": one for group, own in groups.items() for name, one in own.items()}


def default_config(family: str = "decoder", task: str = "") -> Config:
  """Every field of every room, with its default, for a family of models and a task (the family's first)."""
  task = task or models.family(family).TASKS[0]
  config = unflatten({name: one.default for name, one in declared(family, task).items()})
  if config.data.kind == "examples":
    config.update_from_flattened_dict(OF_EXAMPLES)
  return config


def complete_names(config: Config) -> None:
  """Completes, in place, the names that refer to a user's file with its absolute path and the hash of its content."""
  add_fields(config)
  for name in EXTENSIBLE:
    group, field = name.split(".")
    config[group][field] = user_files.complete(config[group][field], f"config.{name}")


def add_fields(config: Config) -> None:
  """Adds, in place and with their defaults, the fields that the config lacks and a user's optimizer declares."""
  if not user_files.is_reference(config.optim.name):
    return
  for name, default in optim.defaults(config.optim.name).items():
    if name not in config.optim:
      config.optim[name] = default
    elif isinstance(default, float) and type(config.optim[name]) is int:
      value = float(config.optim[name])  # as ConfigDict does for the fields that it has
      del config.optim[name]
      config.optim[name] = value


def overridden(config: Config, overrides: Iterable[str]) -> Config:
  """The config with `group.field=value` overrides applied, that of `optim.name` first: it may bring fields."""
  add_fields(config)
  items = list(overrides)
  names = [item for item in items if item.startswith("optim.name=")]
  for item in names:
    _set_optimizer(config, item.partition("=")[2])
  configs.apply(config, (item for item in items if item not in names))
  return config


def with_overrides(config: Config, changes: Mapping[str, Any]) -> Config:
  """A copy of `config` with `{'group.field': value}` applied, `optim.name` first: it may bring fields."""
  copy = config.copy_and_resolve_references()
  add_fields(copy)
  if "optim.name" in changes:
    _set_optimizer(copy, changes["optim.name"])
  for name, value in changes.items():
    configs.override(copy, name, value)
  return copy


def _set_optimizer(config: Config, name: str) -> None:
  """Sets `optim.name` in place, with the fields of the new optimizer in place of those of the old one."""
  old = optim.declared(config.optim.name)
  configs.override(config, "optim.name", name)
  for field in old.keys() - optim.declared(name).keys():
    del config.optim[field]
  add_fields(config)


def declared_of(flat: Mapping[str, Any]) -> dict[str, Field]:
  """Every field of the config whose flat form this is."""
  return declared(flat["model.family"], flat["task.name"], flat["optim.name"])


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a flat config that make a run what it is: its id is their hash.

  Left out are those that say how a run is carried out, and later additions that are at their defaults.
  """
  known = declared_of(flat)
  own = {name: value for name, value in flat.items() if not name.startswith("parallel.")}
  own |= {name: user_files.without_path(own[name]) for name in EXTENSIBLE if name in own}
  return {name: value for name, value in own.items() if name not in known or _identifies(known[name], value)}


def carried_out(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of a flat config that say how a run is carried out."""
  known = declared_of(flat)
  return {name: value for name, value in flat.items() if name in known and known[name].use is PROVENANCE}


def _identifies(field: Field, value: Any) -> bool:
  plain = tuple(value) if isinstance(value, list) else value  # as JSON gives it
  return field.use is not PROVENANCE and not (field.added_later and plain == field.default)
