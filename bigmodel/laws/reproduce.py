"""Published numbers beside ours, and the published points from which ours are computed."""

import dataclasses
import hashlib
import math
import os
import urllib.request
from pathlib import Path

from bigmodel.errors import UserError
from bigmodel.files import cache_dir, write_bytes

HUB = "https://raw.githubusercontent.com"
REVISITING = f"{HUB}/google-research/google-research/master/revisiting_neural_scaling_laws/data"
# Points that their authors publish as a table: the address, and the sha256 of the file that was used here.
SOURCES = {
  "clark_moe/curves.csv.gz": (
    f"{HUB}/google-deepmind/scaling_laws_for_routing/42da0c392b127df2c01fa7b705f72396050d05e5/data/curves.csv.gz",
    "c03e7531add85e594f368d33bac4a0220280be858a7ed12d147cf73af6a3819f",
  ),
  "epoch/svg_extracted_data.csv": (
    f"{HUB}/epoch-research/analyzing-chinchilla/92258837425e1b5f2851d624287f0120583a3d0e/data/svg_extracted_data.csv",
    "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
  ),
  "revisiting/language.csv": (
    f"{REVISITING}/benchmark.lang.csv",
    "63c346db00a66b692e1ea9a0f71a2f2b267e55f74be5b863a92e199dffbf0983",
  ),
  "revisiting/vision.csv": (
    f"{REVISITING}/benchmark.vision.csv",
    "7da3db21e15c368f60558dcbb7ff2fade0f3ce5f12c22de25217c93e05eb89e9",
  ),
}


@dataclasses.dataclass(frozen=True)
class Result:
  """A number of ours beside the published one."""

  what: str  # what is counted or measured
  published: float | None  # None: it was not published
  ours: float
  within: float = math.nan  # the largest difference at which both count as the same; NaN: they are not compared

  @property
  def verdict(self) -> str:
    if self.published is None or math.isnan(self.within):
      return ""
    return "the same" if abs(self.ours - self.published) <= self.within else "differs"


def data_folder(data: str = "") -> Path:
  """The folder of published points: `data`, or $BIGMODEL_SCALING_DATA, or the cache, into which they are downloaded."""
  folder = data or os.environ.get("BIGMODEL_SCALING_DATA")
  if folder and not Path(folder).is_dir():
    raise UserError(f"reproduce: no published points at {folder}; --data=DIR or $BIGMODEL_SCALING_DATA says where")
  return Path(folder) if folder else download(cache_dir() / "scaling_data")


def download(folder: Path) -> Path:
  """Fetches missing points of `SOURCES`; raises `UserError` for a file that differs from the one that was used here.

  Returns the folder.
  """
  for name, (address, digest) in SOURCES.items():
    path = folder / name
    if path.exists():
      continue
    try:
      with urllib.request.urlopen(address, timeout=60) as response:
        content = response.read()
    except OSError as error:
      raise UserError(
        f"reproduce: {address} can't be fetched ({error}); --data=DIR or $BIGMODEL_SCALING_DATA says where points are"
      ) from error
    if hashlib.sha256(content).hexdigest() != digest:
      raise UserError(f"reproduce: {address} is not the file that was used here (sha256 differs)")
    write_bytes(path, content)
  return folder
