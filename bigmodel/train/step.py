"""The training state and the programs that make, advance and evaluate it."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigmodel import data, hardware, models, optim, parallel, tasks
from bigmodel.config import Config, digest, flatten
from bigmodel.parallel import blocks, hosts, kernels
from bigmodel.tasks import Apply, Task
from bigmodel.train import statistics

EMA = 0.98  # of the training loss: the last 50 steps or so
NOISE_EMA = 0.99  # of both parts of the gradient noise scale, which are noisier
STRIDE = 8  # steps that a member of a pack may make before the next one's turn, while its state is in the cache
STRIDE_BYTES = 4 << 20  # of their rows: larger ones would not leave it there
AT_ONCE = 8  # members that each core evaluates in one call
AT_ONCE_BYTES = 64 << 20  # of their parameters, of which there are some copies meanwhile


@flax.struct.dataclass
class State:
  """Everything that a run is at one step."""

  step: jax.Array  # int32, steps done
  params: Any
  opt_state: Any
  loss_ema: jax.Array  # exponential average of the loss, not yet divided by 1 - EMA^step
  diverged_at: jax.Array  # int32, the first step with a loss that is not finite, or -1
  noise: Any = ()  # averages of the squared norm of the gradient and of its variance over rows, where asked for


@dataclasses.dataclass(frozen=True)
class Program:
  """Compiled functions for one model shape, mesh and number of members.

  With several members, `state`, `rows` and hyperparameters have a leading axis M.
  """

  mesh: Mesh
  members: int
  init: Callable[[int], State]  # seed -> the state of one member
  shapes: State  # of the state of one member, with its shardings
  shardings: Any  # of the program's state
  step: Callable[..., tuple[State, dict[str, jax.Array]]]  # (state, rows, hyperparameters); metrics [M, stride]
  place: Callable[[list[State]], State]  # states of single members -> the program's state
  put_rows: Callable[..., Any]  # (each member's rows), and of as many steps more as `stride` allows
  put_hyperparameters: Callable[[list[optim.Hyperparameters]], optim.Hyperparameters]
  values: Callable[[Any, hosts.Rows, int], dict[str, np.ndarray]]  # (params of one member, rows, key) -> [B, T] each
  values_of: Callable[[list[Any]], Callable[..., list[dict[str, np.ndarray]]]]  # as `values`, of `at_once` members
  layers: Callable[..., list[Any]]  # as `step` -> `statistics.of_step` of each member
  fetch: Callable[[Any], Any] = lambda tree: tree  # of a pack, to the host, before members are taken from it
  stride: int = 1  # the most steps that a call of `step` makes
  at_once: int = 1  # the most members that `values_of` takes; more than one in a pack on a CPU

  def member(self, tree: Any, index: int) -> Any:
    """One member's part of a tree that was fetched."""
    return tree if self.members == 1 else jax.tree.map(lambda x: x[index], tree)


@dataclasses.dataclass(frozen=True)
class Lone:
  """The functions of one run on one mesh, jitted and not yet compiled: they train it, and the planner compiles them."""

  mesh: Mesh
  init: Callable[[jax.Array], State]
  one_step: Callable[..., tuple[State, dict[str, jax.Array]]]  # pure; to be called as `on_mesh` does
  on_mesh: Callable[[Callable], Callable]
  step: Callable[..., tuple[State, dict[str, jax.Array]]]
  lower: Callable[..., Any]  # of `step`
  values: Callable[..., dict[str, jax.Array]]
  layers: Callable[..., Any]
  shapes: State  # abstract, with shardings


_PROGRAMS: dict[str, Program] = {}
_LONE: dict[str, Lone] = {}


