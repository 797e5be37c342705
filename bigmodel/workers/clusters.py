"""Workers on a cluster, as Ray tasks or Slurm jobs. They share nothing but the study's folder."""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from bigmodel.config import parse_value, require
from bigmodel.declarations import Value
from bigmodel.errors import UserError

# Environment variables with these prefixes are passed on to workers.
CARRIED = ("BIGMODEL_", "JAX_", "PYTHONPATH", "TF_CPP_", "XLA_")
LOOK_SECONDS = 5.0  # between two calls of squeue
ARRIVES_SECONDS = 30.0  # how long a result file may take to become visible on a shared file system
VANISHED = -1  # the exit code reported for a worker that was lost
PACKAGES = {"ray": "ray", "slurm": "submitit"}


class Place(Protocol):
  """The place of one worker: a process, a Ray task or a Slurm job."""

  log: str  # where the user finds the messages of the worker

  def start(self) -> None: ...

  def poll(self) -> int | None:
    """Returns None while the worker runs, then its exit code, or `VANISHED` if the worker was lost."""
    ...

  def stop(self) -> None:
    """Asks the worker to save its state and to exit."""
    ...

  def kill(self) -> None: ...


def run(command: Sequence[str], folder: str, environment: dict[str, str]) -> int:
  """Runs a worker's process until it exits, and returns its exit code; terminates it if this call is interrupted."""
  process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
  try:
    return process.wait()
  except BaseException:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(60)
    process.kill()
    raise


def _carried() -> dict[str, str]:
  return {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}


class RayTask:
  """A worker as a Ray task, on the cluster of RAY_ADDRESS, else a cluster running here, else a new local cluster."""

  log = "in the logs of Ray's workers"

  def __init__(self, command: Sequence[str], options: Mapping[str, Value]):
    import ray  # pyright: ignore[reportMissingImports]

    self._ray, self._command = ray, list(command)
    if not ray.is_initialized():
      handler = signal.getsignal(signal.SIGTERM)
      ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
      signal.signal(signal.SIGTERM, handler)  # Ray's handler would end this process at once
    try:
      self._run = ray.remote(max_retries=0, **options)(run)
    except (TypeError, ValueError) as error:
      raise UserError(f"--worker-options: {str(error).splitlines()[0]}") from error
    self._task: Any = None

  def start(self) -> None:
    self._task = self._run.remote(self._command, os.getcwd(), _carried())

  def poll(self) -> int | None:
    if not self._ray.wait([self._task], timeout=0)[0]:
      return None
    try:
      return self._ray.get(self._task)
    except self._ray.exceptions.RayError:  # the Ray worker or its node is gone
      return VANISHED

  def stop(self) -> None:
    self._ray.cancel(self._task)

  def kill(self) -> None:
    self._ray.cancel(self._task, force=True)


class SlurmArray:
  """The Slurm jobs of all workers: first one job array, later a single job for each worker that was lost."""

  def __init__(self, commands: Sequence[Sequence[str]], options: Mapping[str, Value], logs: epath.Path):
    import submitit  # pyright: ignore[reportMissingImports]

    self._commands = commands
    try:
      self._executor = submitit.AutoExecutor(str(logs), cluster="slurm")
      self._executor.update_parameters(**{"name": "bigmodel", "slurm_array_parallelism": len(commands), **options})
    except (NameError, RuntimeError, TypeError, ValueError) as error:
      raise UserError(f"--workers=slurm: {str(error).splitlines()[0]}") from error
    self._first: list[Any] | None = None
    self._alive: set[str] = set()
    self._last_squeue = float("-inf")

  def submit(self, index: int, again: bool) -> Any:
    folders, environments = [os.getcwd()] * len(self._commands), [_carried()] * len(self._commands)
    commands = [list(command) for command in self._commands]
    try:
      if again:
        return self._executor.submit(run, commands[index], folders[index], environments[index])
      if self._first is None:
        jobs: list[Any] = self._executor.map_array(run, commands, folders, environments)
        self._first = jobs
      return self._first[index]
    except RuntimeError as error:  # submitit raises it with the message of sbatch
      raise UserError(f"--workers=slurm: {str(error).strip().splitlines()[-1]}") from error

  def alive(self, job: str) -> bool:
    """Whether the job is pending or running. One call of squeue, at most every `LOOK_SECONDS`, covers all jobs."""
    if time.monotonic() - self._last_squeue > LOOK_SECONDS:
      listing = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format=%i"], capture_output=True, text=True, check=False
      )
      if listing.returncode:
        return True  # the controller does not answer, but jobs keep running without it
      self._alive, self._last_squeue = set(listing.stdout.split()), time.monotonic()
    return job in self._alive


class SlurmJob:
  """A worker as a Slurm job. Works without Slurm's accounting database."""

  log = "in logs/slurm of the study's folder"

  def __init__(self, array: SlurmArray, index: int):
    self._array, self._index = array, index
    self._job: Any = None
    self._gone: float | None = None  # when the job was first missing from the queue
    self._stopped = False

  def start(self) -> None:
    self._job, self._gone = self._array.submit(self._index, self._job is not None), None
    self._began = time.monotonic()

  def poll(self) -> int | None:
    if self._job.paths.result_pickle.exists():
      outcome, result = self._job._get_outcome_and_result()  # `result()` would call sacct first
      return result if outcome == "success" else VANISHED
    now = time.monotonic()
    if now - self._began < 2 * LOOK_SECONDS or self._array.alive(self._job.job_id):
      self._gone = None
      return None
    if self._stopped:
      return VANISHED
    self._gone = self._gone or now
    return VANISHED if now - self._gone > ARRIVES_SECONDS else None

  def stop(self) -> None:
    self._stopped = True
    self._cancel("--state=PENDING")
    self._cancel("--state=RUNNING", "--signal=TERM")

  def kill(self) -> None:
    self._cancel()

  def _cancel(self, *options: str) -> None:
    subprocess.run(["scancel", "--quiet", *options, self._job.job_id], capture_output=True, check=False)


def places(
  kind: str, commands: Sequence[Sequence[str]], options: Mapping[str, Value], logs: epath.Path
) -> Sequence[Place]:
  """Returns one place for the worker of each command."""
  if kind == "ray":
    return [RayTask(command, options) for command in commands]
  array = SlurmArray(commands, options, logs)
  return [SlurmJob(array, index) for index in range(len(commands))]


def parse_options(kind: str, texts: Sequence[str]) -> dict[str, Value]:
  """Parses NAME=VALUE options of Ray or submitit; raises `UserError` where the kind of workers cannot be used."""
  options: dict[str, Value] = {}
  require(not texts or kind in PACKAGES, "--worker-options: only workers of ray and slurm take options")
  for text in texts:
    name, equals, value = text.partition("=")
    require(bool(equals and name), f"--worker-options: {text!r} is not NAME=VALUE")
    options[name] = parse_value(value)
  package = PACKAGES.get(kind)
  require(
    not package or importlib.util.find_spec(package) is not None,
    f"--workers={kind}: {package} is not installed; install bigmodel[{kind}]",
  )
  require(
    kind != "slurm" or bool({"timeout_min", "slurm_time"} & set(options)),
    "--worker-options: set timeout_min=MINUTES, the time limit of a job; at the limit it saves and is resubmitted",
  )
  return options
