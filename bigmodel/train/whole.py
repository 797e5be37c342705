"""The config of a run as a whole: the fields of all rooms, and which of them make the run what it is."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from bigmodel import config as configs
from bigmodel import data, models, optim, tasks, user_files
from bigmodel.config import Config, flatten, nearest, unflatten
from bigmodel.declarations import PROVENANCE, TRACED, Field, declared_in
from bigmodel.errors import UserError
from bigmodel.parallel.fields import Parallel
from bigmodel.train.fields import Eval, Train

# Fields whose defaults are other ones where a row is one example.
OF_EXAMPLES = {"eval.tokens": 10_000, "eval.batch_size": 256, "train.batch_size": 64}


# Fields that may name a user's own as FILE.py:NAME.
EXTENSIBLE = ("model.family", "task.name", "optim.name", "data.name")
NAMES = ("model.family", "task.name", "optim.name")  # with fields of their own


def declared(family: str, task: str, optimizer: str = "adamw") -> dict[str, Field]:
  """Every field of a config by its dotted name, for a family of models, a task and an optimizer."""
  return _declared(
    user_files.complete(family, "config.model.family"),
    user_files.complete(task, "config.task.name"),
    user_files.complete(optimizer, "config.optim.name"),
  )


@functools.cache
def _declared(family: str, task: str, optimizer: str) -> dict[str, Field]:
  kind = tasks.kind_of(task, models.family(family).TASKS)
  groups = {
    "model": models.declared(family),
    "task": tasks.declared(task, kind),
    "data": data.declared(kind),
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


def overridden(config: Config, overrides: Iterable[str]) -> Config:
  """The config with `group.field=value` overrides applied.

  Those of `model.family`, `task.name` and `optim.name` come first: they bring fields of their own.
  """
  items = [item.partition("=") for item in overrides]
  names: dict[str, str] = {name: value for name, equals, value in items if equals and name in NAMES}
  config = _with_names(config, names)
  configs.apply(config, ("".join(item) for item in items if item[0] not in names))
  return config


def with_overrides(config: Config, changes: Mapping[str, Any]) -> Config:
  """A copy of `config` with `{'group.field': value}` applied, names that bring fields first."""
  names = {name: value for name, value in changes.items() if name in NAMES}
  copy = _with_names(config.copy_and_resolve_references(), names)
  for name, value in changes.items():
    if name not in names:
      configs.override(copy, name, value)
  return copy


def _with_names(config: Config, names: Mapping[str, str]) -> Config:
  """The config with these names set, and with the fields that they bring."""
  family, task = names.get("model.family", ""), names.get("task.name", "")
  if family or task:
    config = renamed(config, family or config.model.family, task)
  add_fields(config)
  if "optim.name" in names:
    _set_optimizer(config, names["optim.name"])
  return config


def renamed(config: Config, family: str, task: str = "") -> Config:
  """The config with the fields of another family of models or task.

  Fields that were not at their defaults keep their values where the new family and task have a field of the same name
  and type. Without a `task` it stays the same if the family can be trained for it, otherwise it is the family's first.
  """
  tasks_of_family = models.family(family).TASKS
  if not task:
    task = config.task.name
    kinds = (tasks.kind_of(tasks_of_family[0], ()), config.data.kind)
    stays = kinds[0] == kinds[1] if user_files.is_reference(task) else task in tasks_of_family
    task = task if stays else tasks_of_family[0]
  old, new = (flatten(default_config(*names)) for names in ((config.model.family, config.task.name), (family, task)))
  for name, value in flatten(config).items():
    if name.startswith("optim."):  # a user's optimizer may have brought fields
      new[name] = value
      continue
    if name not in old:
      raise UserError(f"config.{name}: no such field{nearest(name, old)}")
    changed = name not in ("model.family", "task.name") and value != old[name]
    if changed and name in new and type(value) is type(new[name]):
      new[name] = value
  return unflatten(new)


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
