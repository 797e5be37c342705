"""Arrays of the .npz file `data.path`, or of the cache: inputs, targets, and where splits need them group and time."""

import json
import os
import shutil
import zipfile

import numpy as np

from bigmodel.config import Config, require
from bigmodel.data import cached
from bigmodel.data.prepared import new_folder, open_array
from bigmodel.data.sources import Arrays, Source, of_arrays
from bigmodel.errors import UserError
from bigmodel.files import cache_dir, only_one, sha256_file, sha256_text
from bigmodel.readers import downloads
from bigmodel.readers.packed import open_bytes

FORMAT = 1  # of prepared arrays; those of other formats are ignored


def read(data: Config) -> Arrays:
  """The arrays, checked; the inputs stay on disk."""
  path = data.path
  if cached.is_reference(path):
    return of_arrays(**cached.load(path), where=f"config.data.path: {path}")
  path = os.path.expanduser(path)
  require(os.path.isfile(path), f"config.data.path: no file {path!r}")
  _refuse_other_files(path)
  try:
    with np.load(path, allow_pickle=False) as file:
      missing = {"inputs", "targets"} - set(file.files)
      require(not missing, f"config.data.path: {path} has no array {' or '.join(sorted(missing))}")
      arrays = {name: file[name] for name in ("targets", "group", "time") if name in file.files}
    arrays["inputs"] = _on_disk(path, "inputs")
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
    ragged = any(word in str(error).lower() for word in ("pickle", "python objects"))
    reason = "its rows differ in shape" if ragged else str(error).splitlines()[0]
    raise UserError(f"config.data.path: {path} cannot be read: {reason}") from error
  return of_arrays(**arrays, where=f"config.data.path: {path}")


def _refuse_other_files(path: str) -> None:
  """Refuses a file that is no .npz archive, by what it is."""
  with open_bytes(path) as file:
    begin = file.read(downloads.ENOUGH)
  problem = "" if begin.startswith(b"PK") else downloads.mistaken(begin) or f"it begins with {begin[:8]!r}"
  require(not problem, f"config.data.path: {path} cannot be read: not an .npz file: {problem}")


def _on_disk(path: str, name: str) -> np.ndarray:
  """One array of an .npz file, unpacked into the cache and mapped into memory."""
  key = sha256_text(json.dumps([FORMAT, sha256_file(path), name]))[:16]
  folder = cache_dir() / "arrays" / key
  with only_one(f"arrays-{key}"):
    if not folder.exists():
      with new_folder(folder) as temporary, zipfile.ZipFile(path) as packed, packed.open(f"{name}.npy") as member:
        with open(temporary / f"{name}.npy", "wb") as file:
          shutil.copyfileobj(member, file, 1 << 20)
        open_array(temporary / f"{name}.npy")  # raises an error if the array is invalid
  return open_array(folder / f"{name}.npy")


SOURCE = Source(read, needs_path=True)
