"""Several hosts: set-up, agreement, and arrays of which each host holds a part.

Every process runs the same code in the same order. Process 0 writes; what the others
must know of it goes through the coordination service (`barrier`, `share`, `first`).
"""

import base64
import functools
import itertools
import json
import logging
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from bigmodel import files
from bigmodel.errors import UserError

# Rows of a batch: an array or a dictionary of arrays, or (how many, load) with load(start, stop) -> such.
Rows = np.ndarray | dict[str, np.ndarray] | tuple[int, Callable[[int, int], Any]]

log = logging.getLogger("bigmodel")
TIMEOUT_MS = 30 * 60 * 1000
SMALL = 1 << 16  # elements of arrays whose mixed positions are kept
POLL_SECONDS = 0.2
END = 1 << 62  # past every step
_numbers = itertools.count()


def connect(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
  """Joins the other processes of this job; does nothing where there are none.

  TPU pods, Slurm, Kubernetes and Open MPI are recognised by JAX; elsewhere the three
  arguments say who is who. Call it before the first JAX computation.
  """
  given = (bool(coordinator), processes > 0, process >= 0)
  if any(given) and not all(given):
    raise UserError("--coordinator, --processes and --process: give all three or none")
  if processes > 0 and process >= processes:
    raise UserError(f"--process: {process} is not less than --processes = {processes}")
  if all(given):
    jax.distributed.initialize(coordinator, processes, process)
  elif _in_cluster():
    jax.distributed.initialize()


def _in_cluster() -> bool:
  """Whether JAX recognises the launcher of this process, and it started more than this one."""
  from jax._src.clusters import ClusterEnv  # what `initialize` asks; there is no public question

  if os.environ.get("SLURM_NTASKS") == "1" or os.environ.get("OMPI_COMM_WORLD_SIZE") == "1":
    return False
  if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
    return False  # a pod by itself, such as a notebook
  kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
  return any(kind.is_env_present() for kind in kinds)


def _client() -> Any:
  from jax._src import distributed  # the coordination service has no public door

  return distributed.global_state.client


def log_to(folder: epath.PathLike) -> None:
  """Also writes this process's log, and what a crash leaves, to `folder/process_I.log`."""
  folder = epath.Path(folder)
  if "://" in str(folder):
    return  # an object store cannot append
  folder.mkdir(parents=True, exist_ok=True)
  handler = logging.FileHandler(folder / f"process_{jax.process_index()}.log")
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
  log.addHandler(handler)
  log.info("process %d of %d, %d of %d devices", jax.process_index(), jax.process_count(),
           jax.local_device_count(), jax.device_count())  # fmt: skip


def several() -> bool:
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes the files that a job shares: of its processes the first does, all others must not."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process is here; safe in any thread, given a name of its own."""
  if several():
    _client().wait_at_barrier(f"bigmodel/{name}", TIMEOUT_MS)


def share(value: Any = None, name: str | None = None, source: int = 0) -> Any:
  """The value that process `source` has. Calls without a name are counted, so all processes make them alike."""
  if not several():
    return value
  key = f"bigmodel/share/{next(_numbers) if name is None else name}"
  if jax.process_index() == source:
    _client().key_value_set(key, base64.b64encode(pickle.dumps(value)).decode())
    return value
  return pickle.loads(base64.b64decode(_client().blocking_key_value_get(key, TIMEOUT_MS)))


def first(work: Callable[[], Any]) -> Any:
  """The value of `work()`, done by the process that writes and known to all; what it raises, all raise."""
  if not several():
    return work()
  result, error = None, None
  if is_first():
    try:
      result = work()
    except Exception as caught:
      error = caught
  told = share({"result": result, "error": error and str(error), "user": isinstance(error, UserError)})
  if error is not None:
    raise error
  if told["error"] is not None:
    raise (UserError if told["user"] else RuntimeError)(told["error"])
  return told["result"]


def gather(value: Any, name: str | None = None) -> list[Any]:
  """The JSON values of all processes, in their order; safe in any thread, given a name of its own."""
  mine = jax.process_index()
  name = f"gather/{next(_numbers)}" if name is None else name
  return [share(value if i == mine else None, f"{name}/{i}", source=i) for i in range(jax.process_count())]


def collect(value: Any, name: str) -> list[Any]:
  """As `gather`, for the process that writes; the others get an empty list, and read nothing."""
  if not several():
    return [value]
  key, mine = f"bigmodel/collect/{name}", jax.process_index()
  _client().key_value_set(f"{key}/{mine}", json.dumps(value))
  if not is_first():
    return []
  texts = [_client().blocking_key_value_get(f"{key}/{i}", TIMEOUT_MS) for i in range(jax.process_count())]
  return [json.loads(text) for text in texts]


class Agreement:
  """Whether to stop, decided alike by all processes: at one step, wherever the signal came.

  A thread of each process listens, so a step costs nothing. Once any process wants to stop,
  every thread tells which step its process has not begun; all go on to the largest of these.
  """

  def __init__(self, requested: Callable[[], bool]):
    """`requested` says whether this process has been asked to stop."""
    self._requested = requested
    self._next = 0  # the first step that this process has not begun
    self._told: int | None = None
    self._target: int | None = None
    self._lock, self._decided, self._closed = threading.Lock(), threading.Event(), threading.Event()
    self._number = next(_numbers)
    if several():
      threading.Thread(target=self._listen, name="agreement", daemon=True).start()

  def __enter__(self) -> "Agreement":
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    if several():
      self._tell(END)

  def stop_before(self, step: int) -> bool:
    """Call before each step: true where the run has to stop without beginning it."""
    if not several():
      return self._requested()
    with self._lock:
      if self._told is None or step < self._told:
        self._next = step + 1
        return False
    self._decided.wait(TIMEOUT_MS / 1000)
    return self._target is None or step >= self._target

  def _listen(self) -> None:
    while not self._wanted():
      if self._closed.wait(POLL_SECONDS):
        return
    self._tell(None)
    try:
      told = [share(None, self._name(i), source=-1) for i in range(jax.process_count())]
      self._target = max(told)
    finally:
      self._decided.set()

  def _name(self, process: int) -> str:
    return f"stopped/{self._number}/{process}"

  def _tell(self, step: int | None) -> None:
    """Tells the others, once, where this process is; one that has left its loop has begun all steps."""
    with self._lock:
      if self._told is None:
        self._told = self._next if step is None else step
        share(self._told, self._name(jax.process_index()), source=jax.process_index())

  def _wanted(self) -> bool:
    try:
      if self._requested():
        _client().key_value_set(f"bigmodel/stop/{self._number}", "1", allow_overwrite=True)
        return True
      return bool(_client().key_value_try_get(f"bigmodel/stop/{self._number}"))
    except Exception:  # nobody has asked yet
      return False


def put(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
  """A small array that every process has, on all devices of a sharding."""
  value = np.asarray(value)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def all_rows(rows: Rows) -> Any:
  return rows[1](0, rows[0]) if isinstance(rows, tuple) else rows


def put_rows(rows: Rows, sharding: NamedSharding) -> Any:
  """Rows on the mesh; a process loads those of its own devices and no others."""
  if not several():
    return jax.device_put(all_rows(rows), sharding)
  if not isinstance(rows, tuple):
    from_all = lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    return jax.tree.map(from_all, rows)
  count, load = rows
  kept = functools.cache(load)  # devices that differ along other axes have the same rows
  span = lambda index: index[0].indices(count)[:2]
  here = sharding.addressable_devices_indices_map((count,))
  leaves, structure = jax.tree.flatten(kept(*span(next(iter(here.values())) or ())))

  def put(place: int, like: np.ndarray) -> jax.Array:
    mine = lambda index: jax.tree.leaves(kept(*span(index)))[place]
    return jax.make_array_from_callback((count, *like.shape[1:]), sharding, mine)

  return structure.unflatten([put(place, like) for place, like in enumerate(leaves)])


def _fingerprint(x: Any, xp: Any) -> Any:
  """uint32[2]: sums over mixed bits and positions, by numpy or jax.numpy. No layout of x changes sums of integers."""
  if xp is np:
    wide = np.ascontiguousarray(x).view(_unsigned(x.dtype)).reshape(x.shape)
    bits = wide.astype(np.uint32)
    if x.dtype.itemsize == 8:  # only ever on the host
      bits = bits ^ _mix((wide >> np.uint64(32)).astype(np.uint32), np)
  else:
    same = x.dtype == jnp.bool_
    bits = (x if same else jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))).astype(jnp.uint32)
  places = _small_places(x.shape) if xp is np and x.size < SMALL else _places(x.shape, xp)
  return xp.stack([xp.sum(_mix(bits ^ place, xp), dtype=xp.uint32) for place in places])