def program(config: Config, members: int = 1, mixed: bool = False) -> Program:
  """The program of a resolved config; the same one for every run that differs in traced inputs only.

  Of a `mixed` pack members may have come to their ends before the others; where they are computed one after another,
  those cost nothing more.
  """
  mixed = mixed and parallel.mapped(config)
  mesh, single_mesh = parallel.make_mesh(config, members), parallel.make_mesh(config)
  traced = tasks.traced(config)
  kept = {
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
    str(single_mesh),
  )
  alone = digest(kept) + repr(parts)
  key = alone + repr((members, mixed, _stride(config), str(mesh)))
  if key not in _PROGRAMS:
    if alone not in _LONE:
      _LONE[alone] = lone_run(config, single_mesh)
    lone = _LONE[alone]
    _PROGRAMS[key] = _alone(lone) if members == 1 else _pack(config, lone, mesh, members, mixed)
  return _PROGRAMS[key]


def lone_run(config: Config, mesh: Mesh, packed: bool = False) -> Lone:
  """The functions of a run on `mesh`, whose devices need not be here; `packed`, of a member beside others."""
  config = config.copy_and_resolve_references()  # it is read as late as they are traced
  platform = mesh.devices.flat[0].platform
  rules = parallel.rules(config)
  dtype, supplied = jnp.dtype(config.train.compute_dtype), {}
  for name in models.family(config.model.family).SUPPLIED:
    attention = name == "attend"
    supplied[name] = kernels.choose(config, mesh, platform, packed) if attention else blocks.choose(config, mesh)
  model, task = models.build(config, dtype, **supplied), tasks.build(config)

  # What the parameters are does not depend on how they will be used.
  plain, example, how = models.build(config, dtype), models.example(config), optim.How.of(config)

  def initial(key: jax.Array) -> State:
    params = optim.parametrization.scaled(plain.init(key, *example)["params"], how.multiples)
    noise = (jnp.float32(0),) * 2 if config.train.noise_scale else ()
    return State(jnp.int32(0), params, optim.initial_state(how, params), jnp.float32(0), jnp.int32(-1), noise)

  boxed = jax.eval_shape(initial, jax.random.key(0))
  state_shardings = parallel.shardings(mesh, boxed, rules)
  on_device = state_shardings.opt_state
  if config.parallel.offload == "optimizer":
    host = lambda x: x.with_memory_kind("pinned_host")
    state_shardings = dataclasses.replace(state_shardings, opt_state=jax.tree.map(host, on_device))
  rows_sharding, one = parallel.batch_sharding(mesh), parallel.replicated(mesh)
  active = parallel.rules_on(mesh, rules)
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
  values = jax.jit(
    lambda params, rows, key: task.values(_apply(model.apply, params), rows, jax.random.key(key)),
    in_shardings=(state_shardings.params, rows_sharding, one),
    out_shardings=one,  # every host reads all of them
    compiler_options=options,
  )
  simple = models.build(config, dtype)
  objective = lambda params, rows, key, h: task.objective(_apply(simple.apply, params, key), rows, h.task, key)[0]
  layers = jax.jit(
    functools.partial(statistics.of_step, objective, how, config.train.accumulate),
    in_shardings=(dataclasses.replace(state_shardings, opt_state=on_device), rows_sharding, one),
    out_shardings=one,
  )
  shaped = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  on_mesh = functools.partial(_on_mesh, mesh, active)
  return Lone(
    mesh=mesh,
    init=on_mesh(init),
    one_step=one_step,
    on_mesh=on_mesh,
    step=on_mesh(step),
    lower=on_mesh(step.lower),
    values=on_mesh(values),
    layers=on_mesh(layers),
    shapes=jax.tree.map(shaped, nn.meta.unbox(boxed), state_shardings),
  )


def _alone(lone: Lone) -> Program:
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
    members=1,
    init=lambda seed: lone.init(jax.random.key(seed)),
    shapes=lone.shapes,
    shardings=shardings,
    step=lone.step,
    place=lambda states: jax.device_put(states[0], shardings),
    put_rows=lambda rows: hosts.put_rows(rows[0], rows_sharding),
    put_hyperparameters=lambda h: jax.tree.map(lambda x: hosts.put(x, one), h[0]),
    values=values,
    values_of=values_of,
    layers=lambda *arguments: [lone.layers(*arguments)],
  )


