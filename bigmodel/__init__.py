"""bigmodel: scaling experiments in JAX, from one config file to a decision.

The names in `__all__` are the public API (see `bigmodel/api.py`). They are imported when they are first used, so that
`import bigmodel` is fast.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
  # isort: off
  from bigmodel.api import Continuation, CurveLaws, Evaluation, Forecast, Interrupted, LawFit, Sampling, Trained
  from bigmodel.api import UserError, default_config, evaluate, fit, fit_curves, forecast, generate, load_config
  from bigmodel.api import load_run, load_study, plot, predict, run_study, train_run, use_arrays
  # isort: on

__all__ = [
  "Continuation",
  "CurveLaws",
  "Evaluation",
  "Forecast",
  "Interrupted",
  "LawFit",
  "Sampling",
  "Trained",
  "UserError",
  "default_config",
  "evaluate",
  "fit",
  "fit_curves",
  "forecast",
  "generate",
  "load_config",
  "load_run",
  "load_study",
  "plot",
  "predict",
  "run_study",
  "train_run",
  "use_arrays",
]


def __getattr__(name: str) -> object:
  if name not in __all__:
    raise AttributeError(f"module 'bigmodel' has no attribute {name!r}")
  from bigmodel import api

  return getattr(api, name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
