"""Processes of a job meet before JAX connects them; whoever fails, is missing or does not fit is named to all."""

import concurrent.futures
import socket
import time

import pytest

from bigmodel.errors import JobFailed, UserError
from bigmodel.parallel import rendezvous
from bigmodel.parallel.rendezvous import Place


@pytest.fixture(autouse=True)
def short(monkeypatch):
  monkeypatch.setattr(rendezvous, "LINGER_SECONDS", 3.0)
  monkeypatch.setattr(rendezvous, "READ_SECONDS", 0.5)


def together(*calls):
  """Runs calls in threads; returns the error of each, as (message, code), or None."""

  def outcome(call):
    try:
      call()
    except JobFailed as error:
      return str(error), error.code
    return None

  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    return list(pool.map(outcome, calls))


def joins(port, processes, process, facts=None, seconds=20.0, delay=0.0):
  def call():
    time.sleep(delay)
    rendezvous.meet(Place("127.0.0.1", port, processes, process), facts or {}, seconds)

  return call


def fails(port, processes, process, code, error, delay=0.0):
  def call():
    time.sleep(delay)
    rendezvous.report_failure((f"127.0.0.1:{port}", processes, process), code, error)

  return call


def test_processes_meet_in_any_order_and_leave_the_port_free(free_port):
  port = free_port()
  for _ in range(2):
    assert together(*(joins(port, 4, i, {"verb": "train"}, delay=0.1 * (i % 2)) for i in (2, 0, 3, 1))) == [None] * 4
    socket.create_server(("127.0.0.1", port)).close()
  assert together(joins(port, 1, 0)) == [None]


@pytest.mark.parametrize("delay", [0.0, 0.5])
def test_a_process_that_fails_before_it_joins_ends_the_others_with_its_exit_code(free_port, delay):
  port, message = free_port(), "process 1 of this job failed: --profile: 'x' is not a number"
  began = time.monotonic()
  ended = together(
    joins(port, 3, 0), fails(port, "3", "1", 2, "--profile: 'x' is not a number"), joins(port, 3, 2, delay=delay)
  )
  assert ended == [(message, 2), None, (message, 2)]
  port = free_port()
  ended = together(fails(port, "2", "0", 75, "interrupted"), joins(port, 2, 1, delay=delay))
  assert ended == [None, ("process 0 of this job failed: interrupted", 75)]
  assert time.monotonic() - began < 8


def test_all_processes_may_fail_and_nobody_may_answer(free_port):
  port, began = free_port(), time.monotonic()
  assert together(*(fails(port, "2", str(i), 2, "no such option") for i in range(2))) == [None, None]
  assert time.monotonic() - began < 2
  assert together(fails(port, "many", "first", 2, "no such option")) == [None]
  assert together(fails("", "2", "1", 2, "no port")) == [None]


@pytest.mark.parametrize(
  ("others", "message"),
  [
    ([(3, 1, {})], "--processes: the processes of this job differ: 2 in process 0, 3 in process 1"),
    ([(2, 0, {})], None),  # two processes 0, of which one cannot listen
    (
      [(2, 1, {"version of jax": "0.9"})],
      "the processes of this job differ in their version of jax: none in process 0",
    ),
  ],
)
def test_processes_that_do_not_fit_together_are_refused(free_port, monkeypatch, others, message):
  port = free_port()
  monkeypatch.setattr(rendezvous, "LINGER_SECONDS", 0.5)
  calls = [joins(port, 2, 0, seconds=2.0), *(joins(port, *other, delay=0.1) for other in others)]
  if message is None:
    with pytest.raises(UserError, match=f"--coordinator: cannot listen at port {port} of this machine"):
      together(*calls)
    return
  for error in together(*calls):
    assert error is not None
    assert error[0].startswith(message)
    assert error[1] == 2


def test_two_processes_with_one_index_are_refused_but_a_restarted_one_is_welcome(free_port):
  port = free_port()
  ended = together(joins(port, 3, 0), joins(port, 3, 1), joins(port, 3, 1, delay=0.2))
  assert ended == [("--process: two processes of this job have the index 1", 2)] * 3
  port = free_port()

  def dies():
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port)) as connection:
      connection.sendall(b'{"processes":3,"process":1}\n')

  assert together(joins(port, 3, 0), dies, joins(port, 3, 1, delay=0.6), joins(port, 3, 2, delay=0.9)) == [None] * 4


def test_missing_processes_are_named_with_1_so_that_a_supervisor_tries_again(free_port):
  port = free_port()
  first, second = together(joins(port, 4, 0, seconds=0.5), joins(port, 4, 2, seconds=0.5))
  assert first == second == (f"processes 1, 3 have not joined this job at port {port} within 0.5 s", 1)
  port = free_port()
  message = f"process 0 of this job did not answer at 127.0.0.1:{port} within 0.2 s; is it running?"
  assert together(joins(port, 2, 1, seconds=0.2)) == [(message, 1)]


def test_strangers_at_the_port_are_turned_away(free_port):
  port = free_port()

  def stranger():
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'{"processes":"two"}\n', b"\xff\n", b""):
      time.sleep(0.1)
      with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(text)

  assert together(joins(port, 2, 0), stranger, joins(port, 2, 1, delay=0.6)) == [None] * 3


@pytest.mark.parametrize(
  ("coordinator", "processes", "process", "message"),
  [
    ("10.0.0.1", 2, 0, "--coordinator: '10.0.0.1' is not HOST:PORT, such as 10.0.0.1:8476"),
    (":8476", 2, 0, "--coordinator: ':8476' is not HOST:PORT"),
    ("host:", 2, 0, "--coordinator: 'host:' is not HOST:PORT"),
    ("host:http", 2, 0, "--coordinator: 'host:http': the port 'http' is not a number"),
    ("host:²", 2, 0, "the port '²' is not a number"),
    ("host:0", 2, 0, "the port 0 is not in [1, 65535]"),
    ("host:99999", 2, 0, "the port 99999 is not in [1, 65535]"),
    ("grpc://host:8476", 2, 0, "write HOST:PORT without a scheme"),
    ("::1:8476", 2, 0, "an IPv6 address in brackets"),
    ("host:8476", 2, 2, "--process: 2 is not less than --processes = 2"),
    ("host:8476", 0, 0, "give all three or none; --processes is at least 1"),
    ("host:8476", 2, -1, "give all three or none"),
    ("", 2, 0, "give all three or none"),
  ],
)
def test_an_invalid_place_is_refused(coordinator, processes, process, message):
  with pytest.raises(UserError) as caught:
    Place.parse(coordinator, processes, process)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_addresses():
  assert rendezvous.parse_address("[::1]:8476") == ("::1", 8476)
  assert rendezvous.parse_address("node-1.cluster.local:80") == ("node-1.cluster.local", 80)
