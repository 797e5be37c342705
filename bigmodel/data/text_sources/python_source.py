"""The Python source of installed distributions: `data.distributions` to train on, `data.heldout` to evaluate on."""

import hashlib
import importlib.metadata
from pathlib import Path

from bigmodel.config import Config, require
from bigmodel.data import builders
from bigmodel.data.documents import TextFile, manifest_sha256
from bigmodel.data.sources import Documents, Source
from bigmodel.errors import UserError


def check(data: Config) -> None:
  """Refuses missing names of distributions, and distributions that would be both trained on and held out."""
  require(bool(data.distributions), "config.data.distributions: empty; name installed distributions")
  require(bool(data.heldout), "config.data.heldout: empty; name distributions to evaluate on")


def read(data: Config) -> Documents:
  """The documents: one per file, cut into no pieces."""
  files = python_files(tuple(data.distributions), tuple(data.heldout))
  sha256 = manifest_sha256(files, data.name)

  def empty(split: str) -> UserError:
    return UserError(f"config.data: the corpus is empty: no document in split {split!r}")

  return builders.documents(data, sha256, builders.FileTexts(files, data.text_key, data.heldout_fraction), empty)


def python_files(train: tuple[str, ...], heldout: tuple[str, ...]) -> list[TextFile]:
  """The .py files of installed distributions, each content once, with the held-out ones first.

  Training omits files whose content is also in a held-out distribution.
  """
  files, seen = [], set()
  for split, names in (("validation", heldout), ("train", train)):
    for name in sorted(names):
      try:
        distribution = importlib.metadata.distribution(name)
      except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"config.data: distribution {name!r} is not installed; pip install {name}") from error
      label = f"{name}=={distribution.version}"
      for file in sorted(distribution.files or (), key=str):
        if file.suffix != ".py":
          continue
        path = Path(str(distribution.locate_file(file)))
        try:
          content = path.read_bytes()
        except OSError:
          continue  # listed in the metadata, removed from the disk
        sha256 = hashlib.sha256(content).hexdigest()
        if content.strip() and sha256 not in seen:
          seen.add(sha256)
          files.append(TextFile(split, f"{label}/{file}", str(path), sha256))
  return files


SOURCE = Source(read, check)