def _pack(config: Config, lone: Lone, mesh: Mesh, members: int, mixed: bool) -> Program:
  """Runs side by side: one after another on each core of a CPU, which is faster there, batched elsewhere."""
  alone, by_member = _alone(lone), parallel.member_sharding(mesh)
  mapped = parallel.mapped(config)
  stride = _stride(config) if mapped else 1
  evaluation = {}
  if mapped:
    supplied = {"run_blocks"} & set(models.family(config.model.family).SUPPLIED)
    ways = {name: blocks.choose(config, mesh) for name in supplied}
    model = models.build(config, jnp.dtype(config.train.compute_dtype), **ways)
    task = tasks.build(config)
    one_step = functools.partial(train_step, model.apply, task, optim.How.of(config), config.train.accumulate)
    one_step = jax.jit(one_step, inline=True)  # traced once, though its results' shapes are asked for first
    one_step = _until_its_end(one_step) if mixed else one_step
    placed = jax.tree.map(lambda _: by_member, lone.shapes)
    rows_sharding = by_member
    one_member = _several(one_step, stride)
    jitted = jax.jit(
      jax.shard_map(
        lambda count, *arguments: jax.lax.map(lambda one: one_member(count, *one), arguments),
        mesh=mesh,
        in_specs=(PartitionSpec(), *(PartitionSpec("member"),) * 3),
        out_specs=PartitionSpec("member"),
        check_vma=False,
      ),
      donate_argnums=1,
      compiler_options=hardware.compiler_options(),
    )
    step = lambda state, rows, h: jitted(rows[0], state, rows[1], h)
    evaluation = _evaluation(lone, model, task, mesh, members)
  else:
    spread = lone_run(config, mesh, packed=True)
    each = lambda sharding: NamedSharding(
      mesh, PartitionSpec("member", *sharding.spec), memory_kind=sharding.memory_kind
    )
    placed = jax.tree.map(lambda x: each(x.sharding), spread.shapes)
    rows_sharding = each(parallel.batch_sharding(mesh))
    batched = spread.on_mesh(
      jax.jit(
        jax.vmap(spread.one_step, spmd_axis_name="member"),
        donate_argnums=0,
        in_shardings=(placed, rows_sharding, by_member),
        out_shardings=(placed, by_member),
        compiler_options=hardware.compiler_options(),
      )
    )
    step = lambda state, rows, h: batched(state, rows[1], h)

  def put_rows(*given: list[hosts.Rows]) -> tuple[np.int32, Any]:
    own = [_stack([hosts.all_rows(one) for one in rows]) for rows in given]
    if not mapped:
      return np.int32(1), jax.device_put(own[0], rows_sharding)
    own += own[-1:] * (stride - len(own))
    by_step = jax.tree.map(lambda *x: np.stack(x, axis=1), *own)
    return np.int32(len(given)), jax.device_put(by_step, rows_sharding)

  def layers(state: State, rows: tuple[np.int32, Any], h: optim.Hyperparameters) -> list[Any]:
    first = jax.tree.map(lambda x: x[:, 0], rows[1]) if mapped else rows[1]
    return [lone.layers(*jax.tree.map(lambda x, i=i: np.asarray(x[i]), (state, first, h))) for i in range(members)]

  return dataclasses.replace(
    alone,
    mesh=mesh,
    members=members,
    shardings=placed,
    step=step,
    place=lambda states: jax.device_put(_stack(states), placed),
    put_rows=put_rows,
    put_hyperparameters=lambda h: jax.device_put(_stack(h), by_member),
    fetch=jax.device_get,
    stride=stride,
    layers=layers,
    **evaluation,
  )