def _places(shape: tuple[int, ...], xp: Any) -> list[Any]:
  """Mixed positions, twice: what the bits of an array of this shape are mixed with."""
  place = xp.zeros(shape, xp.uint32)
  for axis, size in enumerate(shape):
    along = xp.arange(size, dtype=xp.uint32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    place = place * xp.uint32(size % 2**32) + along
  return [_mix(place + xp.uint32(salt), xp) for salt in (0x9E3779B9, 0x85EBCA6B)]


@functools.lru_cache(64)
def _small_places(shape: tuple[int, ...]) -> list[Any]:
  """Of the shapes that a pack of small runs asks for again and again."""
  return _places(shape, np)


def _unsigned(dtype: Any) -> Any:
  return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[jnp.dtype(dtype).itemsize]


def _mix(x: Any, xp: Any) -> Any:
  """A bijection of uint32 whose output bits each depend on all input bits (the finalizer of MurmurHash3)."""
  x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
  x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
  return x ^ (x >> xp.uint32(16))


# One program for all arrays: several at once, each with a reduction over hosts, could start in different orders.
_fingerprint_on_devices = jax.jit(lambda arrays: [_fingerprint(x, jnp) for x in arrays])


def fingerprints(tree: Any) -> dict[str, str]:
  """`{path: 'shape dtype fingerprint'}` of a tree of arrays; alike on every mesh."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  arrays = [leaf for _, leaf in leaves]
  if several() or any(isinstance(x, jax.Array) and next(iter(x.sharding.device_set)).platform != "cpu" for x in arrays):
    sums = _fingerprint_on_devices(arrays)
  else:  # nothing to compile
    with np.errstate(over="ignore"):
      sums = [_fingerprint(np.asarray(x), np) for x in arrays]
  known = {}
  for (path, leaf), value in zip(leaves, sums, strict=True):
    high, low = (int(v) for v in np.asarray(value))
    known[jax.tree_util.keystr(path, simple=True, separator=".")] = f"{leaf.shape} {leaf.dtype} {high:08x}{low:08x}"
  return known


def require_same(value: Any, what: str) -> None:
  """Refuses to go on where the processes of a job disagree, such as about their config."""
  text = json.dumps(value, sort_keys=True)
  if several() and any(other != text for other in gather(text)):
    raise UserError(f"the processes of this job differ in their {what}; start all with the same command")


def require_shared(folder: epath.PathLike) -> None:
  """Refuses a workdir that the processes of a job do not share, before anything is trained."""
  if not several():
    return
  token = epath.Path(folder) / f".shared.{share(os.urandom(8).hex())}"
  first(lambda: files.write_text(token, ""))
  seen = gather(token.exists(), f"shared/{token.name}")
  first(lambda: files.remove(token))
  if not all(seen):
    raise UserError(
      f"--workdir: {folder} is not one folder for all processes; use a shared disk or a bucket (gs://...)"
    )
