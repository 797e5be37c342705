"""Brings the processes of a job together at the coordinator's port, shortly before JAX does.

JAX aborts a process (exit code 134) that waits for the others in vain, or whose index is taken. Here such mistakes are
one line with an exit code, and a process that fails before it can join says why to the others. Every process sends one
line of JSON to process 0, a `Hello`, and gets one back, a `Verdict`.
"""

import contextlib
import dataclasses
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from bigmodel.config import require
from bigmodel.errors import JobFailed, UserError

JOIN_SECONDS = 120.0  # in which all processes of a job have to start
LINGER_SECONDS = 8.0  # in which a failure is passed on to processes that start a little later
READ_SECONDS = 2.0
LONGEST_LINE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Place:
  """The place of a process in its job: the address of process 0, the number of processes, and its index."""

  host: str
  port: int
  processes: int
  process: int

  @classmethod
  def parse(cls, coordinator: str, processes: int, process: int) -> "Place":
    """The place that the options name; raises `UserError` where one of them is invalid or missing."""
    require(
      bool(coordinator) and processes > 0 and process >= 0,
      "--coordinator, --processes and --process: give all three or none; --processes is at least 1, --process counts"
      " from 0",
    )
    host, port = parse_address(coordinator)
    require(process < processes, f"--process: {process} is not less than --processes = {processes}")
    return cls(host, port, processes, process)


def parse_address(coordinator: str) -> tuple[str, int]:
  """The host and the port of HOST:PORT; an IPv6 address is in brackets."""
  host, colon, port = coordinator.rpartition(":")
  where = f"--coordinator: {coordinator!r}"
  require(bool(colon and host and port), f"{where} is not HOST:PORT, such as 10.0.0.1:8476")
  require(port.isascii() and port.isdigit(), f"{where}: the port {port!r} is not a number")
  require(0 < int(port) < 1 << 16, f"{where}: the port {port} is not in [1, 65535]")
  require(
    ":" not in host or (host.startswith("[") and host.endswith("]")),
    f"{where}: write HOST:PORT without a scheme, and an IPv6 address in brackets, such as [::1]:8476",
  )
  return host.strip("[]"), int(port)


class Hello(msgspec.Struct, frozen=True, kw_only=True):
  """What a process says to process 0."""

  processes: int
  process: int
  facts: dict[str, str] = {}  # what has to be equal in all processes, such as versions
  error: str = ""  # why this process failed
  code: int = 0  # its exit code


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
  """The answer of process 0: whether the job can start (an empty error)."""

  error: str = ""
  code: int = 0


Message = TypeVar("Message", Hello, Verdict)


def meet(place: Place, facts: Mapping[str, str], seconds: float = JOIN_SECONDS) -> None:
  """Waits until all processes of the job have started. Raises `JobFailed` if one fails, is missing or does not fit."""
  if place.processes == 1:
    return
  verdict = _talk(place, Hello(processes=place.processes, process=place.process, facts=dict(facts)), seconds)
  if verdict.error:
    raise JobFailed(verdict.error, verdict.code)


def report_failure(options: Sequence[str], code: int, error: str) -> None:
  """Tells the other processes why this one failed before it joined, if they can be reached soon.

  `options` are the coordinator, the number of processes and the index of this one, of which any may be invalid.
  """
  coordinator, *numbers = options
  processes, process = (int(text) if text.isascii() and text.isdigit() else -1 for text in numbers)
  with contextlib.suppress(UserError):  # without an address the other hosts cannot be informed
    place = Place(*parse_address(coordinator), processes, process)
    _talk(place, Hello(processes=processes, process=process, error=error, code=code), LINGER_SECONDS)


def _talk(place: Place, hello: Hello, seconds: float) -> Verdict:
  return _Reception(place, hello).verdict(seconds) if place.process == 0 else _visit(place, hello, seconds)


def _visit(place: Place, hello: Hello, seconds: float) -> Verdict:
  """Says hello to process 0, again and again until it answers; returns its verdict."""
  until = time.monotonic() + seconds + READ_SECONDS  # process 0, which names who is missing, gives up earlier
  while (left := until - time.monotonic()) > 0:
    with (
      contextlib.suppress(OSError),
      socket.create_connection((place.host, place.port), timeout=min(left, READ_SECONDS)) as connection,
    ):
      connection.sendall(msgspec.json.encode(hello) + b"\n")
      verdict = _read(connection, Verdict, left)
      if verdict is not None:
        return verdict
    time.sleep(0.2)
  where = f"{place.host}:{place.port}"
  return Verdict(error=f"process 0 of this job did not answer at {where} within {seconds:g} s; is it running?", code=1)


