"""A config of all rooms: its fields, its checks, what follows from the data, and the run that it says."""

from typing import Any, cast

from etils import epath

from bigmodel import data, models, optim, parallel, record, tasks, train
from bigmodel.config import Config, flatten, nearest, require
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.parallel import hosts
from bigmodel.train import loop, stages, weights, whole
from bigmodel.train.display import Display
from bigmodel.train.run import Run, interruptible, open_folder
from bigmodel.train.whole import default_config as default_config


def check(config: Config) -> None:
  """Every room's check; refuses before anything is read, compiled or written."""
  family, task = config.model.family, config.task.name
  known, given = whole.declared(family, task, config.optim.name), flatten(config)
  start = f"default_config({family!r}, {task!r})"
  for name in given:
    if name not in known:  # the nearest is looked for only then: a study asks this thousands of times
      raise UserError(f"config.{name}: no such field{nearest(name, known)}")
  from_user = {f"optim.{name}" for name in optim.declared(config.optim.name).keys() - optim.declared().keys()}
  for name in known.keys() - from_user:  # those are added when the config is resolved
    require(name in given, f"config.{name}: missing; begin with {start}")
  for room in (models, tasks, data, optim, train, parallel):
    room.check(config)
  for stage in stages.of(config)[:-1]:
    for room in (models, tasks, optim):
      room.check(stage.config)


def resolve(config: Config, corpus: Data) -> Config:
  """A copy with everything derived filled in: this is what a run's id hashes."""
  resolved = config.copy_and_resolve_references()
  whole.complete_names(resolved)
  resolved.data.sha256 = corpus.sha256
  facts = corpus.facts | {"context": data.unit(resolved)}
  models.resolve(resolved.model, facts)
  optim.parametrization.resolve(resolved, config, facts)
  tasks.resolve(resolved.task, corpus.facts)
  for name in ("vocab", "outputs"):
    least = cast(int, corpus.facts.get(name, 0))
    if name == "vocab" and resolved.task.get("mask_token", 0) < 0:
      least += 1  # the mask is a token of its own
    require(
      not least or resolved.model[name] >= least,
      f"config.model.{name}: {resolved.model.get(name)} is less than the data's {least}",
    )
  require(
    not corpus.facts.get("categories") or "categories" in resolved.model,
    f"config.data.encode: codes are for the tabular family; a {resolved.model.family} takes one_hot",
  )
  weights.resolve(resolved)
  if resolved.data.kind == "examples":
    given, have = tuple(resolved.model.inputs), corpus.facts["inputs"]
    require(given == have, f"config.model.inputs: {given}; the examples are {have}")
  return resolved


def resolve_without_data(config: Config) -> Config:
  """A copy with everything derived that needs no data: what their tokenizer would have stands for it."""
  resolved = config.copy_and_resolve_references()
  whole.complete_names(resolved)
  facts: dict[str, Any] = {"inputs": (), "outputs": 0, "context": data.unit(resolved)}
  if resolved.data.kind == "text":
    facts["vocab"] = 257 if resolved.data.tokenizer == "bytes" else resolved.data.vocab_size
  else:
    require(
      bool(resolved.model.inputs and resolved.model.outputs),
      "config.model: set inputs and outputs, which otherwise are the data's",
    )
  models.resolve(resolved.model, facts)
  optim.parametrization.resolve(resolved, config, facts)
  return resolved


def resolve_for_plan(config: Config, devices: int) -> Config:
  """A copy that can be planned without its data: with the model's own vocabulary, or what the tokenizer would have."""
  resolved = resolve_without_data(config)
  for room in (models, tasks, optim, train):
    room.check(resolved)
  parallel.check(resolved, devices)
  return resolved


def held_out_rows(config: Config) -> pipeline.EvalRows:
  """The held-out rows of a resolved config; refuses data that its model cannot read."""
  data.check(config)
  corpus = pipeline.prepare(config)
  resolve(config, corpus)
  return pipeline.eval_rows(config, corpus)


def single_run(config: Config, workdir: epath.PathLike) -> tuple[Run, Data]:
  """A checked run of one config, in `workdir` itself."""
  check(config)
  corpus = pipeline.prepare(config)
  run = Run(resolve(config, corpus), absolute(workdir))
  check_resolved(run.config, corpus)
  return run, corpus


def train_single_run(config: Config, workdir: epath.PathLike, quiet: bool = False, profile: int = 0) -> record.Record:
  """Trains the run of one config, or what is missing of it, and returns its record.

  `profile` is the number of steps of which a trace is written. Several processes that call this train one run together.
  Raises `Interrupted` after a signal, when everything is saved.
  """
  with interruptible() as stop:
    run, corpus = single_run(config, workdir)
    hosts.require_same([flatten(run.config), str(run.folder), profile], "config")
    hosts.require_shared(run.folder)
    hosts.first(lambda: open_folder(run))
    ended = hosts.first(lambda: record.read(run.folder))
    if ended is None:
      with Display(quiet=quiet) as display:
        for note in parallel.notes_here(run.config):
          display.say(note)
        (ended,) = loop.train_runs([run], corpus, display, stop, profile=profile)
  return ended


def check_resolved(config: Config, corpus: Data) -> None:
  """The checks again, now that all is known: what the data decide, heads and the like, and rows for every stage."""
  parallel.check(config)
  for stage in stages.of(config):
    for room in (models, tasks):
      room.check(stage.config)
    optim.parametrization.multiples(stage.config)  # refuses models that it has no rules for
    weights.check(stage.config)
    parallel.check(stage.config)
    pipeline.train_pipeline(stage.config, corpus, stage.stop - stage.first, stage.before)
