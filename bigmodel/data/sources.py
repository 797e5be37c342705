"""Where data come from: the sources in `text_sources/` and `example_sources/`, and functions in users' files.

A file in one of these folders is a source, and `config.data.name` is its name; behind a slash the name may have an item
of the source, as in `sklearn/digits`. The file defines `SOURCE`, whose `read(data)` gets `config.data` and returns what
`examples_of` or `documents_of` accepts. Nothing else has to be edited to add a source.

FILE.py:NAME is a function in a user's file. It is called with `config.data`, or with nothing where it takes no
parameter, and returns the same.
"""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bigmodel import user_files
from bigmodel.config import Config, nearest, require
from bigmodel.data.prepared import chunks_of, row_identity
from bigmodel.errors import UserError

if TYPE_CHECKING:
  from bigmodel.data.tables import RawTable

FOLDERS = {"text": "text_sources", "examples": "example_sources"}
ARRAYS = ("inputs", "targets", "group", "time", "heldout", "classes")  # the keys of a dict of examples
SPLITS = ("train", "validation")  # the keys of a dict of documents


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of data. The flags say which fields of `config.data` it uses."""

  read: Callable[[Config], object]
  check: Callable[[Config], None] | None = None  # refuses a `config.data` that cannot work, before anything is read
  needs_path: bool = False
  is_table: bool | None = False  # rows with named columns; None: known only after reading
  scales_images: bool = False  # uses image_size
  always_splits: bool = False  # comes with a training and a held-out split


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Examples as arrays, before they are split; all arrays have one row per example.

  `group` and `time` are what `data.split` can divide by. `heldout` marks the examples that the data themselves hold
  out. `identities` are hashes of the inputs: examples with equal ones are kept in the same split.
  """

  inputs: np.ndarray
  targets: np.ndarray
  group: np.ndarray | None = None
  time: np.ndarray | None = None
  heldout: np.ndarray | None = None  # bool
  classes: tuple[str, ...] = ()  # the names of the classes, where they have names
  identities: np.ndarray | None = None
  inputs_sha256: str = ""  # of the inputs, where the source has it already
  notes: tuple[str, ...] = ()  # what was assumed to read them, and what people should know of them
  passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)  # files that were not read, by suffix


class Text(NamedTuple):
  """A text: a document or a piece of a long one.

  `fingerprints` identify the document and then, where the text is a piece, the piece: equal words, equal fingerprints.
  """

  text: str
  fingerprints: list[int]


@dataclasses.dataclass(frozen=True)
class Documents:
  """Documents. `sha256` identifies their content; `open` prepares them and returns the texts of each split.

  The texts can be iterated over any number of times, always in the same order.
  """

  sha256: str
  open: Callable[[], Mapping[str, Iterable[Text]]]
  skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)  # texts that were left out; set by `open`
  passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)  # files that are not read, by suffix


@functools.cache
def names(kind: str) -> tuple[str, ...]:
  """The names of the built-in sources of a kind of data."""
  folder = importlib.import_module(f"bigmodel.data.{FOLDERS[kind]}")
  return tuple(sorted(module.name for module in pkgutil.iter_modules(folder.__path__)))


def find(data: Config) -> Source:
  """The source that `config.data.name` names."""
  if user_files.is_reference(data.name):
    return Source(_call_user_function, is_table=None)
  name = data.name.partition("/")[0]
  if data.kind == "text" and name not in names("text"):
    name = "tfds"  # the name of any TFDS dataset
  if name not in names(data.kind):
    others = [other for other in FOLDERS if other != data.kind and name in names(other)]
    hint = f", which is a source of {others[0]}" if others else nearest(name, names(data.kind))
    raise UserError(f"config.data.name: no {data.name!r}{hint}; known: {', '.join(names(data.kind))}, FILE.py:NAME")
  return importlib.import_module(f"bigmodel.data.{FOLDERS[data.kind]}.{name}").SOURCE


def is_table(data: Config) -> bool:
  """Whether the data are a table; for a function in a user's file, whether the config names a target column."""
  source = find(data)
  return bool(data.target) if source.is_table is None else source.is_table


def label(data: Config) -> str:
  """The name of the source for people: without the folder of a user's file."""
  return str(user_files.without_path(user_files.complete(data.name, "config.data.name")))


