"""Two processes of four devices agree with one of eight in batches, losses and checkpoints; they recover."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from bigmodel import optim, parallel
from bigmodel.data import pipeline
from bigmodel.parallel import hosts
from bigmodel.train import metrics
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints
from bigmodel.train.programs.single import Single

CONFIG = """
from bigmodel.study import default_config

def get_config(arg=None):
  config = default_config()
  config.data.update(name="text_files", path={path!r}, heldout_fraction=0.2, context=32, repeat=True)
  config.model.update(vocab=264, width=32, layers=2, head_size=8, heads=4, kv_heads=2)
  config.train.update(steps={steps}, batch_size=16, log_every=1, checkpoint_every=5, step_timeout={timeout})
  config.eval.update(tokens=2048, batch_size=16)
  config.parallel.update(preset="fsdp_tp", scan=True)
  return config
"""


@pytest.fixture
def job(corpus_dir, tmp_path, free_port):
  """Starts the processes of one run: `job(steps, processes, devices each)` -> (folder, processes)."""
  started = []

  def start(count, processes, devices, folder="run", more=(), timeout=120.0, port=None):
    path = tmp_path / f"config{count}.py"
    path.write_text(CONFIG.format(path=str(corpus_dir / "*.jsonl"), steps=count, timeout=timeout))
    env = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={devices}")}
    port = port or free_port()
    here = []
    for index in range(processes):
      command = [sys.executable, "-m", "bigmodel.cli", "train", f"--config={path}", f"--workdir={tmp_path / folder}"]
      if processes > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", f"--process={index}"]
      with open(tmp_path / f"{folder}-{index}.log", "a") as log:
        here.append(subprocess.Popen([*command, *more], env=env, stdout=log, stderr=log))
    started.extend(here)
    return tmp_path / folder, here

  yield start
  for process in started:
    process.kill()


def wait(processes, seconds=180):
  return [process.wait(seconds) for process in processes]


def log_of(folder, index=0):
  return (folder.parent / f"{folder.name}-{index}.log").read_text()


def wait_for(folder, step, seconds=120):
  until = time.time() + seconds
  while not any(int(p.name) >= step for p in (folder / "checkpoints").glob("[0-9]*")):
    assert time.time() < until, log_of(folder)
    time.sleep(0.02)


def losses(folder):
  return {row["step"]: row["loss"] for row in metrics.read(folder)}


def test_two_processes_train_as_one_does(job, tmp_path, inside):
  folder, two = job(20, 2, 4, "two")
  assert wait(two) == [0, 0], log_of(folder) + log_of(folder, 1)
  alone = tmp_path / "alone"
  code, _, err = inside("train", f"--config={tmp_path / 'config20.py'}", f"--workdir={alone}")
  assert code == 0, err
  first, second = losses(alone), losses(folder)
  assert list(first) == list(second) == list(range(1, 21))
  assert first[1] == pytest.approx(second[1], rel=1e-5)  # float32 sums in another order
  assert first[20] == pytest.approx(second[20], rel=1e-4)
  read = lambda f: json.loads((f / "record.json").read_text())
  assert read(folder)["devices"]["processes"] == 2
  assert read(folder)["run_id"] == read(alone)["run_id"]
  assert read(folder)["loss_eval"] == pytest.approx(read(alone)["loss_eval"], rel=1e-4)
  assert {p.name for p in (folder / "logs").iterdir()} == {"process_0.log", "process_1.log"}


def test_each_process_loads_its_rows_and_together_they_are_the_batch(resolved, monkeypatch):
  """The rows that `put_rows` requests in two processes of four devices are, row for row, the batch of one process."""
  config, corpus = resolved
  config.train.batch_size = 16
  mesh = parallel.make_mesh_of(dict(data=2, fsdp=2, tensor=2))
  whole = pipeline.train_pipeline(config, corpus, 30).batch(3)
  for process in range(2):
    mine = set(jax.devices()[4 * process : 4 * process + 4])
    sharding = parallel.batch_sharding(mesh)
    spans = {i[0].indices(16)[:2] for d, i in sharding.devices_indices_map((16,)).items() if d in mine}
    assert sorted(spans) == [(8 * process, 8 * process + 4), (8 * process + 4, 8 * process + 8)]
  asked = []

  def load(start, stop):
    asked.append((start, stop))
    return pipeline.train_pipeline(config, corpus, 30).batch(3, start, stop)

  monkeypatch.setattr(hosts, "several", lambda: True)
  placed = hosts.put_rows((16, load), parallel.batch_sharding(mesh))
  np.testing.assert_array_equal(placed, whole)
  assert sorted(asked) == [(0, 4), (4, 8), (8, 12), (12, 16)]  # devices along `tensor` share theirs


def test_fingerprints_depend_on_bits_and_positions_but_not_on_the_mesh():
  x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
  mark = lambda value: hosts.fingerprints({"x": value})["x"]
  for sizes in (dict(data=8), dict(fsdp=2, tensor=4)):
    mesh = parallel.make_mesh_of(sizes)
    for spec in (jax.P(("data", "fsdp")), jax.P(None, "tensor"), jax.P("fsdp", "tensor"), jax.P()):
      assert mark(jax.device_put(x, jax.NamedSharding(mesh, spec))) == mark(x)
  seen = {mark(x)}
  for place in range(0, x.size, 7):
    for bit in range(0, 32, 5):
      flipped = x.copy()
      flipped.view(np.uint32).flat[place] ^= np.uint32(1 << bit)
      seen.add(mark(flipped))
  assert len(seen) == 1 + len(range(0, x.size, 7)) * 7
  assert mark(x[::-1]) != mark(x)
  assert mark(x.T) != mark(x)
  for kind in (np.int32, np.bool_, "bfloat16"):
    assert mark(jax.numpy.ones(3, kind)) != mark(jax.numpy.zeros(3, kind))


MESHES = {1: dict(data=1), 2: dict(fsdp=2), 4: dict(preset="fsdp_tp"), 8: dict(preset="fsdp_tp_sp")}


def test_a_checkpoint_restores_on_any_other_mesh(resolved, tmp_path):
  """Parameters are bit-identical; the next 10 losses agree up to the order of float32 sums."""
  config, corpus = resolved
  config.model.update(vocab=264, width=32, layers=2, heads=4, kv_heads=2, feed_forward=48)
  config.train.batch_size = config.eval.batch_size = 16
  config.parallel.data = 0
  config.parallel.scan = True
  rows = pipeline.train_pipeline(config, corpus, 30)
  runs, expected = {}, ""
  for count, sizes in reversed(MESHES.items()):
    own = config.copy_and_resolve_references()
    own.parallel.update(sizes)
    mesh = parallel.make_mesh(own, devices=jax.devices()[:count])
    assert mesh.size == count
    program = Single(own, mesh)
    h = program.put_hyperparameters([optim.hyperparameters(own, 30)])
    store = Checkpoints(tmp_path / "checkpoints")
    if not expected:
      state = program.init(0)
      for step in range(10):
        state, _ = program.step(state, program.put_rows([rows.batch(step)]), h)
      store.save(10, state)
      expected = steps.params_sha256(state.params)
    else:
      state = store.restore(10, program.shapes)
      assert jax.tree.leaves(state.params)[0].sharding.mesh.size == count
      assert steps.params_sha256(state.params) == expected
    store.close()
    found = []
    for step in range(10, 20):
      state, values = program.step(state, program.put_rows([rows.batch(step)]), h)
      found.append(float(values["loss"]))
    runs[count] = found
  for count in (1, 2, 4):
    np.testing.assert_allclose(runs[count], runs[8], rtol=1e-5)


SHARES = """
import json, sys
import numpy as np
import jax
from bigmodel.parallel import hosts
from bigmodel.train import step as steps
from bigmodel.train.checkpoint import Checkpoints, arrays as stored, integrity
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

