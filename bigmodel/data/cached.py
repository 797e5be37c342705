"""Arrays kept in the cache under the hash of their content, which `config.data.path` names as `cached:HASH`.

So a run's id depends on the arrays and not on where they came from, and the run can be resumed and evaluated later.
"""

import hashlib
import re
from pathlib import Path

import numpy as np

from bigmodel.data.prepared import new_folder, open_array
from bigmodel.errors import UserError
from bigmodel.files import cache_dir, only_one

_REFERENCE = re.compile(r"cached:(?P<key>[0-9a-f]{16})")


def is_reference(path: str) -> bool:
  """Whether the path of `config.data` names arrays in the cache."""
  return _REFERENCE.fullmatch(path) is not None


def keep(arrays: dict[str, np.ndarray]) -> str:
  """Writes the arrays to the cache, unless they are there already, and returns `cached:HASH`."""
  digest = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).data)
  key = digest.hexdigest()[:16]
  with only_one(f"arrays-{key}"):
    if not _folder(key).exists():
      with new_folder(_folder(key)) as temporary:
        for name, array in arrays.items():
          np.save(temporary / f"{name}.npy", array, allow_pickle=False)
  return f"cached:{key}"


def load(reference: str) -> dict[str, np.ndarray]:
  """The arrays of `cached:HASH` by name. They are mapped into memory, so that only what is used is read."""
  match = _REFERENCE.fullmatch(reference)
  assert match is not None
  folder = _folder(match["key"])
  if not folder.exists():
    raise UserError(
      f"config.data.path: {reference} is not in the cache {cache_dir()}; call bigmodel.use_arrays with the arrays again"
    )
  return {path.stem: open_array(path) for path in sorted(folder.glob("*.npy"))}


def _folder(key: str) -> Path:
  return cache_dir() / "arrays" / f"given-{key}"
