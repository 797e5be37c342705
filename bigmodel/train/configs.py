"""The config of a run: the fields of all rooms, its identity, and how it is read from a run's folder."""

import functools
from collections.abc import Mapping

from etils import epath

from bigmodel import data, models, tasks, user_files
from bigmodel.config import Config, unflatten, with_overrides
from bigmodel.declarations import PROVENANCE, TRACED, Field, Value, declared_in, defaults
from bigmodel.errors import UserError
from bigmodel.files import absolute, read_json
from bigmodel.optim.fields import Optim
from bigmodel.parallel.fields import Parallel
from bigmodel.train.fields import Eval, Train

# Defaults that differ where a row is one example.
EXAMPLE_DEFAULTS = {"eval.tokens": 10_000, "eval.batch_size": 256, "train.batch_size": 64}

# Fields that may name a definition in a user's file as FILE.py:NAME.
EXTENSIBLE = ("model.family", "task.name", "optim.name", "data.name")


def declared(family: str, task: str) -> dict[str, Field]:
  """Every field of a config by its dotted name, for a family of models and a task."""
  return _declared(user_files.complete(family, "config.model.family"), user_files.complete(task, "config.task.name"))


@functools.cache
def _declared(family: str, task: str) -> dict[str, Field]:
  groups = {
    "model": models.declared(family),
    "task": tasks.declared(task),
    "data": data.declared(tasks.task(task).DATA),
    "optim": declared_in(Optim),
    "parallel": declared_in(Parallel),
    "train": declared_in(Train),
    "eval": declared_in(Eval),
  }
  fields = {"seed": Field(0, "of initial values, dropout and what a task draws", use=TRACED)}
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


def complete_names(config: Config) -> None:
  """Completes, in place, the names that refer to a user's file with its absolute path and the hash of its content."""
  for name in EXTENSIBLE:
    group, field = name.split(".")
    config[group][field] = user_files.complete(config[group][field], f"config.{name}")


def declared_of(flat: Mapping[str, Value]) -> dict[str, Field]:
  """Every declared field of a config, given in its flat form."""
  return declared(str(flat["model.family"]), str(flat["task.name"]))


def identity(flat: Mapping[str, Value]) -> dict[str, Value]:
  """The fields of a flat config that make a run what it is: its id is their hash.

  Left out are fields that say how a run is carried out, and fields that were added later and are at their defaults.
  """
  fields = declared_of(flat)
  kept = {name: value for name, value in flat.items() if not name.startswith("parallel.")}
  kept |= {name: user_files.without_path(kept[name]) for name in EXTENSIBLE if name in kept}
  return {name: value for name, value in kept.items() if name not in fields or _identifies(fields[name], value)}


def carried_out(flat: Mapping[str, Value]) -> dict[str, Value]:
  """The fields of a flat config that say how a run is carried out."""
  fields = declared_of(flat)
  return {name: value for name, value in flat.items() if name in fields and fields[name].use is PROVENANCE}


def _identifies(field: Field, value: Value) -> bool:
  plain = tuple(value) if isinstance(value, list) else value  # JSON has lists in place of tuples
  return field.use is not PROVENANCE and not (field.added_later and plain == field.default)


def read_config(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, for the devices of this machine."""
  folder = absolute(workdir)
  if not (folder / "config.json").exists():
    raise UserError(f"--workdir: {folder} holds no run (no config.json)")
  stored = read_json(folder / "config.json")
  # An earlier version may have stored fewer fields.
  missing = {name: field.default for name, field in declared_of(stored).items()}
  here = {f"parallel.{name}": value for name, value in defaults(Parallel).items()}
  return unflatten(missing | stored | here)


def read_config_with_mesh(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, with the mesh that it was last trained on; this machine may have fewer devices."""
  config, folder = read_config(workdir), absolute(workdir)
  facts = read_json(folder / "config.json")
  if (folder / "provenance.json").exists():
    facts |= read_json(folder / "provenance.json").get("config", {})
  used = {f"parallel.{name}": facts.get(f"parallel.{name}", value) for name, value in defaults(Parallel).items()}
  return with_overrides(config, used)
