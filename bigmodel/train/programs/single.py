"""The program of one run on one mesh, which the programs of packs and the planner also use."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding

from bigmodel import hardware, models, optim, parallel, tasks
from bigmodel.config import Config
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.layers.initial import drawn
from bigmodel.models.registry.protocol import Supplied
from bigmodel.parallel import blocks, hosts, kernels, reuse
from bigmodel.tasks.task import Values
from bigmodel.train import statistics
from bigmodel.train.programs.protocol import Arguments, BatchValues, Evaluator, PlacedRows, Result
from bigmodel.train.statistics import LayerStatistics
from bigmodel.train.step import Batch, Metrics, Recipe, State, applied, train_step
from bigmodel.types import Params

# A sharding for each array of the parameters or of the optimizer's state, or one sharding for all arrays.
ParamsSharding: TypeAlias = "Params | NamedSharding"
OptimizerSharding: TypeAlias = "optim.State | NamedSharding"


class Single:
  """One run on a mesh. The mesh's devices need not exist if the step is only lowered.

  With `packed`, `one_step` computes a member of a pack, batched with others on this mesh.
  """

  stride = 1
  at_once = 1

  def __init__(self, config: Config, mesh: Mesh, packed: bool = False):
    config = config.copy_and_resolve_references()  # a copy, because tracing reads it later
    self.mesh = mesh
    self._config, self._task, self._how = config, tasks.build(config), optim.How.of(config)
    self._dtype = jnp.dtype(config.train.compute_dtype)
    self._plain_model = models.build(config, self._dtype)
    self._model = models.build(config, self._dtype, **_supplied(config, mesh, packed))
    self._recipe = Recipe(self._model.apply, self._task, self._how, config.train.accumulate)
    rules = parallel.rules(config, dict(mesh.shape))
    self._rules = parallel.rules_on(mesh, rules)
    self._generation_rules = parallel.rules_on(mesh, reuse.generation_rules(rules))
    self._initial_state = jax.jit(self._initial)  # traced once, for the shapes and for `init`
    key = jax.random.key(0)  # made on this machine, because the mesh's devices need not exist
    with self.on_mesh():
      boxed = jax.eval_shape(self._initial_state, key)
    self._state_on_device: State = parallel.shardings(mesh, boxed, rules)
    self._state_sharding = self._state_on_device
    if config.parallel.offload == "optimizer":
      self._state_sharding = _with_optimizer_on_host(self._state_on_device)
    self._rows_sharding, self._everywhere = parallel.batch_sharding(mesh), parallel.replicated(mesh)
    self.shapes: State = jax.tree.map(_abstract, nn.meta.unbox(boxed), self._state_sharding)
    self._jit(models.real_rows(config, boxed.params))

  def _jit(self, real_rows: dict[str, int]) -> None:
    """Makes the jitted functions; each is traced and compiled when it is first called."""
    state, rows, everywhere = self._state_sharding, self._rows_sharding, self._everywhere
    options = hardware.compiler_options(self._platform)
    self._init = jax.jit(lambda key: nn.meta.unbox(self._initial_state(key)), out_shardings=state)
    self._optimizer_state = jax.jit(functools.partial(optim.initial_state, self._how), out_shardings=state.opt_state)
    self._step = jax.jit(
      self.one_step,
      donate_argnums=0,
      in_shardings=(state, rows, everywhere),
      out_shardings=(state, everywhere),
      compiler_options=options,
    )
    self._values = jax.jit(
      self._values_of_rows,
      in_shardings=(state.params, rows, everywhere),
      out_shardings=everywhere,  # every host reads all of them
      compiler_options=options,
    )
    plain_recipe = dataclasses.replace(self._recipe, apply=self._plain_model.apply)
    self._statistics = jax.jit(
      functools.partial(statistics.of_step, plain_recipe, real_rows),
      in_shardings=(self._state_on_device, rows, everywhere),
      out_shardings=everywhere,
    )

  @property
  def _platform(self) -> str:
    return self.mesh.devices.flat[0].platform

  @contextlib.contextmanager
  def on_mesh(self) -> Iterator[None]:
    """A context for tracing and calling, which maps the model's axes to the mesh and sets the precision of products."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(self._rules), exact_products(self._dtype):
      yield

  # Pure functions, of one run.

  def _initial(self, key: jax.Array) -> State:
    """The state before the first step, boxed. The parameters do not depend on the mesh nor on how they will be used."""
    init = self._plain_model.init
    if self._platform == "cpu":
      init = functools.partial(drawn, init)  # draws all parameters at once, for which no chip has the memory
    params = init(key, *models.example(self._config))["params"]
    params = optim.parametrization.scaled(params, self._how.multiples)
    noise = (jnp.float32(0),) * 2 if self._config.train.noise_scale else ()
    opt_state = optim.initial_state(self._how, params)
    return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.int32(-1), noise)

  def one_step(self, state: State, rows: Batch, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    """One training step; to be traced within `on_mesh`."""
    if self._config.parallel.offload == "optimizer":
      opt_state = jax.device_put(state.opt_state, self._state_on_device.opt_state)
      state = dataclasses.replace(state, opt_state=opt_state)
    return train_step(self._recipe, state, rows, h)

  def _values_of_rows(self, params: Params, rows: Batch, key: jax.Array) -> Values:
    return self._task.values(applied(self._model.apply, params), rows, jax.random.key(key))

  # What the planner and the programs of packs need besides `protocol.Program`.

  def lower(self, rows: Batch, h: optim.Hyperparameters) -> jax.stages.Lowered:
    """The training step, lowered for abstract rows and hyperparameters."""
    with self.on_mesh():
      return self._step.lower(self.shapes, rows, h)

  def statistics_of_step(self, state: State, rows: Batch, h: optim.Hyperparameters) -> LayerStatistics:
    """`statistics.of_step` for arrays anywhere."""
    with self.on_mesh():
      return self._statistics(state, rows, h)

  # The members of `protocol.Program`.

  def init(self, seed: int) -> State:
    key = jax.random.key(seed)  # outside `on_mesh`, so that the key does not depend on the mesh
    with self.on_mesh():
      return self._init(key)

  def optimizer_state(self, params: Params) -> optim.State:
    with self.on_mesh():
      return self._optimizer_state(params)

  def place(self, states: Sequence[State]) -> State:
    return jax.device_put(states[0], self._state_sharding)

  def put_rows(self, *steps: Sequence[hosts.Rows]) -> PlacedRows:
    ((rows,),) = steps
    return PlacedRows(1, hosts.put_rows(rows, self._rows_sharding))

  def put_hyperparameters(self, hyperparameters: Sequence[optim.Hyperparameters]) -> optim.Hyperparameters:
    return jax.tree.map(lambda x: hosts.put(x, self._everywhere), hyperparameters[0])

  def step(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> tuple[State, Metrics]:
    with self.on_mesh():
      return self._step(state, rows.arrays, h)

  def fetch_metrics(self, metrics: Metrics) -> dict[str, np.ndarray]:
    return {name: np.reshape(np.asarray(x), (1, 1)) for name, x in metrics.items()}

  def layer_statistics(self, state: State, rows: PlacedRows, h: optim.Hyperparameters) -> list[LayerStatistics]:
    return [self.statistics_of_step(state, rows.arrays, h)]

  def next_stage(self, state: State, h: optim.Hyperparameters, before: Config, config: Config) -> State:
    shardings = self._state_sharding.params, self._state_sharding.opt_state
    return begin_stage(shardings, state, h, before, config, packed=False)

  def fetch(self, state: State) -> State:
    return state

  def member(self, state: State, index: int) -> State:
    return state

  def values(self, params: Params, rows: hosts.Rows, key: int) -> BatchValues:
    placed, key_everywhere = hosts.put_rows(rows, self._rows_sharding), hosts.put(np.int32(key), self._everywhere)
    with self.on_mesh():
      values = self._values(params, placed, key_everywhere)
    return jax.tree.map(np.asarray, values)

  def evaluator(self, params: Sequence[Params]) -> Evaluator:
    placed = jax.device_put(params[0], self._state_sharding.params)
    return lambda rows, key: [self.values(placed, rows, key)]

  def generating(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    @functools.wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
      rules = nn.logical_axis_rules(self._generation_rules)
      with jax.set_mesh(self.mesh), rules, exact_products(self._dtype):
        return function(*arguments, **named)

    return call


def begin_stage(
  shardings: tuple[ParamsSharding, OptimizerSharding],
  state: State,
  h: optim.Hyperparameters,
  before: Config,
  config: Config,
  packed: bool,
) -> State:
  """The initial state of the next stage, which keeps only the parameters of the stage before.

  These are the parameters by which the stage before, with hyperparameters `h`, would be evaluated. With `packed`,
  state and hyperparameters have a leading axis of members.
  """
  of_params, of_optimizer = shardings
  each = jax.vmap if packed else lambda function: function
  params, (how_before, how) = state.params, (optim.How.of(before), optim.How.of(config))
  if how_before.keeps_average:
    opt_state = state.opt_state
    if before.parallel.offload != "none":
      opt_state = jax.tree.map(lambda x: jax.device_put(x, x.sharding.with_memory_kind("device")), opt_state)
    evaluated = each(functools.partial(optim.evaluated_in_training, how_before))
    params = jax.jit(evaluated, out_shardings=of_params)(h, params, opt_state)
  opt_state = jax.jit(each(functools.partial(optim.initial_state, how)), out_shardings=of_optimizer)(params)
  loss_ema, noise = jax.tree.map(_zeros_in_place_of, (state.loss_ema, state.noise))
  return dataclasses.replace(state, params=params, opt_state=opt_state, loss_ema=loss_ema, noise=noise)


def _abstract(x: jax.Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _zeros_in_place_of(x: jax.Array) -> jax.Array:
  return jax.device_put(jnp.zeros_like(x), x.sharding)


def _supplied(config: Config, mesh: Mesh, packed: bool) -> Supplied:
  """The computations that depend on the mesh and that the model's family takes as arguments."""
  supplied, names = Supplied(), models.family(config.model.family).SUPPLIED
  if "attend" in names:
    supplied["attend"] = kernels.choose(config, mesh, mesh.devices.flat[0].platform, packed)
  if "run_blocks" in names:
    supplied["run_blocks"] = blocks.choose(config, mesh)
  return supplied


def _with_optimizer_on_host(sharding: State) -> State:
  """The shardings of a state whose optimizer state is in the host's memory between steps."""
  on_host = jax.tree.map(lambda x: x.with_memory_kind("pinned_host"), sharding.opt_state)
  return dataclasses.replace(sharding, opt_state=on_host)
