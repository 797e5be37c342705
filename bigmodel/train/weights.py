"""Weights from elsewhere: those of another run, and Hugging Face's files in and out."""

import ast
import dataclasses
import functools
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from bigmodel import config as configs
from bigmodel import models, optim, record
from bigmodel.config import Config, require
from bigmodel.declarations import defaults
from bigmodel.errors import UserError
from bigmodel.files import absolute, read_json, write_json
from bigmodel.models.imported import huggingface
from bigmodel.models.layers.embedding import padded
from bigmodel.parallel import hosts
from bigmodel.parallel.fields import Parallel
from bigmodel.train import stages, whole
from bigmodel.train.checkpoint import Checkpoints, read_seal
from bigmodel.train.run import Run
from bigmodel.train.step import State

log = logging.getLogger("bigmodel")
PREFIX = "params."
IMPORTED = "imported.json"


def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
  """Every parameter of a resolved config's model, by dotted name."""
  return {name: leaf.shape for name, leaf in flat(nn.meta.unbox(models.abstract_parameters(config))).items()}


def real_shapes(config: Config) -> dict[str, tuple[int, ...]]:
  """Every parameter's shape without the padding of its table."""
  rows = models.real_rows(config)
  return {name: (rows.get(name, shape[0]), *shape[1:]) if shape else shape for name, shape in shapes_of(config).items()}


def _padded(array: Any, shape: tuple[int, ...]) -> Any:
  """A table without padding, or any other parameter, as an array of this shape."""
  missing = [(0, wanted - have) for wanted, have in zip(shape, array.shape, strict=True)]
  return np.pad(array, missing) if array.shape != shape else array


def _without_padding(
  config: Config, there: Mapping[str, tuple[int, ...]], prefix: str, wanted: Mapping[str, Any]
) -> dict[str, Any]:
  """Those of `wanted` that are tables which an earlier version saved without padding; `there` are the shapes saved."""
  others = {name: x for name, x in wanted.items() if there.get(f"{prefix}{name}", x.shape) != x.shape}
  rows = models.real_rows(config) if others else {}
  return {name: x for name, x in others.items() if there[f"{prefix}{name}"] == (rows.get(name), *x.shape[1:])}


def require_padding(config: Config, store: Checkpoints, step: int, shapes: Any) -> None:
  """Refuses to resume a run whose tables an earlier version saved without padding."""
  there = store.shapes(step)
  for name, x in _without_padding(config, there, PREFIX, flat(shapes)).items():
    raise UserError(
      f"--workdir: {store.folder.parent}: the checkpoint of step {step} is of an earlier version ({name!r} has the"
      f" shape {there[PREFIX + name]}, not {x.shape}) and cannot be resumed; begin another run with train.init_from"
    )


