"""The public API: what a notebook or a script needs. `import bigmodel` offers every public name of this file.

    import bigmodel

    runs = bigmodel.load_study("runs/quickstart", role="fit")      # a polars DataFrame, one row per run
    forecast = bigmodel.forecast(runs, at=[1e13])                  # the loss at budgets that were not run
    bigmodel.plot(forecast).show()

    config = bigmodel.default_config("mlp")
    bigmodel.use_arrays(config, inputs, targets)                   # NumPy arrays
    model = bigmodel.train_run(config, "runs/mine")
    probabilities = bigmodel.predict(model, inputs)

No function has the name of a room of the package (`bigmodel.train`, `bigmodel.data`, ...), because importing the room
would replace the function. Designs and studies are in `bigmodel.study`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl

from bigmodel import config as configs
from bigmodel import hardware
from bigmodel.config import Config
from bigmodel.data import in_memory
from bigmodel.errors import Interrupted as Interrupted
from bigmodel.errors import UserError as UserError
from bigmodel.laws import arguments, notebook
from bigmodel.laws.fitting import Fit as LawFit
from bigmodel.laws.notebook import Forecast
from bigmodel.laws.schedules import notebook as loss_curves
from bigmodel.laws.schedules import reading
from bigmodel.laws.schedules.notebook import CurveLaws
from bigmodel.report import forecasts
from bigmodel.study import curves as study_curves
from bigmodel.study import study as studies
from bigmodel.study import table
from bigmodel.study.study import Study
from bigmodel.train import configs as run_configs
from bigmodel.train import evaluate as evaluation
from bigmodel.train import prediction, single_run, trained
from bigmodel.train.evaluate import Evaluation
from bigmodel.train.run import interruptible
from bigmodel.train.trained import Continuation, Sampling, Trained

# A table of points: a polars DataFrame, columns by name, or the path of a CSV file.
Points = pl.DataFrame | Mapping[str, Sequence[float] | np.ndarray] | str | Path
# The columns that `load_study` gives to the quantities of a law.
STUDY_COLUMNS: Mapping[str, str] = {"N": "params_total", "D": "tokens"}
# The columns of a table of loss curves.
CURVE_COLUMNS: Mapping[str, str] = {"curve": "curve", "step": "step", "lr": "lr", "loss": "loss"}
DEFAULT_SAMPLING = Sampling()


def load_study(folder: str | Path, role: str = "") -> pl.DataFrame:
  """Loads the records of a study or sweep, one row per run that has ended.

  Args:
    folder: the study's folder, as given to `bigmodel study --workdir`.
    role: keep only the runs planned for this role: `fit`, `seed` (repeats), `scan` (learning rates) or `target`.

  Returns:
    A DataFrame, in the order of the study's plan, with `run_id`, `roles` (a list), `status` (`finished`, `diverged`,
    `failed` or `stopped`), the settings that the study varies under their names in the config (`model.width`, ...),
    and the fields of `record.json`: `params_total`, `tokens`, `flops_6nd` and other conventions, `loss_eval` (nats),
    `seconds`, ... Metrics of the task are `metric.NAME`.

  Raises:
    UserError: the folder holds no study, or no run has the role.

  Example:
    >>> runs = bigmodel.load_study("runs/quickstart", role="fit")
    >>> list(runs["status"].unique())
    ['finished']
    >>> best = runs.sort("loss_eval")[0, "model.width"]
  """
  return table.load(folder, role)


def run_study(config: Config, study: Study, workdir: str | Path, quiet: bool = True) -> pl.DataFrame:
  """Runs a study or sweep, or what is missing of it: trains its runs, fits its laws, tests its forecast, reports.

  The folder is that of `bigmodel study`: calling this again trains only what is missing, and every verb works on it.

  Args:
    config: the config that all runs start from; see `default_config` and `load_config`.
    study: the design, laws and target: a `bigmodel.study.Study`. `laws=()` makes it a sweep.
    workdir: the study's folder. One that holds another study is refused.
    quiet: show no progress.

  Returns:
    The records of all runs, as `load_study`. The report is `report.html` in the folder.

  Raises:
    UserError: the study or one of its configs is invalid, or the folder belongs to another study.
    Interrupted: Ctrl-C or SIGTERM arrived. Everything is saved; call again to resume.

  Example:
    >>> from bigmodel.study import Grid, Study
    >>> config = bigmodel.default_config("mlp")
    >>> bigmodel.use_arrays(config, np.random.default_rng(0).normal(size=(200, 4)), np.arange(200) % 2)
    >>> config.train.steps, config.model.hidden = 5, (8,)
    >>> sweep = Study("rates", "Which rate is best?", Grid({"optim.lr": (1e-3, 1e-2)}), laws=())
    >>> runs = bigmodel.run_study(config, sweep, "runs/rates")
    >>> runs["optim.lr"].to_list()
    [0.001, 0.01]
  """
  _start()
  with interruptible() as stop:
    studies.run_study(studies.prepare(config, study, workdir), quiet, stop)
  return load_study(workdir)


@arguments.named()
def fit(
  points: Points,
  law: str = "",
  columns: Mapping[str, str] = STUDY_COLUMNS,
  loss: str = "loss_eval",
  stderr: str = "",
) -> LawFit:
  """Fits one law to the losses of runs, with 400 bootstrap draws of its parameters.

  Args:
    points: one row per run: a polars DataFrame, columns by name, or the path of a CSV.
    law: a name in `bigmodel/laws/*_forms.py`, or `FILE.py:NAME`. The default is `chinchilla`, or `power_offset` where
      the only column is `x`.
    columns: the column of each quantity of the law: `N` (parameters), `D` (tokens), `C` (FLOPs), `x` (any single
      scale) or others that a law names. Of N, D and C, the one without a column follows from C = 6 N D.
    loss: the column of the loss. Losses and scales are positive.
    stderr: the column of the losses' standard errors, by whose inverse squares runs are weighted; `""` weighs all
      runs the same.

  Returns:
    The fit: `params` (a dict), `intervals(level=0.9)` of every parameter, and `predict(N, D)`, or whichever
    quantities the law has, in the law's order.

  Raises:
    UserError: a column is missing or holds a number that is not positive, or there are too few points for the law.

  Example:
    >>> N, D = np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5))
    >>> points = {"N": N.ravel(), "D": D.ravel(), "loss": (1.7 + 400 / N**0.34 + 400 / D**0.28).ravel()}
    >>> fit = bigmodel.fit(points, "chinchilla", columns={"N": "N", "D": "D"}, loss="loss")
    >>> round(fit.params["alpha"], 2)
    0.34
    >>> loss = fit.predict(1e10, 1e12)
  """
  _start()
  return notebook.fit(points, notebook.Columns(columns, loss, stderr), law)


@arguments.named()
def forecast(
  points: Points,
  at: Sequence[float | tuple[float, float]],
  columns: Mapping[str, str] = STUDY_COLUMNS,
  loss: str = "loss_eval",
  group: str = "",
  laws: Sequence[str] = (),
) -> Forecast:
  """Forecasts losses at scales that have not been run, with intervals, as `bigmodel forecast` does.

  Over N and D the forecast is the weighted mean of several laws; over a single scale `x` it is the mean of two power
  laws (`docs/laws.md`).

  Args:
    points: one row per run: a polars DataFrame, columns by name, or the path of a CSV.
    at: where. Over N and D each entry is a budget in FLOPs, which is spent on the N and D of the lowest forecast
      loss, or a pair (N, D). Over `x` each entry is an x.
    columns: the column of each quantity: two or three of `N`, `D` and `C`; or `x` alone.
    loss: the column of the loss.
    group: the column that separates curves or sets of runs, each of which is forecast by itself.
    laws: names of the laws to combine, or `FILE.py:NAME`; the default is three laws. Only over N and D.

  Returns:
    The forecast: `table` has a row for each entry of `at` (and each group) with the scales, `predicted`, and the ends
    of the intervals, `low50`, `high50`, ..., `low95`, `high95`, and `beyond`, the scale as a factor of the largest
    among the points (of the smallest, below them). `weights` are those of the laws.

  Raises:
    UserError: as `fit`, or an entry of `at` is not what the columns ask for.

  Example:
    >>> x = np.geomspace(1e4, 1e8, 16)
    >>> curve = {"examples": x, "error": 0.1 + x**-0.3}
    >>> forecast = bigmodel.forecast(curve, at=[1e9], columns={"x": "examples"}, loss="error")
    >>> forecast.table.columns[:3]
    ['x', 'predicted', 'low50']
    >>> round(forecast.table[0, "predicted"], 2)
    0.1
  """
  _start()
  return notebook.forecast(points, notebook.Columns(columns, loss, group=group), at, laws)


@arguments.named()
def fit_curves(
  curves: Points,
  columns: Mapping[str, str] = CURVE_COLUMNS,
  group: str = "",
  laws: Sequence[str] = (),
  warmup: int | None = None,
) -> CurveLaws:
  """Fits laws of the learning-rate schedule to whole loss curves of runs of one model (`docs/loss_curves.md`).

  Args:
    curves: a row for each logged step, as a polars DataFrame, columns by name, or the path of a CSV; or the folder of
      a study, or of several runs, whose metrics are read.
    columns: the column of each quantity: `curve` (which run a row belongs to), `step`, `lr` and `loss`, and for budgets
      `N` (parameters), `D` (tokens up to the row) or `C` (FLOPs up to the row). Of a folder only `loss` is used: it may
      be `loss_eval` or `loss_train`, and is otherwise that of evaluations, where there are enough.
    group: for a folder whose runs differ in more than schedule, length and seeds, the set of runs to fit. The error
      without it lists the sets.
    laws: names of laws of the schedule; the default is two of them.
    warmup: steps over which the rate rose before the first row of a curve (default: up to that row).

  Returns:
    The fitted laws: `forecast(schedule, at)` returns a `Forecast`, which `plot` draws, `propose_decay(steps=...)` the
    best decay for a budget, and `params` the parameters.

  Raises:
    UserError: a column is missing, there are fewer than two curves with different schedules or too few rows, or no
      curve shows what a decay does.

  Example:
    >>> steps = np.arange(10, 1001, 10)
    >>> constant, falling = np.full(100, 0.01), 0.01 * (1 - steps / 1001)
    >>> loss = 2 + 3 / steps**0.5
    >>> curves = {
    ...   "curve": np.repeat(["constant", "falling"], 100),
    ...   "step": np.tile(steps, 2),
    ...   "lr": np.concatenate([constant, falling]),
    ...   "loss": np.concatenate([loss, loss - 10 * (0.01 - falling)]),
    ... }
    >>> fitted = bigmodel.fit_curves(curves)
    >>> forecast = fitted.forecast("wsd:steps=2000,decay=.2")
    >>> forecast.table.columns[:2]
    ['x', 'predicted']
    >>> best = fitted.propose_decay(steps=2000).best
    >>> best.predicted <= forecast.table[0, "predicted"]
    True
  """
  _start()
  named = loss_curves.columns_of({**CURVE_COLUMNS, **columns})
  if isinstance(curves, str | Path) and Path(curves).is_dir():
    read = study_curves.read(curves, "" if named.loss == CURVE_COLUMNS["loss"] else named.loss)
  elif isinstance(curves, str | Path):
    read = reading.read(str(curves), named, warmup)
  else:
    read = reading.of_table(loss_curves.table_of(curves), named, warmup)
  return loss_curves.fit(read, group, laws)


def plot(forecast: Forecast) -> go.Figure:
  """Draws a forecast: the points, the fitted curve with its 90% interval, and the forecast losses.

  Args:
    forecast: what `bigmodel.forecast` returned.

  Returns:
    A plotly figure, which a notebook shows; `figure.write_html("forecast.html")` saves it. The horizontal axis is
    compute in FLOPs (or x), the vertical one the loss.

  Example:
    >>> figure = bigmodel.plot(forecast)
    >>> figure.write_html("forecast.html")
  """
  return forecasts.figure(forecast)


def default_config(family: str = "decoder", task: str = "") -> Config:
  """Returns every field of a config with its default value.

  Args:
    family: the model family (`bigmodel models` lists them), or `FILE.py:NAME` for a Flax module of your own.
    task: the task; the default is the first one that the family has.

  Returns:
    An `ml_collections.ConfigDict` with the groups `model`, `task`, `data`, `optim`, `parallel`, `train`, `eval`, and
    `seed`. Fields are changed by assignment; a field that does not exist is refused when the config is used.

  Raises:
    UserError: the family or the task does not exist.

  Example:
    >>> config = bigmodel.default_config("mlp")
    >>> config.model.hidden = (32, 32)
    >>> config.optim.lr = 1e-3
  """
  return run_configs.default_config(family, task)


def load_config(spec: str, overrides: Iterable[str] = ()) -> Config:
  """Loads the config of a config file.

  Args:
    spec: `FILE.py` or `FILE.py:ARGUMENT`, as `--config` takes it.
    overrides: `"group.field=value"`, as `--config.group.field=value` on the command line.

  Returns:
    The config that the file's `get_config(ARGUMENT)` returns, with the overrides applied.

  Raises:
    UserError: the file does not load, or a field does not exist or has another type.

  Example:
    >>> config = bigmodel.load_config("configs/quickstart.py", ["model.width=96", "train.steps=2000"])
    >>> config.model.width
    96
  """
  if isinstance(overrides, Mapping | str):
    raise UserError('overrides: give a list of "group.field=value"')
  return run_configs.overridden(configs.load(spec)[0], overrides)


def use_arrays(
  config: Config,
  inputs: np.ndarray,
  targets: np.ndarray,
  group: np.ndarray | None = None,
  time: np.ndarray | None = None,
) -> None:
  """Makes NumPy arrays the data of a config, in place.

  The arrays are kept in the cache (`$BIGMODEL_CACHE`) under the hash of their content, which the config names. So runs
  of the same content have the same id, and runs of other arrays another one. A fifth of the examples is held out for
  evaluation; `config.data.split`, `folds` and `fold` choose another split.

  Args:
    config: a config of a family for examples, such as `default_config("mlp")`.
    inputs: features [examples, features] or images [examples, height, width, channels]; finite numbers.
    targets: classes 0, 1, ... or, for regression, numbers: [examples].
    group: values that a split may not separate [examples], with `config.data.split = "group"`.
    time: numbers that order the examples [examples], with `config.data.split = "time"`.

  Raises:
    UserError: lengths do not agree, numbers are not finite, or the config is for text.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> inputs = rng.normal(size=(200, 4))
    >>> targets = (inputs[:, 0] > 0).astype(int)
    >>> config = bigmodel.default_config("mlp")
    >>> bigmodel.use_arrays(config, inputs, targets)
  """
  in_memory.use_arrays(config, inputs, targets, group, time)


def train_run(config: Config, workdir: str | Path, quiet: bool = True) -> Trained:
  """Trains the run of a config in a folder, or what is missing of it, and loads the trained model.

  The folder is that of `bigmodel train`: calling this again resumes an interrupted run and returns at once for one
  that has ended, and every verb of the command works on it.

  Args:
    config: see `default_config` and `load_config`. It is not changed.
    workdir: the run's folder. One that holds a run of another config is refused.
    quiet: show no progress.

  Returns:
    The trained model: `params` (nested dicts of arrays), `record` (the facts about the run: `loss_eval`, sizes, FLOPs,
    seconds), `config` (with everything derived filled in), `step` and `workdir`.

  Raises:
    UserError: the config is invalid, the folder belongs to another run, or the run diverged before it saved anything.
    Interrupted: Ctrl-C or SIGTERM arrived. Everything is saved; call again to resume.

  Example:
    >>> config.train.steps, config.model.hidden = 20, (8,)
    >>> model = bigmodel.train_run(config, "runs/arrays")
    >>> model.step
    20
  """
  _start()
  single_run.train_single_run(config, workdir, quiet)
  return load_run(workdir)


def load_run(workdir: str | Path) -> Trained:
  """Loads the trained model of a run's folder, from its newest checkpoint that passes its checksums.

  Args:
    workdir: a folder of `bigmodel train`, `bigmodel import` or `train_run`, or a folder in a study's `runs/`.

  Returns:
    The trained model, as `train_run`.

  Raises:
    UserError: there is no run, no checkpoint passes its checksums, or parameters are not finite.

  Example:
    >>> model = bigmodel.load_run("runs/arrays")
    >>> sorted(model.params)
    ['layer_0', 'layer_0_bias', 'output', 'output_bias']
  """
  _start()
  return trained.load(str(workdir))


def evaluate(model: Trained) -> Evaluation:
  """Evaluates a trained model on the held-out data of its run.

  Args:
    model: see `train_run` and `load_run`.

  Returns:
    The evaluation: `loss` (nats per token or example, or squared error for regression), `loss_stderr`,
    `bits_per_byte` (NaN where there is no text), `metrics` with 90% `intervals`, and `details` (tables such as a
    confusion matrix).

  Raises:
    UserError: the data of the run are no longer there, or have changed.

  Example:
    >>> result = bigmodel.evaluate(model)
    >>> 0 <= result.metrics["accuracy"] <= 1
    True
  """
  rows = trained.held_out_rows(model)
  return evaluation.evaluate(model.program, model.params, model.config, rows)


def predict(model: Trained, inputs: np.ndarray) -> np.ndarray:
  """Predicts the targets of new examples: class probabilities, or numbers.

  Args:
    model: a classification or regression model of arrays or images.
    inputs: as the run's data were before normalisation, examples first.

  Returns:
    For classification the probabilities [examples, classes]; for regression the values [examples], or the quantiles
    [examples, quantiles], in the units of the training targets.

  Raises:
    UserError: the model has another task, its data are a table with encoded columns, or the shape of the inputs is
      not that of its examples.

  Example:
    >>> probabilities = bigmodel.predict(model, inputs[:3])
    >>> probabilities.shape
    (3, 2)
  """
  return prediction.predict(model, inputs)


def generate(model: Trained, prompt: str, sampling: Sampling = DEFAULT_SAMPLING) -> list[Continuation]:
  """Continues a text with a trained decoder.

  Args:
    model: a decoder, trained or imported.
    prompt: the text to continue. Its tokens and the new ones fit into the context of the model.
    sampling: `Sampling(tokens=64, temperature=1.0, top_k=0, top_p=1.0, beams=1, samples=1, seed=0)`; a temperature of
      0 takes the likeliest token each time.

  Returns:
    `sampling.samples` continuations, or `sampling.beams` of them, each with its `text` and its `log_probability`
    under the model.

  Raises:
    UserError: the model is not a decoder, or the text is too long for it.

  Example:
    >>> decoder = bigmodel.load_run("runs/decoder")
    >>> (continuation,) = bigmodel.generate(decoder, "the ", bigmodel.Sampling(tokens=8, temperature=0))
    >>> text = continuation.text
  """
  return trained.generate(trained.load(model.workdir, generating=True), prompt, sampling)


@functools.cache
def _start() -> None:
  """Prepares JAX as the command does, unless the process has used it already."""
  try:
    hardware.setup()
  except RuntimeError:  # JAX has devices already and keeps them
    return