class _Reception:
  """Process 0, to which the others say hello."""

  def __init__(self, place: Place, hello: Hello):
    self._place, self._hello = place, hello
    self._guests: dict[int, socket.socket] = {}
    self._failure = _failure_of(hello) if hello.error else None

  def verdict(self, seconds: float) -> Verdict:
    """Waits for the others, answers them all, and returns the answer."""
    with contextlib.ExitStack() as stack:
      listener = stack.enter_context(_listen(self._place.port))
      for guest, hello in _arrivals(listener, time.monotonic() + seconds):
        stack.enter_context(guest)
        self._failure = self._failure or self._problem(guest, hello)
        if self._failure is not None:
          _answer(guest, self._failure)
          break
        self._guests[hello.process] = guest
        if len(self._guests) == self._place.processes - 1:
          break
      else:
        self._failure = self._failure or self._missing(seconds)
        for guest in self._guests.values():
          _answer(guest, self._failure)
        return self._failure
      for guest in self._guests.values():
        _answer(guest, self._failure or Verdict())
      if self._failure is not None:
        self._linger(listener)
      return self._failure or Verdict()

  def _problem(self, guest: socket.socket, hello: Hello) -> Verdict | None:
    """Why the job cannot start with this process, or None."""
    mine, index = self._hello, hello.process
    if hello.error:
      return _failure_of(hello)
    if hello.processes != mine.processes:
      difference = f"{mine.processes} in process 0, {hello.processes} in process {index}"
      return Verdict(error=f"--processes: the processes of this job differ: {difference}", code=2)
    taken = index in self._guests and not _has_hung_up(self._guests[index])  # a restarted process comes again
    if taken or not 0 < index < mine.processes:
      return Verdict(error=f"--process: two processes of this job have the index {index}", code=2)
    for name in sorted(mine.facts.keys() | hello.facts.keys()):
      first, other = mine.facts.get(name, "none"), hello.facts.get(name, "none")
      if first != other:
        difference = f"{first} in process 0, {other} in process {index}"
        return Verdict(error=f"the processes of this job differ in their {name}: {difference}", code=2)
    return None

  def _missing(self, seconds: float) -> Verdict:
    missing = [str(i) for i in range(1, self._place.processes) if i not in self._guests]
    names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    what = f"process {names} of {self._place.processes} has" if len(missing) == 1 else f"processes {names} have"
    return Verdict(error=f"{what} not joined this job at port {self._place.port} within {seconds:g} s", code=1)

  def _linger(self, listener: socket.socket) -> None:
    """Passes a failure on to processes that come later."""
    assert self._failure is not None
    others, arrivals = self._place.processes - 1, _arrivals(listener, time.monotonic() + LINGER_SECONDS)
    for _ in range(others - 1 - len(self._guests) if others >= 0 else LONGEST_LINE):
      if (arrival := next(arrivals, None)) is None:
        return
      with arrival[0] as guest:
        _answer(guest, self._failure)


def _failure_of(hello: Hello) -> Verdict:
  name = f"process {hello.process}" if hello.process >= 0 else "a process"
  return Verdict(error=f"{name} of this job failed: {hello.error}", code=hello.code)


def _listen(port: int) -> socket.socket:
  """A socket that listens at the port of all of this machine's addresses."""
  until = time.monotonic() + LINGER_SECONDS  # an earlier process of this job may still hold the port
  while True:
    try:
      if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
      return socket.create_server(("", port), backlog=1024)
    except OSError as error:
      if time.monotonic() > until:
        raise UserError(f"--coordinator: cannot listen at port {port} of this machine ({error.strerror})") from error
    time.sleep(0.2)


def _arrivals(listener: socket.socket, until: float) -> Iterator[tuple[socket.socket, Hello]]:
  """The processes that say hello until the time is up; other visitors of the port are turned away."""
  while (left := until - time.monotonic()) > 0:
    listener.settimeout(left)
    try:
      guest, _ = listener.accept()
    except OSError:  # the time is up, or a visitor has gone again
      continue
    hello = _read(guest, Hello, READ_SECONDS)
    if hello is None:
      guest.close()
    else:
      yield guest, hello


def _read(connection: socket.socket, kind: type[Message], seconds: float) -> Message | None:
  """The message of the other side; None if it sends anything else or hangs up."""
  text = b""
  connection.settimeout(seconds)
  with contextlib.suppress(OSError, msgspec.DecodeError):
    while not text.endswith(b"\n") and len(text) < LONGEST_LINE:
      block = connection.recv(4096)
      if not block:
        return None
      text += block
    return msgspec.json.decode(text, type=kind)
  return None


def _answer(guest: socket.socket, verdict: Verdict) -> None:
  """Sends the verdict, and waits until the guest hangs up: then the port is free for JAX at once."""
  with contextlib.suppress(OSError):
    guest.sendall(msgspec.json.encode(verdict) + b"\n")
    guest.settimeout(READ_SECONDS)
    guest.recv(1)


def _has_hung_up(guest: socket.socket) -> bool:
  try:
    guest.settimeout(0)
    return guest.recv(1) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True
