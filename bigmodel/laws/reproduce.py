"""Published numbers beside ours: what a file of `experiments/` returns from `reproduce(data)`."""

import dataclasses
import math
import os
from pathlib import Path

from bigmodel.config import load_module, nearest
from bigmodel.files import UserError


@dataclasses.dataclass(frozen=True)
class Result:
  """One number; `published` None: nobody has, `within`: how far ours may be from it, at most."""

  what: str
  published: float | None
  ours: float
  within: float = math.nan

  @property
  def verdict(self) -> str:
    if self.published is None or math.isnan(self.within):
      return ""
    return "the same" if abs(self.ours - self.published) <= self.within else "differs"


def find(name: str) -> Path:
  """The experiment of that name, beside the package."""
  folder = Path(__file__).parents[2] / "experiments"
  known = sorted(path.stem for path in folder.glob("*.py") if "def reproduce(" in path.read_text())
  if name not in known:
    raise UserError(f"reproduce: no experiment {name!r}{nearest(name, known)}; known: {', '.join(known) or 'none'}")
  return folder / f"{name}.py"


def run(name: str, data: str = "") -> tuple[str, list[Result]]:
  """`(claim, results)` of an experiment; `data` is where the published points are."""
  module, _ = load_module(str(find(name)))
  return (module.__doc__ or "").strip(), module.reproduce(where(data))


def where(data: str = "") -> Path:
  """The folder of published points: as said, or $BIGMODEL_SCALING_DATA, or one beside the repository."""
  beside = Path(__file__).parents[3] / "shared" / "scaling_data"
  folder = Path(data or os.environ.get("BIGMODEL_SCALING_DATA") or beside)
  if not folder.is_dir():
    raise UserError(f"reproduce: no published points at {folder}; --data=DIR or $BIGMODEL_SCALING_DATA says where")
  return folder
