"""What a program is, and the program of one run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from bigmodel import hardware, models, optim, parallel, tasks
from bigmodel.config import Config
from bigmodel.models.layers.basic import exact_products
from bigmodel.models.layers.initial import drawn
from bigmodel.parallel import blocks, hosts, kernels, reuse
from bigmodel.train import statistics
from bigmodel.train.step import State, applied, train_step


@dataclasses.dataclass(frozen=True)
class Program:
  """Compiled functions for one model shape, mesh and number of members.

  What holds several members (the state, rows, hyperparameters, metrics) the program alone knows to take apart.
  """

  mesh: Mesh
  init: Callable[[int], State]  # seed -> the state of one member
  shapes: State  # of the state of one member, with its shardings
  step: Callable[..., tuple[Any, Any]]  # (state, rows, hyperparameters) -> (state, metrics)
  place: Callable[[list[State]], Any]  # states of single members -> the program's state
  put_rows: Callable[..., Any]  # (each member's rows), and of as many steps more as `stride` allows
  put_hyperparameters: Callable[[list[optim.Hyperparameters]], Any]
  optimizer_state: Callable[[Any], Any]  # parameters of one member -> the optimizer's state that begins at them
  # (state, hyperparameters and config of the stage that ends, config of the next) -> the state with which that begins
  next_stage: Callable[[Any, Any, Config, Config], Any]
  told: Callable[[Any], dict[str, np.ndarray]]  # metrics -> [M, stride] each on the host, of the steps that were made
  values: Callable[[Any, hosts.Rows, int], dict[str, np.ndarray]]  # (params of one member, rows, key) -> [B, T] each
  values_of: Callable[[list[Any]], Callable[..., list[dict[str, np.ndarray]]]]  # as `values`, of `at_once` members
  layers: Callable[..., list[Any]]  # as `step` -> `statistics.of_step` of each member
  generating: Callable[[Callable], Callable]  # a function of one member's parameters, called where these lie
  fetch: Callable[[Any], Any] = lambda tree: tree  # of a pack, to the host, before members are taken from it
  member: Callable[[Any, int], Any] = lambda tree, index: tree  # one member's part of what was fetched
  stride: int = 1  # the most steps that a call of `step` makes
  at_once: int = 1  # the most members that `values_of` takes; more than one in a pack on a CPU


@dataclasses.dataclass(frozen=True)
class Lone:
  """The functions of one run on one mesh, jitted and not yet compiled: they train it, and the planner compiles them."""

  mesh: Mesh
  init: Callable[[jax.Array], State]
  optimizer_state: Callable[[Any], Any]
  one_step: Callable[..., tuple[State, dict[str, jax.Array]]]  # pure; to be called as `on_mesh` does
  on_mesh: Callable[[Callable], Callable]
  step: Callable[..., tuple[State, dict[str, jax.Array]]]
  lower: Callable[..., Any]  # of `step`
  values: Callable[..., dict[str, jax.Array]]
  layers: Callable[..., Any]
  shapes: State  # abstract, with shardings
  generating: Callable[[Callable], Callable]  # as `on_mesh`, for a few tokens at a time (`reuse.generation_rules`)


def lone_run(config: Config, mesh: Mesh, packed: bool = False) -> Lone:
  """The functions of a run on `mesh`, whose devices need not be here; `packed`, of a member beside others."""
  config = config.copy_and_resolve_references()  # it is read as late as they are traced
  platform = mesh.devices.flat[0].platform
  rules = parallel.rules(config, dict(mesh.shape))
  dtype, supplied = jnp.dtype(config.train.compute_dtype), {}
  for name in models.family(config.model.family).SUPPLIED:
    attention = name == "attend"
    supplied[name] = kernels.choose(config, mesh, platform, packed) if attention else blocks.choose(config, mesh)
  model, task = models.build(config, dtype, **supplied), tasks.build(config)

  # What the parameters are does not depend on how they will be used, nor on where they are drawn.
  plain, example, how = models.build(config, dtype), models.example(config), optim.How.of(config)
  draw = functools.partial(drawn, plain.init) if platform == "cpu" else plain.init  # so that no chip draws all of them

  def initial(key: jax.Array) -> State:
    params = draw(key, *example)["params"]
    params = optim.parametrization.scaled(params, how.multiples)
    noise = (jnp.float32(0),) * 2 if config.train.noise_scale else ()
    return State(jnp.int32(0), params, optim.initial_state(how, params), jnp.float32(0), jnp.int32(-1), noise)

  active = parallel.rules_on(mesh, rules)
  on_mesh = functools.partial(_on_mesh, mesh, active, dtype)
  initial = jax.jit(initial)  # traced once, for the shapes and for `init`
  boxed = on_mesh(jax.eval_shape)(initial, jax.random.key(0))
  state_shardings = parallel.shardings(mesh, boxed, rules)
  on_device = state_shardings.opt_state
  if config.parallel.offload == "optimizer":
    host = lambda x: x.with_memory_kind("pinned_host")
    state_shardings = dataclasses.replace(state_shardings, opt_state=jax.tree.map(host, on_device))
  rows_sharding, one = parallel.batch_sharding(mesh), parallel.replicated(mesh)
  options = hardware.compiler_options(platform)

  def one_step(state: State, rows: jax.Array, h: optim.Hyperparameters) -> tuple[State, dict[str, jax.Array]]:
    if config.parallel.offload == "optimizer":
      state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, on_device))
    return train_step(model.apply, task, how, config.train.accumulate, state, rows, h)

  step = jax.jit(
    one_step,
    donate_argnums=0,
    in_shardings=(state_shardings, rows_sharding, one),
    out_shardings=(state_shardings, one),
    compiler_options=options,
  )
  init = jax.jit(lambda key: nn.meta.unbox(initial(key)), out_shardings=state_shardings)
  optimizer_state = jax.jit(functools.partial(optim.initial_state, how), out_shardings=state_shardings.opt_state)
  values = jax.jit(
    lambda params, rows, key: task.values(applied(model.apply, params), rows, jax.random.key(key)),
    in_shardings=(state_shardings.params, rows_sharding, one),
    out_shardings=one,  # every host reads all of them
    compiler_options=options,
  )
  simple = models.build(config, dtype)
  real_rows = models.real_rows(config, boxed.params)
  layers = jax.jit(
    functools.partial(statistics.of_step, simple.apply, task, how, config.train.accumulate, real_rows),
    in_shardings=(dataclasses.replace(state_shardings, opt_state=on_device), rows_sharding, one),
    out_shardings=one,
  )
  shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return Lone(
    mesh=mesh,
    init=on_mesh(init),
    optimizer_state=on_mesh(optimizer_state),
    one_step=one_step,
    on_mesh=on_mesh,
    step=on_mesh(step),
    lower=on_mesh(step.lower),
    values=on_mesh(values),
    layers=on_mesh(layers),
    shapes=jax.tree.map(shaped, nn.meta.unbox(boxed), state_shardings),
    generating=functools.partial(_on_mesh, mesh, parallel.rules_on(mesh, reuse.generation_rules(rules)), dtype),
  )


def program_of(lone: Lone) -> Program:
  """The program of one run."""
  rows_sharding, one = parallel.batch_sharding(lone.mesh), parallel.replicated(lone.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, lone.shapes)

  def values(params: Any, rows: hosts.Rows, key: int) -> dict[str, np.ndarray]:
    found = lone.values(params, hosts.put_rows(rows, rows_sharding), hosts.put(np.int32(key), one))
    return jax.tree.map(np.asarray, found)

  def values_of(params: list[Any]) -> Callable[..., list[dict[str, np.ndarray]]]:
    placed = jax.device_put(params[0], shardings.params)
    return lambda rows, key: [values(placed, rows, key)]

  return Program(
    mesh=lone.mesh,
    init=lambda seed: lone.init(jax.random.key(seed)),
    shapes=lone.shapes,
    step=lone.step,
    place=lambda states: jax.device_put(states[0], shardings),
    put_rows=lambda rows: hosts.put_rows(rows[0], rows_sharding),
    put_hyperparameters=lambda h: jax.tree.map(lambda x: hosts.put(x, one), h[0]),
    optimizer_state=lone.optimizer_state,
    next_stage=functools.partial(anew, (shardings.params, shardings.opt_state)),
    told=lambda metrics: jax.tree.map(lambda x: np.reshape(np.asarray(x), (1, 1)), metrics),
    values=values,
    values_of=values_of,
    layers=lambda *arguments: [lone.layers(*arguments)],
    generating=lone.generating,
  )


def anew(
  shardings: tuple[Any, Any], state: State, h: Any, before: Config, config: Config, several: bool = False
) -> State:
  """The state with which another stage begins: of what was learned, the parameters.

  They are those by which the stage before, with its hyperparameters `h`, would be judged. `shardings` are those of the
  parameters and of the optimizer's state; `several`, of the members of a pack.
  """
  mapped = jax.vmap if several else lambda function: function
  params, (ended, begins) = state.params, (optim.How.of(before), optim.How.of(config))
  if ended.keeps_average:
    on_device = lambda x: jax.device_put(x, x.sharding.with_memory_kind("device"))
    opt_state = jax.tree.map(on_device, state.opt_state) if before.parallel.offload != "none" else state.opt_state
    judged = mapped(functools.partial(optim.evaluated_in_training, ended))
    params = jax.jit(judged, out_shardings=shardings[0])(h, params, opt_state)
  opt_state = jax.jit(mapped(functools.partial(optim.initial_state, begins)), out_shardings=shardings[1])(params)
  zero = lambda x: jax.device_put(jnp.zeros_like(x), x.sharding)
  loss_ema, noise = jax.tree.map(zero, (state.loss_ema, state.noise))
  return dataclasses.replace(state, params=params, opt_state=opt_state, loss_ema=loss_ema, noise=noise)


def _on_mesh(mesh: Mesh, rules: tuple, dtype: Any, jitted: Callable) -> Callable:
  """`jitted`, called where the model's logical axes mean axes of the mesh, with products as exact as the run asks."""

  def call(*arguments: Any) -> Any:
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules), exact_products(dtype):
      return jitted(*arguments)

  return call
