"""The config of a run: the fields of all rooms, its identity, and how it is read from a run's folder."""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from etils import epath
from ml_collections import ConfigDict

from bigmodel import config as config_room
from bigmodel import data, models, optim, tasks, user_files
from bigmodel.config import Config, flatten, nearest, require, unflatten
from bigmodel.declarations import NOT_NEGATIVE, PROVENANCE, TRACED, Field, Value, declared_in, defaults
from bigmodel.errors import UserError
from bigmodel.files import absolute, read_json_object
from bigmodel.parallel.fields import Parallel
from bigmodel.train.fields import Eval, Train

# Defaults that differ where a row is one example.
EXAMPLE_DEFAULTS = {"eval.tokens": 10_000, "eval.batch_size": 256, "train.batch_size": 64}

# Fields that may name a definition in a user's file as FILE.py:NAME.
EXTENSIBLE = ("model.family", "task.name", "optim.name", "data.name")
DECIDING = (*EXTENSIBLE, "data.kind")  # texts that decide which other fields there are
NAMES = ("model.family", "task.name", "optim.name")  # each adds fields to the config
# Fields whose texts may set such names, as words NAME=VALUE.
TEXTS = {"train.stages": ("task.name", "optim.name"), "data.mixture": ("name",)}

GROUPS = ("model", "task", "data", "optim", "parallel", "train", "eval")
FIELD = re.compile(rf"seed|({'|'.join(GROUPS)})\.\w+")  # the names of fields


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
  seed = "seed of initial values, dropout and the random numbers of the task"
  fields = {"seed": Field(0, seed, NOT_NEGATIVE, TRACED)}
  for group, in_group in groups.items():
    fields |= {f"{group}.{name}": field for name, field in in_group.items()}
  return fields


def default_config(family: str = "decoder", task: str = "") -> Config:
  """Every field of every room at its default, for a family of models and a task (by default the family's first)."""
  task = task or models.family(family).TASKS[0]
  config = unflatten({name: field.default for name, field in declared(family, task).items()})
  if config.data.kind == "examples":
    config.update_from_flattened_dict(EXAMPLE_DEFAULTS)
  return config


def overridden(config: Config, overrides: Iterable[str]) -> Config:
  """The config with `group.field=value` overrides applied.

  Those of `model.family`, `task.name` and `optim.name` are applied first, because they add fields. The config may be
  changed in place, so that fields which refer to one another keep doing so.
  """
  items = [item.partition("=") for item in overrides]
  names: dict[str, str] = {name: value for name, equals, value in items if equals and name in NAMES}
  config = _with_names(config, names)
  config_room.apply(config, ("".join(item) for item in items if item[0] not in names))
  return config


def with_overrides(config: Config, changes: Mapping[str, Value]) -> Config:
  """A copy of `config` with `{'group.field': value}` applied, names that add fields first."""
  names = {name: str(value) for name, value in changes.items() if name in NAMES}
  copy = _with_names(config.copy_and_resolve_references(), names)
  for name, value in changes.items():
    if name not in names:
      config_room.override(copy, name, value)
  return copy


def _with_names(config: Config, names: Mapping[str, str]) -> Config:
  """The config with these names set, and with the fields that they add."""
  family, task = names.get("model.family", ""), names.get("task.name", "")
  if family or task:
    config = renamed(config, family or config.model.family, task)
  add_fields(config)
  if "optim.name" in names:
    set_optimizer(config, names["optim.name"])
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
    if name.startswith("optim."):  # a user's optimizer may have added fields
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
  for name, words in TEXTS.items():
    group, field = name.split(".")
    if texts := config[group].get(field):
      complete = functools.partial(user_files.complete, where=f"config.{name}")
      completed = [_in_words(text, words, complete) for text in texts]
      config[group][field] = tuple(completed)


def _in_words(text: str, names: Collection[str], change: Callable[[str], Value]) -> str:
  """The text with `change` applied to the value of each word NAME=FILE.py:NAME."""
  for word in text.split():
    name, _, value = word.partition("=")
    if name in names and user_files.is_reference(value):
      text = text.replace(word, f"{name}={change(value)}")
  return text


def add_fields(config: Config) -> None:
  """Adds, in place, the fields that a user's optimizer declares and the config lacks, at their defaults."""
  if not user_files.is_reference(config.optim.name):
    return
  for name, default in optim.defaults(config.optim.name).items():
    if name not in config.optim:
      config.optim[name] = default
    elif isinstance(default, float) and type(config.optim[name]) is int:
      value = float(config.optim[name])  # as ConfigDict does for existing fields
      del config.optim[name]
      config.optim[name] = value


