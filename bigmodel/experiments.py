"""Runs a file of `experiments/`, which compares the numbers of a paper with ours.

A file defines `reproduce(data)`, which computes its numbers from published points, or `measure(workdir, quiet)`, which
trains. Both return a list of `laws.reproduce.Result`.
"""

from pathlib import Path

from bigmodel.config import load_module, nearest
from bigmodel.errors import UserError
from bigmodel.laws import reproduce

FOLDER = Path(__file__).parents[1] / "experiments"


def find(name: str) -> Path:
  """The file of an experiment, in the folder beside the package; raises `UserError` if the file does not exist."""
  names = sorted(path.stem for path in FOLDER.glob("*.py") if _is_experiment(path))
  if name not in names:
    raise UserError(f"reproduce: no experiment {name!r}{nearest(name, names)}; known: {', '.join(names) or 'none'}")
  return FOLDER / f"{name}.py"


def _is_experiment(path: Path) -> bool:
  text = path.read_text()
  return "def reproduce(" in text or "def measure(" in text


def run(name: str, data: str = "", workdir: str = "", quiet: bool = True) -> tuple[str, list[reproduce.Result]]:
  """Runs an experiment and returns what its file says about it, and its results.

  `data` is the folder of published points, `workdir` the folder of runs that are trained. Empty means the defaults.
  """
  module, _ = load_module(str(find(name)))
  claim = (module.__doc__ or "").strip()
  if hasattr(module, "measure"):
    return claim, module.measure(Path(workdir or f"runs/{name}"), quiet)
  try:
    return claim, module.reproduce(reproduce.data_folder(data))
  except FileNotFoundError as error:
    raise UserError(
      f"reproduce: no file {error.filename or error}; these points are derived from their authors' runs, so that"
      " --data=DIR or $BIGMODEL_SCALING_DATA must say where they are"
    ) from error