def _evaluation(lone: Lone, model: nn.Module, task: Task, mesh: Mesh, members: int) -> dict[str, Any]:
  """How a pack of a CPU is evaluated: as it trains, one member after another on each core."""
  lanes, by_member = mesh.size, parallel.member_sharding(mesh)
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(lone.shapes.params))
  each = min(AT_ONCE, members // lanes, max(1, AT_ONCE_BYTES // size))

  @functools.partial(jax.jit, inline=True)  # traced once, though its results' shapes are asked for first
  def of_one(params: Any, rows: Any, key: jax.Array) -> dict[str, jax.Array]:
    return task.values(_apply(model.apply, params), rows, jax.random.key(key))

  def if_there(there: jax.Array, *given: Any) -> dict[str, jax.Array]:
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_one, *given))
    return jax.lax.cond(there, of_one, lambda *_: nothing, *given)

  jitted = jax.jit(
    jax.shard_map(
      lambda rows, key, *of_members: jax.lax.map(lambda one: if_there(*one, rows, key), of_members),
      mesh=mesh,
      in_specs=(PartitionSpec(), PartitionSpec(), *(PartitionSpec("member"),) * 2),
      out_specs=PartitionSpec("member"),
      check_vma=False,
    ),
    compiler_options=hardware.compiler_options(),
  )

  def values_of(params: list[Any]) -> Callable[..., list[dict[str, np.ndarray]]]:
    # They take turns at the lanes, whose places lie side by side.
    places = np.arange(lanes * each).reshape(lanes, each).T.ravel()[: len(params)]
    held = dict(zip(places, params, strict=True))
    there = jax.device_put(np.isin(np.arange(lanes * each), places), by_member)
    placed = jax.device_put(_stack([held.get(i, params[0]) for i in range(lanes * each)]), by_member)

    def values(rows: hosts.Rows, key: int) -> list[dict[str, np.ndarray]]:
      on_all = jax.device_put(hosts.all_rows(rows), parallel.replicated(mesh))
      found = jax.device_get(jitted(on_all, np.int32(key), there, placed))
      return [jax.tree.map(lambda x, i=i: x[i], found) for i in places]

    return values

  return {"values_of": values_of, "at_once": lanes * each}


def _stride(config: Config) -> int:
  rows = jax.tree.leaves(tasks.batch_shape(config, config.train.batch_size))
  return max(1, min(STRIDE, STRIDE_BYTES // sum(math.prod(x.shape) * x.dtype.itemsize for x in rows)))


def _several(one_step: Callable, most: int) -> Callable:
  """So many steps of one run after another, and what each told."""

  def steps(count: jax.Array, state: State, rows_K: Any, h: optim.Hyperparameters) -> tuple[State, Any]:
    at = lambda k: jax.tree.map(lambda x: x[k], rows_K)
    told = jax.eval_shape(one_step, state, at(0), h)[1]
    empty = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), told)

    def go_on(k: jax.Array, known: tuple[State, Any]) -> tuple[State, Any]:
      state, now = one_step(known[0], at(k), h)
      return state, jax.tree.map(lambda all_, x: all_.at[k].set(x), known[1], now)

    return jax.lax.fori_loop(0, count, go_on, (state, empty))

  return steps


def _until_its_end(one_step: Callable) -> Callable:
  """A step that changes nothing where a run's horizon is behind it."""

  def step(state: State, rows: Any, h: optim.Hyperparameters) -> tuple[State, dict[str, jax.Array]]:
    told = jax.eval_shape(one_step, state, rows, h)[1]
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), told) | {"diverged_at": state.diverged_at}
    return jax.lax.cond(state.step < h.first + h.steps, one_step, lambda *_: (state, nothing), state, rows, h)

  return step


def _stack(trees: list[Any]) -> Any:
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)


def _on_mesh(mesh: Mesh, rules: tuple, jitted: Callable) -> Callable:
  """`jitted`, called where the model's logical axes mean axes of the mesh."""

  def call(*arguments: Any) -> Any:
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
      return jitted(*arguments)

  return call


def _apply(apply: Callable, params: Any, key: jax.Array | None = None) -> Apply:
  """The model as a task calls it; with a key, as in training: some units drop out."""
  return lambda *inputs: apply({"params": params}, *inputs, rngs=None if key is None else {"dropout": key})


