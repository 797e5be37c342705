"""Where the data of a run lie. A run stays the same run when its data are moved or are named by another path.

A run's id has the path in it, because earlier ids had. So the folder of a run decides: the path in its config.json is
kept as long as the data there and here have the same hash, and where they lie now is written to places.json beside it.
"""

from collections.abc import Mapping

from etils import epath

from bigmodel import data
from bigmodel.config import Config, flatten
from bigmodel.declarations import Value
from bigmodel.files import absolute, read_json, write_json

PLACES = ("data.path", "data.dir", "data.mixture")
FILE = "places.json"


def stored(config: Config, sha256: str, flat: Mapping[str, Value]) -> dict[str, Value]:
  """The places of data in a stored flat config; none where these data, with this hash, are others than those."""
  of_config = flatten(config)
  names = [name for name in PLACES if name in flat and name in of_config]
  changed = {name: _plain(flat[name]) for name in names if _plain(flat[name]) != _plain(of_config[name])}
  if not changed or flat.get("data.sha256") != sha256:
    return {}
  return changed if _same_parts(config, changed) else {}


def _plain(value: Value) -> Value:
  return tuple(value) if isinstance(value, list) else value  # JSON has lists in place of tuples


def _same_parts(config: Config, places: Mapping[str, Value]) -> bool:
  """Whether the parts of a mixture have the same names, which are the names of metrics, and differ only in paths."""
  if not config.data.get("mixture"):
    return not places.get("data.mixture")
  there = replaced(config, places)
  texts = [[_without_places(text) for text in one.data.mixture] for one in (config, there)]
  return texts[0] == texts[1] and data.part_names(config.data) == data.part_names(there.data)


def _without_places(text: str) -> list[str]:
  return [word for word in text.split() if word.partition("=")[0] not in ("path", "dir")]


def replaced(config: Config, places: Mapping[str, Value]) -> Config:
  """A copy of the config with these places of its data."""
  copy = config.copy_and_resolve_references()
  for name, value in places.items():
    copy.data[name.removeprefix("data.")] = value
  return copy


def of_study(config: Config, sha256: str, folder: epath.PathLike) -> dict[str, Value]:
  """The places in the study.json of a folder, where one of its runs has data with this hash."""
  path = absolute(folder) / "study.json"
  if not path.exists():
    return {}
  about = read_json(path)["config"]
  for run in sorted((path.parent / "runs").glob("*/config.json")):
    if places := stored(config, sha256, about | {"data.sha256": read_json(run).get("data.sha256")}):
      return places
  return {}


def of_folder(config: Config, folder: epath.PathLike) -> dict[str, Value]:
  """The places in the config.json of a run's folder, where its data are those of the resolved config."""
  path = absolute(folder) / "config.json"
  return stored(config, config.data.sha256, read_json(path)) if path.exists() else {}


def note(here: Config, stored_: Config, folder: epath.PathLike) -> None:
  """Writes to a folder where the data lie now, if that is not where its config has them."""
  path, of_config = absolute(folder) / FILE, flatten(stored_)
  changed = {name: value for name, value in flatten(here).items() if name in PLACES and value != of_config[name]}
  if changed:
    write_json(path, changed)
  elif path.exists():
    path.unlink()


def last(folder: epath.PathLike) -> dict[str, Value]:
  """The places where the data of a run's folder lay last, if these are not those in its config.json."""
  for at in (absolute(folder), absolute(folder).parent.parent):  # the folder of a run, and that of its study
    if (at / FILE).exists():
      return {name: _plain(value) for name, value in read_json(at / FILE).items()}
  return {}