folder, port, processes, process = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if processes > 1:
  hosts.connect(f"127.0.0.1:{port}", processes, process)
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
integrity.BLOCK, stored.CHUNK = 1 << 20, 1 << 18  # smaller than the parts of these arrays, as of large ones
counts = {"hashed": 0, "shared": 0, "largest": 0}
sha256, share, put = integrity._sha256, hosts.share, hosts.put

def counted_sha256(folder, block):
  counts["hashed"] += block.size
  return sha256(folder, block)

def counted_share(*given, **named):
  value = share(*given, **named)
  counts["shared"] += len(json.dumps(value))
  return value

def counted_put(value, sharding):
  counts["largest"] = max(counts["largest"], np.asarray(value).nbytes)
  return put(value, sharding)

integrity._sha256, hosts.share, hosts.put = counted_sha256, counted_share, counted_put

def read():
  with open("/proc/self/io") as file:
    return int(file.readline().split()[1])  # rchar: bytes that this process read

def costs(work):
  before = {**counts, "read": read()}
  result = work()
  after = {**counts, "read": read()}
  return result, {name: after[name] - before[name] for name in before}

def make(shape, seed, spec):
  values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return jax.make_array_from_callback(shape, NamedSharding(mesh, spec), lambda index: values[index])

made = {"params": {f"w{i}": make((1024, 2048), i, P("fsdp")) for i in range(4)}, "step": make((), 9, P())}
like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), made)
measured = {"mark": steps.params_sha256(made["params"])}
for name in sys.argv[5:]:
  store = Checkpoints(f"{folder}/{name}")
  if name == f"of{processes}":
    store.save(10, made)  # compiles the computation of fingerprints
    store.wait()
    _, measured["save"] = costs(lambda: (store.save(20, made), store.wait()))
  step, measured[f"verify {name}"] = costs(store.newest_sound)
  assert step == 20
  state, measured[f"restore {name}"] = costs(lambda: store.restore(20, like))
  assert steps.params_sha256(state["params"]) == measured["mark"]
  shardings = {f"w{i}": like["params"][f"w{i}"].sharding for i in range(4)}
  arrays, measured[f"part {name}"] = costs(lambda: store.arrays(20, "params.", shardings))
  arrays = {name.removeprefix("params."): x for name, x in arrays.items()}
  assert steps.params_sha256(arrays) == measured["mark"]
  assert {name: x.sharding for name, x in arrays.items()} == shardings
  store.close()