def train_step(
  apply: Callable, task: Task, how: optim.How, accumulate: int, state: State, rows: Any, h: optim.Hyperparameters
) -> tuple[State, dict[str, jax.Array]]:
  """One step of one run: pure, and the same for every mesh."""

  def objective(params: Any, rows: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    for_task, for_dropout = jax.random.split(key)
    return task.objective(_apply(apply, params, for_dropout), rows, h.task, for_task)

  gradient = jax.value_and_grad(objective, has_aux=True)
  key = jax.random.fold_in(jax.random.key(h.seed), state.step)
  noise, measured = state.noise, bool(state.noise)
  first = (rows, key)  # microbatch, whose curvature an optimizer may ask for
  if accumulate == 1:
    (_, loss), grads = gradient(state.params, rows, key)
  else:
    # Row b goes to microbatch b % accumulate, so that no row leaves its device.
    micro = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), rows)

    def add(total: Any, given: tuple[Any, jax.Array]) -> tuple[Any, Any]:
      (_, loss), grads = gradient(state.params, *given)
      square = optax.tree.norm(grads, squared=True) if measured else None
      return jax.tree.map(jnp.add, total, (loss, grads)), square

    keys = jax.random.split(key, accumulate)
    first = jax.tree.map(lambda x: x[0], (micro, keys))
    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    total, squares = jax.lax.scan(add, zero, (micro, keys))
    loss, grads = jax.tree.map(lambda x: x / accumulate, total)
    if measured:
      seen = _noise(squares, grads, jax.tree.leaves(rows)[0].shape[0])
      mix = lambda old, new: jnp.where(jnp.isfinite(new), NOISE_EMA * old + (1 - NOISE_EMA) * new, old)
      noise = jax.tree.map(mix, noise, seen)
  curved = lambda params: objective(params, *first)[0]
  params, opt_state, told = optim.update(how, grads, state.opt_state, state.params, state.step, h, curved)
  diverged = jnp.where((state.diverged_at < 0) & ~jnp.isfinite(loss), state.step, state.diverged_at)
  new = State(state.step + 1, params, opt_state, EMA * state.loss_ema + (1 - EMA) * loss, diverged, noise)
  metrics = {"loss": loss, "param_norm": optax.tree.norm(params), "diverged_at": diverged, **told}
  if measured:
    metrics["noise_scale"] = noise_scale(noise)
  return new, metrics


def _noise(squares_K: jax.Array, grads: Any, rows: int) -> tuple[jax.Array, jax.Array]:
  """Estimates without bias of the squared norm of the true gradient, and of the variance of one row's gradient.

  From the squared norms of microbatches' gradients and that of their mean (McCandlish et al. 2018, appendix A.1).
  """
  K, small, large = len(squares_K), jnp.mean(squares_K), optax.tree.norm(grads, squared=True)
  return (K * large - small) / (K - 1), rows * (small - large) / (K - 1)


def noise_scale(noise: Any) -> Any:
  """The rows of a batch at which noise and gradient are as large: of more rows each is worth less.

  Not a number where the noise hides the gradient's size.
  """
  return jnp.where(noise[0] > 0, noise[1] / noise[0], jnp.nan)


def loss_train(state: State, first: int = 0) -> float:
  """The debiased average of the training loss over the last steps, since `first`."""
  steps = int(state.step) - first
  return float(state.loss_ema) / (1 - EMA**steps) if steps > 0 else float("nan")


def next_stage(program: Program, config: Config, state: State) -> State:
  """The state with which another stage begins: of what was learned, the parameters."""
  initial = functools.partial(optim.initial_state, optim.How.of(config))
  if program.members > 1:
    initial = jax.vmap(initial)
  opt_state = jax.jit(initial, out_shardings=program.shardings.opt_state)(state.params)
  fresh = jax.device_put(jnp.zeros_like(state.loss_ema), state.loss_ema.sharding)
  return dataclasses.replace(state, opt_state=opt_state, loss_ema=fresh)


def params_sha256(params: Any) -> str:
  """sha256 over names, shapes and fingerprints of all parameters; the same on every mesh."""
  return hashlib.sha256(json.dumps(hosts.fingerprints(params), sort_keys=True).encode()).hexdigest()
