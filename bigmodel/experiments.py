"""Runs a file of `experiments/`, which sets the numbers of a paper beside ours.

A file defines `reproduce(data)`, which computes them from published points, or `measure(workdir, quiet)`, which trains.
Both return `laws.reproduce.Result`s.
"""

from pathlib import Path

from bigmodel.config import load_module, nearest
from bigmodel.errors import UserError
from bigmodel.laws import reproduce

FOLDER = Path(__file__).parents[1] / "experiments"


def find(name: str) -> Path:
  """The experiment of that name, beside the package."""
  names = sorted(path.stem for path in FOLDER.glob("*.py") if _is_experiment(path))
  if name not in names:
    raise UserError(f"reproduce: no experiment {name!r}{nearest(name, names)}; known: {', '.join(names) or 'none'}")
  return FOLDER / f"{name}.py"


def _is_experiment(path: Path) -> bool:
  text = path.read_text()
  return "def reproduce(" in text or "def measure(" in text


def run(name: str, data: str = "", workdir: str = "", quiet: bool = True) -> tuple[str, list[reproduce.Result]]:
  """`(claim, results)` of an experiment; `data` is where the published points are, `workdir` where it trains."""
  module, _ = load_module(str(find(name)))
  claim = (module.__doc__ or "").strip()
  if hasattr(module, "measure"):
    return claim, module.measure(Path(workdir or f"runs/{name}"), quiet)
  try:
    return claim, module.reproduce(reproduce.data_folder(data))
  except FileNotFoundError as error:
    raise UserError(
      f"reproduce: no {error.filename or error}: these points are derived from their authors' runs; --data=DIR or"
      " $BIGMODEL_SCALING_DATA says where they are"
    ) from error
