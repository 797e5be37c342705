"""The training state and the programs that make, advance and evaluate it."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from bigmodel import hardware, models, optim, parallel
from bigmodel.config import Config, digest, flatten
from bigmodel.tasks import causal_lm

EMA = 0.98  # of the training loss: the last 50 steps or so


@flax.struct.dataclass
class State:
  """Everything that a run is at one step."""

  step: jax.Array  # int32, steps done
  params: Any
  opt_state: Any
  loss_ema: jax.Array  # exponential average of the loss, not yet divided by 1 - EMA^step
  diverged_at: jax.Array  # int32, the first step with a loss that is not finite, or -1


@dataclasses.dataclass(frozen=True)
class Program:
  """Compiled functions for one model shape, mesh and number of members.

  With several members, `state`, `rows` and hyperparameters have a leading axis M.
  """

  mesh: Mesh
  members: int
  init: Callable[[int], State]  # seed -> the state of one member
  step: Callable[..., tuple[State, dict[str, jax.Array]]]  # (state, rows, hyperparameters)
  place: Callable[[list[State]], State]  # states of single members -> the program's state
  put_rows: Callable[[list[np.ndarray]], jax.Array]
  put_hyperparameters: Callable[[list[optim.Hyperparameters]], optim.Hyperparameters]
  losses: Callable[[Any, np.ndarray], np.ndarray]  # (params of one member, rows) -> float32[B, T]

  def member(self, tree: Any, index: int) -> Any:
    """One member's part of a tree, copied to the host."""
    if self.members == 1:
      return jax.tree.map(lambda x: np.array(x, copy=True), tree)
    return jax.tree.map(lambda x: np.array(x[index], copy=True), tree)


_PROGRAMS: dict[str, Program] = {}


def program(config: Config, members: int = 1) -> Program:
  """The program of a resolved config; the same one for every run that differs in traced inputs only."""
  mesh, single_mesh = parallel.make_mesh(config, members), parallel.make_mesh(config)
  kept = {name: value for name, value in flatten(config).items() if name.startswith("model.")}
  parts = (
    config.optim.schedule,
    config.train.compute_dtype,
    config.train.accumulate,
    members,
    str(mesh),
    str(single_mesh),
  )
  key = digest(kept) + repr(parts)
  if key not in _PROGRAMS:
    _PROGRAMS[key] = _make_program(config, mesh, single_mesh, members)
  return _PROGRAMS[key]


def _make_program(config: Config, mesh: Mesh, single_mesh: Mesh, members: int) -> Program:
  dtype = jnp.dtype(config.train.compute_dtype)
  model = models.build(config.model, dtype)
  schedule, accumulate = config.optim.schedule, config.train.accumulate
  options = hardware.compiler_options()

  def fresh(key: jax.Array) -> State:
    params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
    # Adam's state is zeros, whatever its hyperparameters.
    zero = optim.Hyperparameters(*(0.0,) * len(optim.Hyperparameters._fields))
    opt_state = optim.optimizer(jnp.float32(0), zero).init(params)
    return State(jnp.int32(0), params, opt_state, jnp.float32(0), jnp.int32(-1))

  boxed = jax.eval_shape(fresh, jax.random.key(0))
  state_shardings = parallel.shardings(single_mesh, boxed)
  init = _on_mesh(single_mesh, jax.jit(lambda key: nn.meta.unbox(fresh(key)), out_shardings=state_shardings))

  one_step = functools.partial(train_step, model.apply, schedule, accumulate)
  if members == 1:
    rows_sharding = parallel.batch_sharding(mesh)
    shardings = (state_shardings, rows_sharding, parallel.replicated(mesh))
    jitted = jax.jit(
      one_step,
      donate_argnums=0,
      in_shardings=shardings,
      out_shardings=(state_shardings, parallel.replicated(mesh)),
      compiler_options=options,
    )
    step = _on_mesh(mesh, jitted)
    place = lambda states: jax.device_put(states[0], state_shardings)
  else:
    rows_sharding = parallel.member_sharding(mesh)
    step = jax.jit(
      jax.shard_map(
        functools.partial(_each_member, one_step),
        mesh=mesh,
        in_specs=PartitionSpec("member"),
        out_specs=PartitionSpec("member"),
        check_vma=False,
      ),
      donate_argnums=0,
      compiler_options=options,
    )
    place = lambda states: jax.device_put(_stack(states), rows_sharding)

  def put_rows(rows: list[np.ndarray]) -> jax.Array:
    return jax.device_put(rows[0] if members == 1 else np.stack(rows), rows_sharding)

  def put_hyperparameters(hyperparameters: list[optim.Hyperparameters]) -> optim.Hyperparameters:
    if members == 1:
      return jax.device_put(hyperparameters[0], parallel.replicated(mesh))
    return jax.device_put(_stack(hyperparameters), rows_sharding)

  eval_rows_sharding = parallel.batch_sharding(single_mesh)
  losses = _on_mesh(
    single_mesh,
    jax.jit(
      lambda params, rows: causal_lm.token_losses(_apply(model.apply, params), rows)[0],
      in_shardings=(state_shardings.params, eval_rows_sharding),
      compiler_options=options,
    ),
  )
  return Program(
    mesh=mesh,
    members=members,
    init=lambda seed: init(jax.random.key(seed)),
    step=step,
    place=place,
    put_rows=put_rows,
    put_hyperparameters=put_hyperparameters,
    losses=lambda params, rows: np.asarray(losses(params, rows)),
  )


