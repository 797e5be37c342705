"""Initial weights that are taken from another run (`train.init_from`)."""

import ast
import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from bigmodel import models, optim
from bigmodel.config import Config, require
from bigmodel.errors import UserError
from bigmodel.files import absolute
from bigmodel.models.layers.embedding import padded
from bigmodel.parallel import hosts
from bigmodel.train import parameters
from bigmodel.train.checkpoint import Checkpoints, read_seal, to_flat
from bigmodel.train.configs import read_config
from bigmodel.train.imported_runs import is_imported, text_ends
from bigmodel.train.parameters import PREFIX
from bigmodel.train.step import State
from bigmodel.types import Params

log = logging.getLogger("bigmodel")
# Fields of a model that may differ from those of the weights' run without a warning: they only affect training, or
# parameters of another shape follow from them.
FREE = ("dropout", "expert_capacity", "expert_group", "vocab", "inputs", "outputs", "head", "tie_embeddings")


@dataclasses.dataclass(frozen=True)
class _Source:
  """The checkpoint that `train.init_from` refers to."""

  step: int
  sha256: str  # of its parameters
  fingerprints: Mapping[str, str]  # 'shape dtype fingerprint' of each parameter, by name


def _source(config: Config) -> _Source:
  """The newest checkpoint of the folder, or the one that init_sha256 names. Reads seals and no arrays."""
  source, wanted = config.train.init_from, config.train.init_sha256
  folder = absolute(source)
  require((folder / "config.json").exists(), f"config.train.init_from: {source} holds no run (no config.json)")
  steps = sorted((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), reverse=True)
  for step in steps:
    try:
      arrays = read_seal(folder / "checkpoints" / str(step)).arrays
    except ValueError:
      continue
    fingerprints = {name.removeprefix(PREFIX): mark for name, mark in arrays.items() if name.startswith(PREFIX)}
    sha256 = hashlib.sha256(json.dumps(fingerprints, sort_keys=True).encode()).hexdigest()
    if wanted in ("", sha256):
      _require_no_divergence(arrays, source, step)
      return _Source(step, sha256, fingerprints)
  raise UserError(
    f"config.train.init_from: {source} has no " + (f"weights {wanted[:12]}..." if wanted else "sound checkpoint")
  )


def _require_no_divergence(arrays: Mapping[str, str], source: str, step: int) -> None:
  """Raises `UserError` if the fingerprints of a seal show that its run had diverged. Reads no arrays."""
  name, never = "diverged_at", np.int32(-1)
  expected = hosts.fingerprints({name: never})[name]
  require(
    arrays.get(name, expected) == expected,
    f"config.train.init_from: {source}: the run had diverged when its checkpoint of step {step} was saved",
  )


def resolve(config: Config) -> None:
  """Sets `train.init_sha256`, in place, to the sha256 of the weights that `train.init_from` refers to."""
  if config.train.init_from:
    source = _source(config)
    config.train.init_sha256 = source.sha256
    parameters.warn_of_divergence(config.train.init_from, source.step)
    _warn_of_differences(config)


def _warn_of_differences(config: Config) -> None:
  """Warns if the model computes something else with the weights than the run that they come from."""
  source = read_config(config.train.init_from)
  if source.model.family != config.model.family:
    return
  for name in sorted(set(config.model) & set(source.model) - set(FREE)):
    ours, theirs = config.model[name], source.model[name]
    if ours != theirs and not (name == "positions" and isinstance(ours, int)):
      _warn(f"config.model.{name}: {ours!r}, and the weights of {config.train.init_from} are for {theirs!r}")


@functools.cache  # every run of a study would repeat the warning
def _warn(text: str) -> None:
  log.warning("%s", text)


def check(config: Config) -> None:
  """Raises `UserError`, before anything compiles, for weights that do not fit and patterns that match no parameter."""
  for name in ("init_fresh", "init_sha256"):
    require(
      bool(config.train.init_from) or not config.train[name],
      f"config.train.{name}: has no effect without train.init_from",
    )
  rules = {field: optim.patterns.parse(field, config.optim[field]) for field in ("rates", "decays")}
  if not (config.optim.frozen or config.train.init_from or any(rules.values())):
    return
  names = sorted(parameters.shapes_of(config))
  patterns = {f"optim.{field}": [pattern for pattern, _ in rule] for field, rule in rules.items()}
  patterns |= {"optim.frozen": config.optim.frozen, "train.init_fresh": config.train.init_fresh}
  for field, of_field in patterns.items():
    for pattern in of_field:
      _check_pattern(field, pattern, names)
  frozen = tuple(config.optim.frozen)
  require(
    bool(optim.trainable(dict.fromkeys(names), frozen)),
    f"config.optim.frozen: {frozen} matches every parameter, so none is left to train",
  )
  if config.train.init_from:
    _check_tokenizer(config)
    _check_context(config)
    _check_shapes(config)