def flat(params: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _found(config: Config) -> tuple[int, str, dict[str, str]]:
  """`(step, sha256, {parameter: 'shape dtype fingerprint'})` of the weights that `train.init_from` stands for.

  The newest ones of the folder, or those that init_sha256 names. Seals are read, files are not.
  """
  source, wanted = config.train.init_from, config.train.init_sha256
  folder = absolute(source)
  require((folder / "config.json").exists(), f"config.train.init_from: {source} holds no run (no config.json)")
  steps = sorted((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), reverse=True)
  for step in steps:
    try:
      arrays = read_seal(folder / "checkpoints" / str(step))["arrays"]
    except ValueError:
      continue
    marks = {name.removeprefix(PREFIX): mark for name, mark in arrays.items() if name.startswith(PREFIX)}
    sha256 = hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()
    if wanted in ("", sha256):
      _require_no_divergence(arrays, source, step)
      return step, sha256, marks
  raise UserError(
    f"config.train.init_from: {source} has no " + (f"weights {wanted[:12]}..." if wanted else "sound checkpoint")
  )


def _require_no_divergence(arrays: dict[str, str], source: str, step: int) -> None:
  """Refuses a checkpoint whose seal, with these fingerprints, says that its run had diverged. No array is read."""
  name, never = "diverged_at", np.int32(-1)
  expected = hosts.fingerprints({name: never})[name]
  require(
    arrays.get(name, expected) == expected,
    f"config.train.init_from: {source}: the run had diverged when its checkpoint of step {step} was saved",
  )


def require_finite(params: Any, where: str) -> None:
  """Refuses parameters that are not all finite; `where` says which ones they are."""
  finite = lambda x: bool((jnp if isinstance(x, jax.Array) else np).isfinite(x).all())
  bad = [name for name, x in flat(params).items() if not finite(x)]
  if bad:
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise UserError(f"{where}: parameters are not finite ({bad[0]}{more}); the model cannot be used")


def resolve(config: Config) -> None:
  """Fills in, in place, which weights `train.init_from` stands for."""
  if config.train.init_from:
    step, config.train.init_sha256, _ = _found(config)
    warn_of_divergence(config.train.init_from, step)


def warn_of_divergence(workdir: epath.PathLike, step: int) -> None:
  """Warns, once, where a checkpoint is sound and its run ended as diverged all the same."""
  try:
    ended = record.read(absolute(workdir))
  except UserError:  # a record that cannot be read says nothing of a checkpoint that is sound
    return
  if ended is not None and ended.status == "diverged":
    _warn(f"{workdir}: the checkpoint of step {step} is of a run that ended as diverged: {ended.error}")


@functools.cache  # each run of a study comes by
def _warn(text: str) -> None:
  log.warning("%s", text)


def check(config: Config) -> None:
  """Refuses, before anything compiles, weights that do not fit and patterns that match no parameter."""
  for name in ("init_fresh", "init_sha256"):
    require(
      bool(config.train.init_from) or not config.train[name], f"config.train.{name}: is for runs with train.init_from"
    )
  rules = {field: optim.patterns.parse(field, config.optim[field]) for field in ("rates", "decays")}
  if not (config.optim.frozen or config.train.init_from or any(rules.values())):
    return
  names, real, rows = shapes_of(config), real_shapes(config), models.real_rows(config)
  asked = {f"optim.{field}": [pattern for pattern, _ in own] for field, own in rules.items()}
  asked |= {"optim.frozen": config.optim.frozen, "train.init_fresh": config.train.init_fresh}
  for field, patterns in asked.items():
    for pattern in patterns:
      try:
        re.compile(pattern)
      except re.error as error:
        raise UserError(f"config.{field}: {pattern!r} is no regular expression: {error}") from error
      require(
        any(re.search(pattern, name) for name in names), f"config.{field}: no parameter matches {pattern!r}; there are"
        f" {', '.join(sorted(names))}",
      )  # fmt: skip
  frozen = tuple(config.optim.frozen)
  require(
    bool(optim.trainable(dict.fromkeys(names), frozen)),
    f"config.optim.frozen: {frozen} matches every parameter, so that none is left to train",
  )
  if not config.train.init_from:
    return
  _check_tokenizer(config)
  marks = _found(config)[2]
  theirs = {name: ast.literal_eval(mark[: mark.index(")") + 1]) for name, mark in marks.items()}
  vocab = read_config(config.train.init_from).model.get("vocab")
  for name in names:
    if _fresh(config, name):
      continue
    where = f"config.train.init_from: {config.train.init_from}"
    require(name in theirs, f"{where} has no {name!r}; name it in train.init_fresh to begin it anew")
    have = theirs[name]
    if name in rows and vocab and have[0] == padded(vocab):  # tables of earlier versions have no padding
      have = (vocab, *have[1:])
    require(
      have == real[name],
      f"{where}: {name!r} has the shape {have}, not {real[name]}; name it in train.init_fresh to begin it anew",
    )


def _check_tokenizer(config: Config) -> None:
  """Refuses to go on with another tokenizer than the weights were trained with."""
  if config.data.kind != "text":
    return
  source = config.train.init_from
  theirs, mine = read_config(source), config.data
  if imported(source) is not None:
    own = Path(str(absolute(source))) / "tokenizer.json"
    same = Path(mine.tokenizer).is_file() and own.is_file() and Path(mine.tokenizer).read_bytes() == own.read_bytes()
    require(same, f"config.data.tokenizer: {mine.tokenizer!r}; the weights of {source} are for {own}")
  else:
    require(
      theirs.data.tokenizer == mine.tokenizer,
      f"config.data.tokenizer: {mine.tokenizer!r}; the weights of {source} are for {theirs.data.tokenizer!r}",
    )


def imported(folder: epath.PathLike) -> dict[str, Any] | None:
  """What is known of imported weights besides their config: the tokens that begin and end a text; None of a run's."""
  path = absolute(folder) / IMPORTED
  return read_json(path) if path.exists() else None


def _fresh(config: Config, name: str) -> bool:
  return any(re.search(pattern, name) for pattern in config.train.init_fresh)


def start(config: Config, state: State, optimizer_state: Callable[[Any], Any]) -> State:
  """The initial state of a run, with the weights of `train.init_from`.

  `optimizer_state` gives the optimizer's state that begins at parameters: some optimizers keep a copy of these.
  """
  if not config.train.init_from:
    return state
  store = Checkpoints(absolute(config.train.init_from) / "checkpoints")
  step = _found(config)[0]
  wanted = {name: x for name, x in flat(state.params).items() if not _fresh(config, name)}
  theirs = judged(read_config(config.train.init_from), store, step, wanted)
  store.close()
  require_finite(theirs, f"config.train.init_from: {config.train.init_from}: checkpoint of step {step}")

  def take(path: Any, mine: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    return mine if _fresh(config, name) else jax.device_put(theirs[name], mine.sharding)

  params = jax.tree_util.tree_map_with_path(take, state.params)
  return dataclasses.replace(state, params=params, opt_state=optimizer_state(params))


def import_weights(source: str, workdir: epath.PathLike, default_config: Callable[[str], Config]) -> dict[str, Any]:
  """Makes a run's folder at step 0 of a folder with config.json and *.safetensors."""
  from safetensors import SafetensorError
  from safetensors.numpy import load_file

  folder, target = Path(source), absolute(workdir)
  require((folder / "config.json").is_file(), f"import: {source} has no config.json")
  require(not (target / "config.json").exists(), f"import: {target} holds a run; choose another --workdir")
  files = sorted(folder.glob("*.safetensors"))
  require(bool(files), f"import: {source} has no *.safetensors")
  tensors: dict[str, np.ndarray] = {}
  for file in files:
    try:
      tensors |= load_file(file)
    except (SafetensorError, TypeError) as error:
      raise UserError(f"import: {file} cannot be read: {error}") from error
  theirs = read_json(folder / "config.json")
  try:
    family, fields, context = huggingface.fields_of(theirs, tensors)
  except KeyError as error:
    raise UserError(f"import: {folder / 'config.json'} has no {error}") from error
  config = default_config(family)
  config.model.update(fields)
  if config.data.kind == "text":
    config.data.update(name="text_files", context=context)
  config.train.steps = 1
  shapes = shapes_of(config)
  ours = huggingface.params_of(tensors, theirs["model_type"], config, real_shapes(config))
  require_finite(ours, f"import: {source}")
  params = _tree({name: _padded(array, shapes[name]) for name, array in ours.items()})
  state = State(jnp.int32(0), params, optim.initial_state(optim.How.of(config), params), jnp.float32(0), jnp.int32(-1))
  run = Run(config, target)
  target.mkdir(parents=True, exist_ok=True)
  store = Checkpoints(target / "checkpoints")
  store.save(0, state)
  store.close()
  first = lambda name: next(iter(ids), None) if isinstance(ids := theirs.get(name), list) else ids
  write_json(target / IMPORTED, {"begin": first("bos_token_id"), "end": first("eos_token_id")})
  if (folder / "tokenizer.json").is_file():
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
  write_json(target / "config.json", configs.flatten(config))
  return {"run_id": run.run_id, "family": family, "from": theirs["model_type"], **models.counts_of(config).params()}


def _tree(flat_params: dict[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for name, value in flat_params.items():
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return tree


def judged(config: Config, store: Checkpoints, step: int, wanted: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Parameters of a checkpoint by name, as `optim.evaluated` gives them; on the host, or in the shapes and with the
  shardings of `wanted`, in which tables of earlier versions get the padding that they lack.

  The optimizer is that of the stage in which the run was at that step.
  """
  config = stages.at(config, step).config

  def read(prefix: str) -> dict[str, Any]:
    tables, shardings = {}, None
    if wanted is not None:
      tables = _without_padding(config, store.shapes(step), prefix, wanted)
      # Tables without padding need not divide by the mesh: they come by the host.
      shardings = {name: None if name in tables else x.sharding for name, x in wanted.items()}
    found = {name.removeprefix(prefix): x for name, x in store.arrays(step, prefix, shardings).items()}
    return found | {name: hosts.put(_padded(found[name], x.shape), x.sharding) for name, x in tables.items()}

  params = read(PREFIX)
  if optim.averages_itself(config):
    return optim.evaluated(config, params, optim.State(SimpleNamespace(z=read("opt_state.own.z."))))
  if config.optim.average:
    average, (steps,) = read("opt_state.average."), read("opt_state.steps").values()
    return optim.evaluated(config, params, optim.State((), average, steps))
  return params


def export_weights(workdir: epath.PathLike, target: str, kind: str) -> dict[str, Any]:
  """Writes the newest sound checkpoint of a run as config.json and model.safetensors."""
  from safetensors.numpy import save_file

  config = read_config(workdir)
  store = Checkpoints(absolute(workdir) / "checkpoints")
  step = store.newest_sound()
  if step is None:
    raise UserError(f"export: {workdir} has no sound checkpoint")
  warn_of_divergence(workdir, step)
  params, rows = judged(config, store, step), models.real_rows(config)
  params = {name: x[: rows[name]] if name in rows else x for name, x in params.items()}
  store.close()
  require_finite(params, f"export: {workdir}: checkpoint of step {step}")
  theirs = huggingface.config_of(kind, config)
  tensors = huggingface.tensors_of(params, kind, config)
  folder = Path(target)
  require(not folder.exists() or not any(folder.iterdir()), f"export: {target} is not empty")
  folder.mkdir(parents=True, exist_ok=True)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
  write_json(folder / "config.json", theirs)
  return {"to": str(folder), "type": kind, "tensors": len(tensors), "step": step}


def read_evaluated(config: Config, store: Checkpoints, step: int, shapes: Any) -> Any:
  """The parameters that a run is judged by, from a verified checkpoint, with the shardings of `shapes`.

  Each device gets its part and nothing else. Of the optimizer's state that alone is read from which they follow.
  """
  params = judged(config, store, step, flat(shapes))
  for name, x in flat(shapes).items():
    there = f"{params[name].shape} {params[name].dtype}" if name in params else "missing"
    if there != f"{x.shape} {x.dtype}":
      raise ValueError(f"{store.folder}: array {name} is {there}, and {x.shape} {x.dtype} in this program")
  return jax.tree.unflatten(jax.tree.structure(shapes), [params[name] for name in flat(shapes)])


def read_config_with_mesh(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, with the mesh that it was last trained on; it may need more devices than are here."""
  config, folder = read_config(workdir), absolute(workdir)
  facts = read_json(folder / "config.json")
  if (folder / "provenance.json").exists():
    facts |= read_json(folder / "provenance.json").get("config", {})
  used = {name: facts.get(f"parallel.{name}", default) for name, default in defaults(Parallel).items()}
  return configs.with_overrides(config, {f"parallel.{name}": value for name, value in used.items()})


def read_config(workdir: epath.PathLike) -> Config:
  """The config of a run's folder, on the devices that are here."""
  folder = absolute(workdir)
  if not (folder / "config.json").exists():
    raise UserError(f"--workdir: {folder} holds no run (no config.json)")
  known = read_json(folder / "config.json")
  before = {name: one.default for name, one in whole.declared_of(known).items()}  # there were fewer once
  return configs.unflatten(before | known | {f"parallel.{name}": value for name, value in defaults(Parallel).items()})