def set_optimizer(config: Config, name: str) -> None:
  """Sets `optim.name` in place, with the fields of the new optimizer in place of those of the old one."""
  old = optim.declared(config.optim.name)
  config_room.override(config, "optim.name", name)
  for field in old.keys() - optim.declared(name).keys():
    del config.optim[field]
  add_fields(config)


def declared_of(flat: Mapping[str, Value]) -> dict[str, Field]:
  """Every declared field of a config, given in its flat form."""
  return declared(str(flat["model.family"]), str(flat["task.name"]), str(flat["optim.name"]))


def identity(flat: Mapping[str, Value]) -> dict[str, Value]:
  """The fields of a flat config that determine a run's results; the run's id is their hash.

  Fields that only affect the execution of a run, and fields that a later version added and that are at their defaults,
  are left out.
  """
  fields = declared_of(flat)
  kept = {name: value for name, value in flat.items() if not name.startswith("parallel.")}
  kept |= {name: user_files.without_path(kept[name]) for name in EXTENSIBLE if name in kept}
  for name, words in TEXTS.items():
    texts = kept.get(name, ())
    if isinstance(texts, tuple | list) and any(".py:" in str(text) for text in texts):
      kept[name] = tuple(_in_words(str(text), words, user_files.without_path) for text in texts)
  return {name: value for name, value in kept.items() if name not in fields or _identifies(fields[name], value)}


def execution_fields(flat: Mapping[str, Value]) -> dict[str, Value]:
  """The fields of a flat config that affect the execution of a run but not its results."""
  fields = declared_of(flat)
  return {name: value for name, value in flat.items() if name in fields and fields[name].use is PROVENANCE}


def _identifies(field: Field, value: Value) -> bool:
  plain = tuple(value) if isinstance(value, list) else value  # JSON has lists in place of tuples
  return field.use is not PROVENANCE and not (field.added_later and plain == field.default)


def check_groups(config: Config) -> None:
  """Raises `UserError` for a group of fields or a name that decides over others that the config lacks."""
  for group in GROUPS:
    require(isinstance(config.get(group), ConfigDict), f"config.{group}: missing; begin with default_config()")
  names = {f"{group}.{field}": config[group].get(field) for group, field in (name.split(".") for name in DECIDING)}
  _check_names(names, "config.")


def _check_names(flat: Mapping[str, Value], prefix: str) -> None:
  for name in DECIDING:
    value = flat.get(name)
    require(isinstance(value, str), f"{prefix}{name}: {'missing' if value is None else f'{value!r} is not a text'}")


def wrong_type(value: object, default: Value) -> str:
  """What is wrong with the type of a field's value, or ''."""
  if isinstance(default, tuple):
    items = value if isinstance(value, tuple | list) else [None]
    fits = all(isinstance(item, bool | int | float | str) for item in items)
  elif isinstance(default, float):
    fits = isinstance(value, float | int) and not isinstance(value, bool)
  else:
    fits = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
  return "" if fits else f"{value!r:.60} is not of type {type(default).__name__} (its default is {default!r})"


def read_config(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, for the devices of this machine. Raises `UserError` where it is damaged."""
  folder = absolute(workdir)
  path = folder / "config.json"
  if not path.exists():
    raise UserError(f"--workdir: {folder} holds no run (no config.json)")
  stored = read_json_object(path)
  for name in stored:
    fits = FIELD.fullmatch(name) is not None
    require(fits, f"{path}: is corrupt ({name!r:.60} is not the name of a field); restore it")
  _check_names(stored, f"{path}: is corrupt, restore it: ")
  # An earlier version may have stored fewer fields.
  missing = {name: field.default for name, field in declared_of(stored).items()}
  here = {f"parallel.{name}": value for name, value in defaults(Parallel).items()}
  for name in stored.keys() & missing.keys():
    problem = wrong_type(stored[name], missing[name])
    require(not problem, f"{path}: is corrupt ({name}: {problem}); restore it")
  return unflatten(missing | stored | here)


def read_config_with_mesh(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, with the mesh that it was last trained on; this machine may have fewer devices."""
  config, folder = read_config(workdir), absolute(workdir)
  facts = read_json_object(folder / "config.json")
  if (folder / "provenance.json").exists():
    executed = read_json_object(folder / "provenance.json").get("config", {})
    require(isinstance(executed, dict), f"{folder / 'provenance.json'}: is corrupt (config is no object); restore it")
    facts |= executed
  used = {f"parallel.{name}": facts.get(f"parallel.{name}", value) for name, value in defaults(Parallel).items()}
  return with_overrides(config, used)
