"""Jobs of several hosts: set-up, communication between processes, and arrays of which each host holds a part.

Every process runs the same code in the same order. Process 0 writes files; it shares results with the others through
JAX's coordination service (`barrier`, `share`, `first`).
"""

import base64
import functools
import itertools
import json
import logging
import logging.handlers
import os
import pickle
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from bigmodel import files, record
from bigmodel.errors import UserError
from bigmodel.parallel import rendezvous
from bigmodel.types import PyTree

Arrays = np.ndarray | dict[str, np.ndarray]
# Rows of a batch: arrays, or (number of rows, load), where load(start, stop) returns the arrays of these rows.
Rows = Arrays | tuple[int, Callable[[int, int], Arrays]]
Shared = TypeVar("Shared")
AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)

log = logging.getLogger("bigmodel")
TIMEOUT_MS = 30 * 60 * 1000
LAUNCHER_SECONDS = 300.0  # in which the processes of a launcher have to start, which may have to fetch images
SMALL = 1 << 16  # mixed positions are cached for arrays of at most this many elements
POLL_SECONDS = 0.2
END = 1 << 62  # later than every step
_numbers = itertools.count()


def connect(coordinator: str = "", processes: int = 0, process: int = -1, verb: str = "") -> bool:
  """Connects to the other processes of this job, if there are any; returns whether there are.

  JAX recognises TPU pods, Slurm, Kubernetes and Open MPI; elsewhere the three arguments are needed: the address of
  process 0, the number of processes, and the index of this one. Call it before the first JAX computation.
  Raises `JobFailed` if processes are missing, or do not run the same `verb` in the same versions.
  """
  if coordinator or processes != 0 or process >= 0:
    place = rendezvous.Place.parse(coordinator, processes, process)
    rendezvous.meet(place, {"verb": verb} | {f"version of {name}": v for name, v in record.versions().items()})
    _initialize(rendezvous.JOIN_SECONDS, coordinator, processes, process)
  elif _in_cluster():
    _initialize(LAUNCHER_SECONDS)
  else:
    return False
  return _state().num_processes > 1


