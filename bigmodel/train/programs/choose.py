"""Chooses the program that trains a config, which runs of equal shape share."""

from bigmodel import data, optim, parallel, tasks
from bigmodel.config import Config, digest, flatten
from bigmodel.train.programs.batched import Batched
from bigmodel.train.programs.lanes import CompiledLanes, Lanes, stride_of
from bigmodel.train.programs.protocol import Program
from bigmodel.train.programs.single import Single

_SINGLE: dict[str, Single] = {}
_COMPILED_LANES: dict[str, CompiledLanes] = {}
_PACKS: dict[str, Program] = {}


def program(config: Config, members: int = 1) -> Program:
  """The program of a resolved config for `members` members. Runs that differ only in traced inputs share it.

  A member of a pack that reaches its horizon before the others costs nothing on the lanes of a CPU, which leave its
  state unchanged. In a batched program it is computed on, and the results are ignored.
  """
  of_run, of_lanes, of_pack = _keys(config, members)
  if of_run not in _SINGLE:
    _SINGLE[of_run] = Single(config, parallel.make_mesh(config))
  single = _SINGLE[of_run]
  if members == 1:
    return single
  if of_pack not in _PACKS:
    mesh = parallel.make_mesh(config, members)
    if parallel.mapped(config):
      if of_lanes not in _COMPILED_LANES:
        _COMPILED_LANES[of_lanes] = CompiledLanes(config, mesh)
      _PACKS[of_pack] = Lanes(single, _COMPILED_LANES[of_lanes], members)
    else:
      _PACKS[of_pack] = Batched(single, config, mesh, members)
  return _PACKS[of_pack]


def key(config: Config, members: int = 1) -> str:
  """A key that runs and packs share if everything that is compiled for them is the same.

  A program compiles once for each batch size, so the key contains the size of the batch.
  """
  return _keys(config, members)[-1] + repr(config.train.batch_size)


def _keys(config: Config, members: int) -> tuple[str, str, str]:
  """The keys of three caches: programs of single runs, compiled lanes of packs of any size, and programs of packs."""
  traced = tasks.traced(config)
  compiled_in = {
    name: value
    for name, value in flatten(config).items()
    if name.startswith(("model.", "parallel.", "task.")) and name.removeprefix("task.") not in traced
  }
  parts = (
    optim.How.of(config),
    config.train.accumulate,
    config.train.noise_scale,
    config.train.compute_dtype,
    data.unit(config),
    str(parallel.make_mesh(config)),
  )
  of_run = digest(compiled_in) + repr(parts)
  of_lanes = of_run + repr((stride_of(config), str(parallel.make_mesh(config, members))))
  return of_run, of_lanes, of_lanes + repr(members)