def _check_pattern(field: str, pattern: str, names: list[str]) -> None:
  try:
    re.compile(pattern)
  except (re.error, TypeError) as error:
    raise UserError(f"config.{field}: {pattern!r} is not a regular expression: {error}") from error
  require(
    any(re.search(pattern, name) for name in names),
    f"config.{field}: no parameter matches {pattern!r}; there are {', '.join(names)}",
  )


def _learned_positions(config: Config) -> set[str]:
  """The parameters that have a row for each position of a text; a shorter context uses the first of their rows."""
  if config.data.kind != "text":
    return set()
  return {name for name, label in models.labels(config) if label.axes[:1] == ("positions",)}


def _check_context(config: Config) -> None:
  """Raises `UserError` for contexts in which imported weights would compute something else than the original model."""
  ends = text_ends(config.train.init_from) if config.data.kind == "text" else None
  require(
    ends is None or ends.limit is None or config.data.context <= ends.limit,
    f"config.data.context: {config.data.context}; the weights of {config.train.init_from} are for contexts of up to"
    f" {ends.limit if ends else 0} tokens (see the note of `import`)",
  )


def _check_shapes(config: Config) -> None:
  """Raises `UserError` unless the weights have every parameter that is not in `train.init_fresh`, in its shape."""
  positions = _learned_positions(config)
  stored = {name: ast.literal_eval(mark[: mark.index(")") + 1]) for name, mark in _source(config).fingerprints.items()}
  vocab = read_config(config.train.init_from).model.get("vocab")
  tables, where = models.real_rows(config), f"config.train.init_from: {config.train.init_from}"
  for name, expected in parameters.real_shapes(config).items():
    if _is_fresh(config, name):
      continue
    require(name in stored, f"{where} has no {name!r}; name it in train.init_fresh to initialize it anew")
    shape = stored[name]
    if name in tables and vocab and shape[0] == padded(vocab):  # tables of earlier versions have no padding
      shape = (vocab, *shape[1:])
    if name in positions and shape[1:] == expected[1:]:
      require(
        shape[0] >= expected[0],
        f"config.data.context: {expected[0]} positions are more than the {shape[0]} that the weights of"
        f" {config.train.init_from} have; choose a shorter context, or name {name!r} in train.init_fresh",
      )
      continue
    require(
      shape == expected,
      f"{where}: {name!r} has the shape {shape}, not {expected}; name it in train.init_fresh to initialize it anew",
    )


def _check_tokenizer(config: Config) -> None:
  """Raises `UserError` unless the tokenizer is the one that the weights were trained with."""
  if config.data.kind != "text":
    return
  source, tokenizer = config.train.init_from, config.data.tokenizer
  if is_imported(source):
    file = Path(str(absolute(source))) / "tokenizer.json"
    same = Path(tokenizer).is_file() and file.is_file() and Path(tokenizer).read_bytes() == file.read_bytes()
    require(same, f"config.data.tokenizer: {tokenizer!r}; the weights of {source} are for {file}")
  else:
    required = read_config(source).data.tokenizer
    require(
      required == tokenizer, f"config.data.tokenizer: {tokenizer!r}; the weights of {source} are for {required!r}"
    )


def _is_fresh(config: Config, name: str) -> bool:
  """Whether a parameter is initialized anew, while others are taken from another run."""
  return any(re.search(pattern, name) for pattern in config.train.init_fresh)


def start(config: Config, state: State, optimizer_state: Callable[[Params], optim.State]) -> State:
  """The initial state of a run, with the weights of `train.init_from` where it is set.

  `optimizer_state` makes the initial state of the optimizer from parameters, of which some optimizers keep a copy.
  """
  source = config.train.init_from
  if not source:
    return state
  store = Checkpoints(absolute(source) / "checkpoints")
  step = _source(config).step
  wanted = {name: x for name, x in to_flat(state.params).items() if not _is_fresh(config, name)}
  weights = parameters.evaluated(read_config(source), store, step, wanted)
  store.close()
  parameters.require_finite(weights, f"config.train.init_from: {source}: checkpoint of step {step}")

  for name in _learned_positions(config) & weights.keys():
    weights[name] = weights[name][: wanted[name].shape[0]]

  def take(path: jax.tree_util.KeyPath, initial: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return initial if _is_fresh(config, name) else jax.device_put(weights[name], initial.sharding)

  params = jax.tree_util.tree_map_with_path(take, state.params)
  return dataclasses.replace(state, params=params, opt_state=optimizer_state(params))