def _call_user_function(data: Config) -> object:
  function = user_files.load(data.name, "config.data.name")
  name = label(data)
  if not callable(function):
    raise UserError(f"config.data.name: {name} is {described(function)} and not a function that returns data")
  try:
    return function(data) if inspect.signature(function).parameters else function()
  except UserError:
    raise
  except Exception as error:
    reason = str(error).strip().partition("\n")[0]
    raise UserError(f"config.data.name: {name} raised {type(error).__name__}: {reason}") from error


def described(value: object) -> str:
  """What a wrong value is, in a few words."""
  if isinstance(value, np.ndarray):
    return f"an array of shape {value.shape} and type {value.dtype}"
  if isinstance(value, Mapping):
    return f"a dict with the keys {', '.join(map(repr, value)) or '(none)'}"
  return "None" if value is None else f"an object of type {type(value).__name__}"


def examples_of(data: Config, returned: object) -> "Arrays | RawTable":
  """The examples that a source returned: `Arrays`, a dict of arrays, a polars DataFrame or a `RawTable`.

  The dict has `inputs`, numbers of shape [examples, ...], and `targets`, numbers of shape [examples]; it may have
  `group` and `time`, which `data.split` can divide by, `heldout`, bool[examples], and `classes`, the classes' names.
  """
  import polars as pl

  from bigmodel.data.tables import RawTable

  where = f"config.data.name: {label(data)}"
  if isinstance(returned, pl.DataFrame):
    content = hashlib.sha256(str(returned.schema).encode() + returned.write_csv().encode())
    returned = RawTable(returned, content.hexdigest())
  if isinstance(returned, Arrays | RawTable):
    return returned
  if not isinstance(returned, Mapping) or not {"inputs", "targets"} & set(returned):
    raise UserError(
      f"{where} returned {described(returned)}; examples are a dict with the arrays 'inputs' and 'targets',"
      " or a polars DataFrame"
    )
  for key in returned:
    require(key in ARRAYS, f"{where} returned an unknown key {key!r}; the keys are {', '.join(ARRAYS)}")
  return _checked_arrays(where, {str(key): value for key, value in returned.items() if value is not None})


def _checked_arrays(where: str, values: dict[str, object]) -> Arrays:
  missing = [name for name in ("inputs", "targets") if name not in values]
  require(not missing, f"{where} returned no {' and no '.join(missing)}")
  classes = values.pop("classes", ())
  is_names = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
  require(is_names, f"{where} returned classes that are {described(classes)} and not a list of names")
  arrays: dict[str, np.ndarray] = {}
  for name, value in values.items():
    try:
      arrays[name] = value if isinstance(value, np.ndarray) else np.asarray(value)
    except ValueError as error:
      raise UserError(f"{where} returned {name} whose rows differ in shape") from error
  checked = of_arrays(**arrays, where=where)
  names_ = tuple(map(str, classes)) if isinstance(classes, list | tuple) else ()
  return dataclasses.replace(checked, classes=names_)


def of_arrays(
  inputs: np.ndarray,
  targets: np.ndarray,
  group: np.ndarray | None = None,
  time: np.ndarray | None = None,
  heldout: np.ndarray | None = None,
  where: str = "arrays",
) -> Arrays:
  """Checked examples from arrays in memory; `where` begins the messages of errors."""
  require(inputs.ndim >= 2, f"{where}: inputs have the shape {inputs.shape}; it must be [examples, ...]")
  for name, array in (("targets", targets), ("group", group), ("time", time), ("heldout", heldout)):
    fits = array is None or array.shape == (len(inputs),)
    require(fits, f"{where}: {len(inputs)} inputs and {name} of shape {() if array is None else array.shape}")
  for name, array in (("inputs", inputs), ("targets", targets)):
    require(array.dtype.kind in "biuf", f"{where}: {name} are not numbers but {array.dtype}")
    for rows in chunks_of(array):
      bad = np.flatnonzero(~np.isfinite(array[rows].reshape(rows.stop - rows.start, -1)).all(axis=1))
      require(not len(bad), f"{where}: {name} of example {rows.start + (bad[0] if len(bad) else 0)} are not finite")
  if heldout is not None:
    require(heldout.dtype == bool, f"{where}: heldout is {heldout.dtype} and not bool")
    require(bool(heldout.any() and not heldout.all()), f"{where}: heldout marks {int(heldout.sum())} of {len(heldout)}")
  identities = np.array([row_identity(row) for row in inputs], np.uint64) if inputs.ndim > 2 else None
  return Arrays(inputs, targets, group, time, heldout, identities=identities)
