"""Configs: loading, overriding, comparing and hashing.

This file is generic and knows no field by name. The rooms declare their fields (see `declarations.py`) and check them;
`train/configs.py` and `train/resolution.py` put them together.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from bigmodel.errors import UserError

# Type checkers cannot know the types of a ConfigDict's values; the rooms' checks verify them.
if TYPE_CHECKING:
  Config = Any
else:
  Config = ConfigDict


def nearest(name: str, allowed: Iterable[str]) -> str:
  """' (did you mean X?)' for the allowed name nearest to `name`, or '' where none is near."""
  close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
  return f" (did you mean {close[0]!r}?)" if close else ""


def load_module(spec: str) -> tuple[ModuleType, str | None]:
  """Imports the config file of `FILE[:arg]` and returns it with the argument."""
  path, _, arg = spec.partition(":")
  if not Path(path).is_file():
    raise UserError(f"--config: no file {path!r}")
  name = f"bigmodel_config_{Path(path).stem}"
  module_spec = importlib.util.spec_from_file_location(name, path)
  if module_spec is None or module_spec.loader is None:
    raise UserError(f"--config: {path!r} is not a Python file")
  module = importlib.util.module_from_spec(module_spec)
  sys.modules[name] = module
  try:
    module_spec.loader.exec_module(module)
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"--config: {path} does not load: {type(error).__name__}: {_first_line(error)}") from error
  return module, arg or None


def _first_line(error: Exception) -> str:
  return next(iter(str(error).strip().splitlines()), "")


def load(spec: str, overrides: Iterable[str] = ()) -> tuple[Config, ModuleType]:
  """The config of `FILE[:arg]` with `group.field=value` overrides applied."""
  module, arg = load_module(spec)
  if not hasattr(module, "get_config"):
    raise UserError(f"--config: {spec} has no get_config(arg=None)")
  try:
    config = module.get_config(arg)
  except UserError:
    raise
  except Exception as error:
    raise UserError(f"--config: {spec}: get_config: {type(error).__name__}: {_first_line(error)}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config: {spec}: get_config returns {type(config).__name__} and not a config")
  apply(config, overrides)
  return config, module


def apply(config: Config, overrides: Iterable[str]) -> None:
  """Applies `group.field=value` overrides, in place."""
  for item in overrides:
    name, equals, value = item.partition("=")
    if not equals:
      raise UserError(f"--config.{item}: write --config.{item}=VALUE")
    override(config, name, parse_value(value))


def parse_value(text: str) -> Any:
  """The Python literal that `text` spells, or `text` itself where it spells none."""
  if text in ("true", "false"):
    return text == "true"
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
    return text


def override(config: Config, name: str, value: object) -> None:
  """Sets `config.a.b = value` in place, converted to the field's type; refuses unknown names and wrong types."""
  group = config
  *parents, field = name.split(".")
  for depth, parent in enumerate(parents):
    here = ".".join(parents[: depth + 1])
    if parent not in group or not isinstance(group[parent], ConfigDict):
      raise UserError(f"config.{here}: no such group{nearest(parent, group.keys())}")
    group = group[parent]
  if field not in group:
    near = nearest(name, flatten(config)) or nearest(field, group.keys())
    raise UserError(f"config.{name}: no such field{near}")
  old = group[field]
  if isinstance(old, ConfigDict):
    raise UserError(f"config.{name}: is a group; set one of {', '.join(sorted(old.keys()))}")
  kind = type(old)
  if kind is float and type(value) is int:
    value = float(value) if abs(value) < 1 << 128 else (math.inf if value > 0 else -math.inf)  # which no field allows
  elif kind is float and isinstance(value, str) and value.lower().lstrip("+-") in ("inf", "infinity"):
    value = float(value)  # which no field allows, either
  elif kind is int and type(value) is float and value.is_integer():
    value = int(value)  # so that large integers can be written as 1e6
  elif kind is tuple and isinstance(value, list | str):
    value = tuple(value) if isinstance(value, list) else (value,)
  elif kind is str and isinstance(value, int | float) and not isinstance(value, bool):
    value = str(value)
  if type(value) is not kind:
    raise UserError(f"config.{name}: {_short(value)} is not of type {kind.__name__} (its value is {_short(old)})")
  group[field] = value


def _short(value: object) -> str:
  """The value as Python writes it, cut where it would fill the line of an error."""
  try:
    text = repr(value)
  except ValueError:  # Python writes no numbers of over 4,300 digits
    return "a number with thousands of digits"
  return text if len(text) <= 200 else f"{text[:150]}... ({len(text):,} characters)"


def with_overrides(config: Config, changes: Mapping[str, object]) -> Config:
  """A copy of `config` with `{'group.field': value}` applied."""
  copy = config.copy_and_resolve_references()
  for name, value in changes.items():
    override(copy, name, value)
  return copy


def flatten(config: Config | Mapping, prefix: str = "") -> dict[str, Any]:
  """`{'group.field': value}` for every field, sorted by name."""
  flat = {}
  for key in sorted(config.keys()):
    value, name = config[key], f"{prefix}{key}"
    if isinstance(value, ConfigDict | Mapping):
      flat.update(flatten(value, name + "."))
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, object]) -> Config:
  """The inverse of `flatten`. Lists, which JSON has in place of tuples, become tuples."""
  config: Config = ConfigDict()
  for name, value in flat.items():
    group = config
    *parents, field = name.split(".")
    for parent in parents:
      if parent not in group:
        group[parent] = ConfigDict()
      group = group[parent]
    group[field] = tuple(value) if isinstance(value, list) else value
  return config


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
  """The differences between two flat configs as text: 'name: old -> new; ...'. Lists and tuples compare equal."""
  names = sorted(set(old) | set(new))

  def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value

  return "; ".join(
    f"{name}: {old.get(name, 'absent')!r} -> {new.get(name, 'absent')!r}"
    for name in names
    if plain(old.get(name)) != plain(new.get(name)) or (name in old) != (name in new)
  )


def digest(flat: Mapping[str, object], without: Iterable[str] = ()) -> str:
  """sha256 of a flat config; `without` names fields or whole groups to leave out."""
  dropped = tuple(without)
  kept = {
    name: value
    for name, value in flat.items()
    if not any(name == drop or name.startswith(drop + ".") for drop in dropped)
  }
  text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def require(condition: bool, message: str) -> None:
  """Raises `UserError(message)` unless `condition` holds. All checks of user input are written with it."""
  if not condition:
    raise UserError(message)


def require_choice(name: str, value: str, choices: Iterable[str]) -> None:
  """Refuses a `value` of `config.NAME` that is not among `choices`; the message names the nearest choice."""
  allowed = sorted(choices)
  if value not in allowed:
    raise UserError(f"config.{name}: no {value!r}{nearest(value, allowed)}; known: {', '.join(allowed)}")
