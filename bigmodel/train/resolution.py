"""Checks the fields of a config together, and fills in those that are derived from its data."""

import math
from typing import cast

import jax

from bigmodel import data, hardware, models, optim, parallel, tasks, train
from bigmodel.config import Config, flatten, nearest, require
from bigmodel.data import pipeline
from bigmodel.data.pipeline import Data
from bigmodel.declarations import LARGEST_WHOLE
from bigmodel.errors import UserError
from bigmodel.train import configs, stages, weights

BYTE_VOCABULARY = 257  # of the tokenizer `bytes`: 256 bytes and the separator


def check(config: Config) -> None:
  """Raises `UserError` for the first field that is unknown, missing or invalid. Reads no data and compiles nothing."""
  family, task = config.model.family, config.task.name
  declared, given = configs.declared(family, task, config.optim.name), flatten(config)
  start = f"default_config({family!r}, {task!r})"
  for name in given:
    if (
      name not in declared
    ):  # only then, because finding the nearest name is slow and a study checks thousands of configs
      raise UserError(f"config.{name}: no such field{nearest(name, declared)}")
    problem = configs.wrong_type(given[name], declared[name].default)
    require(not problem, f"config.{name}: {problem}")
  from_user = {f"optim.{name}" for name in optim.declared(config.optim.name).keys() - optim.declared().keys()}
  for name in declared.keys() - from_user:  # those of a user's optimizer are added when the config is resolved
    require(name in given, f"config.{name}: missing; begin with {start}")
  for name, value in given.items():
    problem = declared[name].problem(value) if name == "seed" else declared[name].unusable(value)
    require(not problem, f"config.{name}: {problem}")
  for room in (models, tasks, data, optim, train, parallel):
    room.check(config)
  for stage in stages.of(config)[:-1]:
    require(stage.stop <= LARGEST_WHOLE, f"config.train.stages: {stage.stop:.3g} steps; at most {LARGEST_WHOLE:,}")
    for room in (models, tasks, optim):
      room.check(stage.config)


def resolve(config: Config, corpus: Data) -> Config:
  """A copy with every derived field filled in from the data; the id of a run is the hash of this config."""
  resolved = config.copy_and_resolve_references()
  configs.complete_names(resolved)
  resolved.data.sha256 = corpus.sha256
  facts = corpus.facts | {"context": data.unit(resolved)}
  models.resolve(resolved.model, facts)
  optim.parametrization.resolve(resolved, config, facts)
  tasks.resolve(resolved.task, corpus.facts)
  for name in ("vocab", "outputs"):
    least = cast(int, corpus.facts.get(name, 0))
    if name == "vocab" and resolved.task.get("mask_token", 0) < 0:
      least += 1  # the mask is an additional token
    require(
      not least or resolved.model[name] >= least,
      f"config.model.{name}: {resolved.model.get(name)} is less than the {least} that the data need",
    )
  require(
    not corpus.facts.get("categories") or "categories" in resolved.model,
    f"config.data.encode: codes are for the tabular family; a {resolved.model.family} takes one_hot",
  )
  weights.resolve(resolved)
  if resolved.data.kind == "examples":
    given, available = tuple(resolved.model.inputs), corpus.facts["inputs"]
    require(given == available, f"config.model.inputs: {given}; the examples are {available}")
  return resolved


def resolve_without_data(config: Config) -> Config:
  """A copy with every field filled in that can be derived without data; the vocabulary follows from the tokenizer."""
  resolved = config.copy_and_resolve_references()
  configs.complete_names(resolved)
  facts = {"inputs": (), "outputs": 0, "context": data.unit(resolved)}
  if resolved.data.kind == "text":
    facts["vocab"] = BYTE_VOCABULARY if resolved.data.tokenizer == "bytes" else resolved.data.vocab_size
  else:
    require(
      bool(resolved.model.inputs and resolved.model.outputs),
      "config.model: set inputs and outputs, which cannot be derived without data",
    )
  models.resolve(resolved.model, facts)
  optim.parametrization.resolve(resolved, config, facts)
  return resolved


def check_without_data(config: Config) -> None:
  """Raises `UserError` for the first value that a resolved config cannot have, apart from those of its data."""
  for room in (models, tasks, optim, train):
    room.check(config)


def resolve_for_plan(config: Config, devices: int) -> Config:
  """A resolved and checked copy that can be planned for this number of devices without its data."""
  resolved = resolve_without_data(config)
  check_without_data(resolved)
  parallel.check(resolved, devices)
  return resolved


def check_resolved(config: Config, corpus: Data) -> None:
  """Raises `UserError` if a resolved config's shapes do not fit, or its data has too few rows for a stage."""
  _check_memory(config)
  parallel.check(config)
  for stage in stages.of(config):
    for room in (models, tasks):
      room.check(stage.config)
    optim.parametrization.multiples(stage.config)  # raises for models without rules
    weights.check(stage.config)
    parallel.check(stage.config)
    pipeline.train_pipeline(stage.config, corpus, stage.stop - stage.first, stage.before)


def _check_memory(config: Config) -> None:
  """Refuses a model or a batch that cannot fit into the memory of all devices, before anything is traced.

  Counts only the parameters, their gradients and the inputs; a config that passes may still be too large.
  """
  available = hardware.memory() * jax.device_count()
  values = models.counts_of(config).params_total
  require(
    8 * values <= available,
    f"config.model: {values:.3g} parameters and their gradients take {_bytes(8 * values)}, more than the"
    f" {_bytes(available)} of memory here; use a smaller model or more devices",
  )
  for group, rows in (("train", config.train.batch_size // config.train.accumulate), ("eval", config.eval.batch_size)):
    inputs = rows * (data.unit(config) if config.data.kind == "text" else math.prod(config.model.inputs))
    require(
      4 * inputs <= available,
      f"config.{group}.batch_size: {rows:,} rows take {_bytes(4 * inputs)}, more than the {_bytes(available)} of memory"
      " here; use fewer rows",
    )


def _bytes(number: float) -> str:
  return f"{number / 1e9:.3g} GB"


def held_out_rows(config: Config) -> pipeline.EvalRows:
  """The held-out rows of a resolved config. Raises `UserError` for data that its model cannot read."""
  data.check(config)
  corpus = pipeline.prepare(config)
  resolve(config, corpus)
  return pipeline.eval_rows(config, corpus)