def _stack(trees: list[Any]) -> Any:
  return jax.tree.map(lambda *x: np.stack([np.asarray(v) for v in x]), *trees)


def _on_mesh(mesh: Mesh, jitted: Callable) -> Callable:
  """`jitted`, called where the model's logical axes mean axes of the mesh."""

  def call(*arguments: Any) -> Any:
    with jax.set_mesh(mesh), nn.logical_axis_rules(parallel.RULES):
      return jitted(*arguments)

  return call


def _apply(apply: Callable, params: Any) -> causal_lm.Apply:
  return lambda tokens: apply({"params": params}, tokens)


def _each_member(one_step: Callable, *arguments: Any) -> Any:
  """The members of one lane: one after another on a CPU, where that is faster, batched elsewhere."""
  if jax.default_backend() == "cpu":
    return jax.lax.map(lambda one: one_step(*one), arguments)
  return jax.vmap(one_step)(*arguments)


def train_step(
  apply: Callable, schedule: str, accumulate: int, state: State, rows_BxT1: jax.Array, h: optim.Hyperparameters
) -> tuple[State, dict[str, jax.Array]]:
  """One step of one run: pure, and the same for every mesh."""

  def objective(params: Any, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return causal_lm.loss(_apply(apply, params), rows, h.z_loss)

  gradient = jax.value_and_grad(objective, has_aux=True)
  if accumulate == 1:
    (_, loss), grads = gradient(state.params, rows_BxT1)
  else:
    # Row b goes to microbatch b % accumulate, so that no row leaves its device.
    micro = rows_BxT1.reshape(-1, accumulate, rows_BxT1.shape[1]).swapaxes(0, 1)

    def add(total: Any, rows: jax.Array) -> tuple[Any, None]:
      (_, loss), grads = gradient(state.params, rows)
      return jax.tree.map(jnp.add, total, (loss, grads)), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    total, _ = jax.lax.scan(add, zero, micro)
    loss, grads = jax.tree.map(lambda x: x / accumulate, total)
  lr = optim.learning_rate(schedule, state.step, h)
  updates, opt_state = optim.optimizer(lr, h).update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  diverged = jnp.where((state.diverged_at < 0) & ~jnp.isfinite(loss), state.step, state.diverged_at)
  new = State(state.step + 1, params, opt_state, EMA * state.loss_ema + (1 - EMA) * loss, diverged)
  metrics = {
    "loss": loss,
    "grad_norm": optax.tree.norm(grads),
    "param_norm": optax.tree.norm(params),
    "lr": lr,
    "diverged_at": diverged,
  }
  return new, metrics


def loss_train(state: State) -> float:
  """The debiased average of the training loss over the last steps."""
  return float(state.loss_ema) / (1 - EMA ** int(state.step)) if int(state.step) else float("nan")


def params_sha256(params: Any) -> str:
  """sha256 over names, shapes and bytes of all parameters."""
  digest = hashlib.sha256()
  for path, value in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(value)
    digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()