print("MEASURED" + json.dumps(measured))
"""


def test_no_process_hashes_or_reads_more_than_its_share_of_a_checkpoint(tmp_path, free_port):
  """4 processes save, verify and restore 32 MiB, also from a checkpoint that 1 process wrote; digests agree.

  Bytes hashed and bytes read (by the system's count, in all) by each are at most a quarter, and little more: a block
  of a file, and what Python reads of its own modules. No array comes by the service that passes words around.
  """

  def together(processes, *names):
    port, path = free_port(), tmp_path / "shares.py"
    path.write_text(SHARES)
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, str(path), str(tmp_path), str(port), str(processes)]
    started = [
      subprocess.Popen([*command, str(i), *names], env=env, stdout=subprocess.PIPE, text=True) for i in range(processes)
    ]
    texts = [process.communicate(timeout=240)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes
    return [json.loads(text.partition("MEASURED")[2]) for text in texts]

  (one,) = together(1, "of1")
  four = together(4, "of4", "of1")
  assert {measured["mark"] for measured in four} == {one["mark"]}
  whole = sum(path.stat().st_size for path in (tmp_path / "of4" / "20").rglob("*") if path.is_file())
  most = whole / 4 + (1 << 20)
  for measured in four:
    for what in measured.keys() - {"mark"}:
      assert measured[what]["hashed"] <= most, what
      assert measured[what]["read"] <= most, what
      assert measured[what]["shared"] < 1 << 16, what
      assert measured[what]["largest"] < 1 << 16, what
  assert sum(measured["verify of4"]["hashed"] for measured in four) >= whole - (1 << 16)


@pytest.mark.slow
def test_two_processes_resume_from_one_process_and_back(job):
  whole, one = job(60, 1, 8, "whole")
  assert wait(one) == [0], log_of(whole)
  folder, one = job(60, 1, 8, "moved")
  wait_for(folder, 5)
  one[0].send_signal(signal.SIGTERM)
  assert wait(one) == [75], log_of(folder)
  folder, two = job(60, 2, 4, "moved")
  wait_for(folder, 1 + max(int(p.name) for p in (folder / "checkpoints").iterdir()))
  two[1].send_signal(signal.SIGTERM)
  codes = wait(two)
  assert codes == [75, 75], log_of(folder) + log_of(folder, 1)
  folder, one = job(60, 1, 2, "moved")
  assert wait(one) == [0], log_of(folder)
  first, second = losses(whole), losses(folder)
  assert list(second) == list(range(1, 61))
  np.testing.assert_allclose(list(second.values()), list(first.values()), rtol=1e-4)


def test_processes_of_different_configs_are_refused(job, tmp_path, free_port):
  folder, first = job(20, 2, 4, "differ", port=(port := free_port()))
  first[1].kill()
  first[1].wait()
  _, other = job(21, 1, 4, "differ", ("--coordinator", f"127.0.0.1:{port}", "--processes=2", "--process=1"))
  assert first[0].wait(120) == 2, log_of(folder)
  assert "differ in their config" in log_of(folder)
  assert other[0].wait(10) == 2


def test_an_error_of_one_process_ends_all_with_its_exit_code(job, free_port):
  port, others = free_port(), ("--processes=2", "--process=1", "--config.data.path=/nowhere/*.txt")
  folder, started = job(20, 2, 4, "one", port=port)
  started[1].kill()
  started[1].wait()
  _, failing = job(22, 1, 4, "other", ("--coordinator", f"127.0.0.1:{port}", *others))
  assert failing[0].wait(120) == 2
  assert started[0].wait(10) == 2, log_of(folder)
  assert "bigmodel: process 1 of this job failed: config.data.path: no .txt" in log_of(folder)
  assert not folder.exists()


@pytest.mark.slow
def test_a_step_that_hangs_is_ended(job):
  folder, two = job(5000, 2, 4, "hang", timeout=10.0)
  wait_for(folder, 5)
  two[1].send_signal(signal.SIGSTOP)
  assert two[0].wait(90) == 1
  assert "no step ended for 10 s" in log_of(folder)
  two[1].send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_sigterm_to_one_process_saves_the_same_step_in_all(job, trial):
  rng = random.Random(trial)
  folder, two = job(60, 2, 4, "term")
  wait_for(folder, 5)
  time.sleep(rng.uniform(0, 2))
  two[rng.randrange(2)].send_signal(signal.SIGTERM)
  codes = wait(two)
  assert codes in ([75, 75], [0, 0]), log_of(folder) + log_of(folder, 1)
  if codes == [75, 75]:
    assert wait(job(60, 2, 4, "term")[1]) == [0, 0], log_of(folder)
  assert list(losses(folder)) == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_supervisors_recover_from_sigkill_of_one_process(job, trial):
  """At most one checkpoint interval is lost, and the resumed run reads the right rows."""
  rng = random.Random(100 + trial)
  folder, two = job(60, 2, 4, "kill", ("--restarts=5",))
  wait_for(folder, 5)
  time.sleep(rng.uniform(0, 2))
  supervisor = two[rng.randrange(2)]
  children = subprocess.run(["pgrep", "-P", str(supervisor.pid)], capture_output=True, text=True).stdout.split()
  for child in children:
    os.kill(int(child), signal.SIGKILL)
  assert wait(two, 400) == [0, 0], log_of(folder) + log_of(folder, 1)
  assert list(losses(folder)) == list(range(1, 61))