def _initialize(
  seconds: float, coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
  """Connects by JAX, or ends this process with 1 and one line when that takes too long, before JAX aborts it."""

  def give_up() -> None:
    print(f"bigmodel: the processes of this job have not joined within {seconds:g} s", file=sys.stderr, flush=True)
    os._exit(1)

  timer = threading.Timer(seconds, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(coordinator, processes, process, initialization_timeout=int(seconds) + 30)
  finally:
    timer.cancel()


def _in_cluster() -> bool:
  """Whether JAX recognises the launcher of this process, and it started more than this one."""
  from jax._src.clusters import ClusterEnv  # `initialize` uses it; there is no public function

  if os.environ.get("SLURM_NTASKS") == "1" or os.environ.get("OMPI_COMM_WORLD_SIZE") == "1":
    return False
  if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" not in os.environ:
    return False  # a single pod, such as a notebook
  kinds = [kind for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method]
  return any(kind.is_env_present() for kind in kinds)


class Client(Protocol):
  """JAX's client of the coordination service."""

  def wait_at_barrier(self, name: str, timeout_in_ms: int) -> None: ...

  def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

  def key_value_try_get(self, key: str) -> str: ...

  def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


class _State(Protocol):
  """JAX's view of the job, which it has before there are devices."""

  process_id: int
  num_processes: int
  client: Client | None


def _state() -> _State:
  from jax._src import distributed  # there is no public way to the coordination service

  return cast(_State, distributed.global_state)


def _client() -> Client:
  client = _state().client
  assert client is not None
  return client


def place_in_job() -> tuple[Client, int, int]:
  """The client of the coordination service, the index of this process, and the number of processes."""
  return _client(), _state().process_id, _state().num_processes


class _LogFile(logging.handlers.MemoryHandler):
  """Writes a log to a file of a folder in the folder of a run, and keeps it until that exists.

  So a command that is refused writes nothing.
  """

  def __init__(self, path: epath.Path):
    self._path = path
    file = logging.FileHandler(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    super().__init__(0, target=file)

  def shouldFlush(self, record: logging.LogRecord) -> bool:
    return True

  def flush(self) -> None:
    if self._path.parent.parent.exists():
      self._path.parent.mkdir(exist_ok=True)
      super().flush()


def log_to(folder: epath.PathLike) -> None:
  """Also writes this process's log to `folder/process_I.log`, as soon as the folder above exists."""
  folder = epath.Path(folder)
  if "://" in str(folder):
    return  # an object store cannot append
  log.addHandler(_LogFile(folder / f"process_{jax.process_index()}.log"))
  here, everywhere = jax.local_device_count(), jax.device_count()
  log.info("process %d of %d, %d of %d devices", jax.process_index(), jax.process_count(), here, everywhere)


def several() -> bool:
  """Whether this job has several processes."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Whether this process writes the files that a job shares: process 0 does, and no other."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Waits until every process has called it; safe in any thread if the name is unique."""
  if several():
    _client().wait_at_barrier(f"bigmodel/{name}", TIMEOUT_MS)


def share(value: Shared | None = None, name: str | None = None, source: int = 0) -> Shared:
  """Returns the value of process `source`. Unnamed calls are numbered, so all processes must make the same calls."""
  if not several():
    return cast(Shared, value)
  key = f"bigmodel/share/{next(_numbers) if name is None else name}"
  if jax.process_index() == source:
    _client().key_value_set(key, base64.b64encode(pickle.dumps(value)).decode())
    return cast(Shared, value)
  return pickle.loads(base64.b64decode(_client().blocking_key_value_get(key, TIMEOUT_MS)))


def first(work: Callable[[], Shared]) -> Shared:
  """Calls `work` in the first process only; all processes return its value or raise its exception."""
  if not several():
    return work()
  result: Shared | None = None
  error: Exception | None = None
  if is_first():
    try:
      result = work()
    except Exception as caught:
      error = caught
  shared, message, is_user_error = share((result, error and str(error), isinstance(error, UserError)))
  if error is not None:
    raise error
  if message is not None:
    raise (UserError if is_user_error else RuntimeError)(message)
  return cast(Shared, shared)


def gather(value: Shared, name: str | None = None) -> list[Shared]:
  """Returns the values of all processes, in order; safe in any thread if the name is unique."""
  mine = jax.process_index()
  name = f"gather/{next(_numbers)}" if name is None else name
  return [share(value if i == mine else None, f"{name}/{i}", source=i) for i in range(jax.process_count())]


def collect(value: Shared, name: str) -> list[Shared]:
  """Like `gather`, but only the first process reads the values; the others return an empty list."""
  if not several():
    return [value]
  key, mine = f"bigmodel/collect/{name}", jax.process_index()
  _client().key_value_set(f"{key}/{mine}", json.dumps(value))
  if not is_first():
    return []
  texts = [_client().blocking_key_value_get(f"{key}/{i}", TIMEOUT_MS) for i in range(jax.process_count())]
  return [json.loads(text) for text in texts]


class Agreement:
  """Makes all processes of a job stop before the same step when any of them is asked to stop.

  A thread of each process listens, so training steps do not wait. Once any process is asked to stop, each thread
  publishes the first step that its process has not begun. All processes continue to the largest of these steps.
  """

  def __init__(self, requested: Callable[[], bool]):
    """`requested` returns whether this process has been asked to stop."""
    self._requested = requested
    self._next = 0  # the first step that this process has not begun
    self._published: int | None = None
    self._target: int | None = None
    self._lock = threading.Lock()
    self._decided = threading.Event()
    self._closed = threading.Event()
    self._number = next(_numbers)
    if several():
      threading.Thread(target=self._listen, name="agreement", daemon=True).start()

  def __enter__(self) -> "Agreement":
    return self

  def __exit__(self, *_: object) -> None:
    self._closed.set()
    if several():
      self._publish(END)

  def stop_before(self, step: int) -> bool:
    """Whether the run has to stop before this step; the loop calls it before every step."""
    if not several():
      return self._requested()
    with self._lock:
      if self._published is None or step < self._published:
        self._next = step + 1
        return False
    self._decided.wait(TIMEOUT_MS / 1000)
    return self._target is None or step >= self._target

  def _listen(self) -> None:
    while not self._wanted():
      if self._closed.wait(POLL_SECONDS):
        return
    self._publish(None)
    try:
      steps: list[int] = [share(None, self._name(i), source=-1) for i in range(jax.process_count())]
      self._target = max(steps)
    finally:
      self._decided.set()

  def _name(self, process: int) -> str:
    return f"stopped/{self._number}/{process}"

  def _publish(self, step: int | None) -> None:
    """Publishes, only once, the first step that this process has not begun, by default its next; END after the loop."""
    with self._lock:
      if self._published is None:
        self._published = self._next if step is None else step
        share(self._published, self._name(jax.process_index()), source=jax.process_index())

  def _wanted(self) -> bool:
    try:
      if self._requested():
        _client().key_value_set(f"bigmodel/stop/{self._number}", "1", allow_overwrite=True)
        return True
      return bool(_client().key_value_try_get(f"bigmodel/stop/{self._number}"))
    except Exception:  # no process has been asked yet
      return False


def put(value: jax.typing.ArrayLike, sharding: jax.sharding.Sharding) -> jax.Array:
  """Puts a small array, which every process has, on all devices of a sharding."""
  array = np.asarray(value)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def all_rows(rows: Rows) -> Arrays:
  """Returns the rows as arrays, loading them if necessary."""
  return rows[1](0, rows[0]) if isinstance(rows, tuple) else rows


def put_rows(rows: Rows, sharding: NamedSharding) -> PyTree:
  """Puts rows on the mesh; each process loads only the rows of its devices."""
  if not several():
    return jax.device_put(all_rows(rows), sharding)
  if not isinstance(rows, tuple):
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), rows)
  count, load = rows
  cached = functools.cache(load)  # devices that differ only along other axes of the mesh have the same rows

  def span(index: tuple[slice, ...]) -> tuple[int, int]:
    start, stop, _ = index[0].indices(count)
    return start, stop

  here = sharding.addressable_devices_indices_map((count,))
  leaves, structure = jax.tree.flatten(cached(*span(next(iter(here.values())) or ())))

  def put(place: int, like: np.ndarray) -> jax.Array:
    def rows_at(index: tuple[slice, ...] | None) -> np.ndarray:
      return jax.tree.leaves(cached(*span(index or ())))[place]

    return jax.make_array_from_callback((count, *like.shape[1:]), sharding, rows_at)

  return structure.unflatten([put(place, like) for place, like in enumerate(leaves)])


# A fingerprint is uint32[2]: sums of mixed bits and positions. Integer sums do not depend on the array's layout.


def _fingerprint_on_host(x: np.ndarray) -> np.ndarray:
  wide = np.ascontiguousarray(x).view(_unsigned(x.dtype)).reshape(x.shape)
  bits = wide.astype(np.uint32)
  if x.dtype.itemsize == 8:  # arrays of 8-byte elements exist only on the host
    bits = bits ^ _mix((wide >> np.uint64(32)).astype(np.uint32), np)
  places = _small_places(x.shape) if x.size < SMALL else _places(x.shape, np)
  return np.stack([np.sum(_mix(bits ^ place, np), dtype=np.uint32) for place in places])


def _fingerprint_on_device(x: jax.Array) -> jax.Array:
  same = x.dtype == jnp.bool_
  bits = (x if same else jax.lax.bitcast_convert_type(x, _unsigned(x.dtype))).astype(jnp.uint32)
  return jnp.stack([jnp.sum(_mix(bits ^ place, jnp), dtype=jnp.uint32) for place in _places(x.shape, jnp)])


def _places(shape: tuple[int, ...], numpy: ModuleType) -> list[PyTree]:
  """Returns two arrays of mixed positions for an array of this shape, as NumPy or jax.numpy arrays."""
  place = numpy.zeros(shape, numpy.uint32)
  for axis, size in enumerate(shape):
    along = numpy.arange(size, dtype=numpy.uint32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    place = place * numpy.uint32(size % 2**32) + along
  return [_mix(place + numpy.uint32(salt), numpy) for salt in (0x9E3779B9, 0x85EBCA6B)]


@functools.lru_cache(64)
def _small_places(shape: tuple[int, ...]) -> list[np.ndarray]:
  """Returns cached positions, because a pack of small runs needs the same shapes many times."""
  return _places(shape, np)


def _unsigned(dtype: jax.typing.DTypeLike) -> type[np.unsignedinteger]:
  return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[jnp.dtype(dtype).itemsize]


def _mix(x: AnyArray, numpy: ModuleType) -> AnyArray:
  """Returns a bijection of uint32 in which every output bit depends on all input bits (MurmurHash3's finalizer)."""
  x = (x ^ (x >> numpy.uint32(16))) * numpy.uint32(0x85EBCA6B)
  x = (x ^ (x >> numpy.uint32(13))) * numpy.uint32(0xC2B2AE35)
  return x ^ (x >> numpy.uint32(16))


# One program computes all fingerprints: several programs with reductions over hosts could start in different orders.
_fingerprint_on_devices = jax.jit(lambda arrays: [_fingerprint_on_device(x) for x in arrays])


def fingerprints(tree: PyTree) -> dict[str, str]:
  """Returns `{path: 'shape dtype fingerprint'}` of a tree of arrays, which is the same on every mesh."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  arrays = [leaf for _, leaf in leaves]
  if several() or any(isinstance(x, jax.Array) and next(iter(x.sharding.device_set)).platform != "cpu" for x in arrays):
    sums = _fingerprint_on_devices(arrays)
  else:  # nothing to compile
    with np.errstate(over="ignore"):
      sums = [_fingerprint_on_host(np.asarray(x)) for x in arrays]
  marks = {}
  for (path, leaf), value in zip(leaves, sums, strict=True):
    high, low = (int(v) for v in np.asarray(value))
    marks[jax.tree_util.keystr(path, simple=True, separator=".")] = f"{leaf.shape} {leaf.dtype} {high:08x}{low:08x}"
  return marks


def require_same(value: object, what: str) -> None:
  """Raises `UserError` if the processes of a job have different values, such as configs."""
  text = json.dumps(value, sort_keys=True)
  if several() and any(other != text for other in gather(text)):
    raise UserError(f"the processes of this job differ in their {what}; start all with the same command")


def require_shared(folder: epath.PathLike) -> None:
  """Raises `UserError` if the processes of a job do not share the folder."""
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
