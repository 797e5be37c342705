"""Workers on clusters: real clusters on one machine, whose nodes and jobs are removed while they train."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import msgspec
import pytest

from bigmodel import record, study
from bigmodel.config import load
from bigmodel.errors import UserError
from bigmodel.files import read_json, write_json
from bigmodel.study import plan as plans
from bigmodel.workers import clusters, pool, worker
from bigmodel.workers.pool import Workers

CONFIG = """
from bigmodel.study import Grid, Study, default_config
def get_config(arg=None):
  config = default_config()
  config.data.update(name="text_files", path={path!r}, heldout_fraction=0.2, context=32, repeat=True)
  config.model.update(width=16, layers=1, head_size=8)
  config.train.update(steps={steps}, batch_size=8, log_every=50, checkpoint_every=50)
  config.eval.tokens = 2048
  config.parallel.data = 1
  return config
def get_study(config):
  axes = {{"optim.lr": (1e-3, 2e-3, 4e-3, 8e-3, 1e-2), "seed": tuple(range({seeds}))}}
  return Study("clusters", "?", Grid(axes), laws=())
"""


@pytest.fixture
def command(corpus_dir, tmp_path):
  """Returns `command(folder)`, the command of a study of five learning rates."""

  def of(folder, steps=600, seeds=2):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=str(corpus_dir / "*.jsonl"), steps=steps, seeds=seeds))
    return [sys.executable, "-m", "bigmodel.cli", "study", f"--config={path}", f"--workdir={tmp_path / folder}"]

  return of


def alike(command, calm, other, **sizes):
  """Trains one study undisturbed, and copies its plan, with the same packs, to the other."""
  subprocess.run([*command(calm.name, **sizes), "--workers=local:2"], check=True, timeout=900)
  other.mkdir()
  shutil.copy(calm / "plan.json", other)


def results(folder):
  return {one.run_id: one.result_sha256 for one in record.collect(folder)}


class Fails:
  """A place whose workers exit with these codes, one after another; the last worker keeps running."""

  log = "here"

  def __init__(self, codes):
    self.codes, self.starts = list(codes), 0

  def start(self):
    self.starts += 1

  def poll(self):
    return self.codes[self.starts - 1] if self.starts <= len(self.codes) else None


def test_a_worker_that_dies_is_restarted_but_not_after_invalid_input(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda _: None))
  place = Fails([clusters.VANISHED, 137, 0])  # the last exited normally before all runs ended
  slot = pool._Slot(place)
  for _ in range(20):
    slot.keep_running((0, 0))
    clock[0] += 1.0
  assert place.starts == 4
  assert slot.is_running()
  slot = pool._Slot(Fails([2]))
  slot.keep_running((0, 0))
  with pytest.raises(UserError, match="rejected its input"):
    slot.keep_running((0, 0))
  place = Fails([clusters.VANISHED] * 20)  # repeated time limits while runs make progress
  slot = pool._Slot(place)
  for step in range(200):
    slot.keep_running((0, step))
    clock[0] += 1.0
  assert place.starts == 21
  slot = pool._Slot(Fails([1] * 99))

  def go_on():
    for _ in range(1000):
      slot.keep_running((0, 0))
      clock[0] += 1.0

  with pytest.raises(RuntimeError, match="died 10 times in a row"):
    go_on()


def test_a_job_that_left_the_queue_without_a_result_has_vanished(tmp_path, monkeypatch):
  """Not immediately, because its files may become visible late."""
  clock = [0.0]
  monkeypatch.setattr(clusters, "time", SimpleNamespace(monotonic=lambda: clock[0]))
  queue = {"7_0"}
  job = SimpleNamespace(job_id="7_0", paths=SimpleNamespace(result_pickle=tmp_path / "result.pkl"))
  job._get_outcome_and_result = lambda: ("success", 0)
  place = clusters.SlurmJob(SimpleNamespace(submit=lambda index, again: job, alive=lambda name: name in queue), 0)
  place.start()
  polls = []
  for at in (1, 20, 40, 60, 80):
    clock[0] = at
    if at == 40:
      queue.clear()
    polls.append(place.poll())
  assert polls == [None, None, None, None, clusters.VANISHED]
  (tmp_path / "result.pkl").touch()
  assert place.poll() == 0


def test_worker_options_are_parsed_as_values(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
  given = ["timeout_min=5", "slurm_use_srun=False", "slurm_partition=gpu", "mem_gb=0.5"]
  assert Workers.parse("slurm:2", given).options == {
    "timeout_min": 5, "slurm_use_srun": False, "slurm_partition": "gpu", "mem_gb": 0.5,
  }  # fmt: skip
  with pytest.raises(UserError, match="'gpu' is not NAME=VALUE"):
    Workers.parse("ray:2", ["gpu"])
  with pytest.raises(UserError, match="set timeout_min=MINUTES"):
    Workers.parse("slurm:2")
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"install bigmodel\[ray\]"):
    Workers.parse("ray:2")
  for text in ("ray", "slurm:0", "pbs:2"):
    with pytest.raises(UserError, match="--workers"):
      Workers.parse(text)
  with pytest.raises(UserError, match="--worker-options"):
    Workers.parse("local:2", ["num_gpus=1"])
  words = ["sweep", "--config=a.py", "--worker-options", "nodes=2", "--workers=ray:2", "--worker-options=nodes=3"]
  assert worker.command_of_workers(words)[-2:] == ["sweep", "--config=a.py"]


@pytest.mark.slow
def test_nodes_of_a_ray_cluster_are_removed_while_they_train(command, tmp_path, monkeypatch):
  cluster_utils = pytest.importorskip("ray.cluster_utils")
  ray = pytest.importorskip("ray")
  """Every 20 s one of three nodes is replaced; each of 40 runs ends once, with the results of an undisturbed study."""
  alike(command, tmp_path / "calm", tmp_path / "removed", steps=1500, seeds=8)
  cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
  nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
  monkeypatch.setenv("RAY_ADDRESS", cluster.address)
  process = subprocess.Popen([*command("removed", steps=1500, seeds=8), "--workers=ray:3"])
  removed = 0
  try:
    until = time.monotonic() + 1800
    while process.poll() is None:
      assert time.monotonic() < until
      time.sleep(20)
      cluster.remove_node(nodes.pop(0), allow_graceful=False)
      nodes.append(cluster.add_node(num_cpus=1))
      removed += 1
    assert process.returncode == 0
  finally:
    process.kill()
    ray.shutdown()
    cluster.shutdown()
  print(f"{removed} nodes removed")
  assert removed >= 5
  assert len(results(tmp_path / "calm")) == 40
  assert results(tmp_path / "removed") == results(tmp_path / "calm")


LIMITED = 10_000  # steps that take longer than the time limit of a job, one minute

SLURM = """
ClusterName=here
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={control}
SlurmdPort={daemon}
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch, free_port):
  """Runs Slurm on this host alone, if Debian's slurm-wlm is installed."""
  pytest.importorskip("submitit")
  if os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch"))):
    pytest.skip("needs root and slurm-wlm")
  folder = tmp_path / "slurm"
  for name in ("spool", "state"):
    (folder / name).mkdir(parents=True)
  ports = dict(control=free_port(), daemon=free_port())
  conf = folder / "slurm.conf"
  conf.write_text(SLURM.format(host=socket.gethostname(), folder=folder, cores=len(os.sched_getaffinity(0)), **ports))
  monkeypatch.setenv("SLURM_CONF", str(conf))
  daemons = []
  for name in ("slurmctld", "slurmd"):
    daemons.append(subprocess.Popen([name, "-D", "-f", str(conf)], stderr=subprocess.DEVNULL))
    time.sleep(2)
  yield
  for daemon in daemons:
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(30)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_study_of_ten_runs_trains_in_slurm_jobs(command, tmp_path):
  """A job is cancelled while it trains; another takes its place."""
  alike(command, tmp_path / "calm", tmp_path / "cancelled")
  process = subprocess.Popen([*command("cancelled"), "--workers=slurm:2", "--worker-options=timeout_min=30"])
  jobs = lambda: subprocess.run(
    ["squeue", "--noheader", "--array", "--format=%i %t"], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  try:
    until = time.time() + 300
    while not list((tmp_path / "cancelled").glob("runs/*/checkpoints/[0-9]*")):
      assert time.time() < until
      time.sleep(0.2)
    running = [line.split()[0] for line in jobs() if line.endswith(" R")]
    subprocess.run(["scancel", running[0]], check=True)
    assert process.wait(900) == 0
  finally:
    process.kill()
  assert len(results(tmp_path / "calm")) == 10
  assert results(tmp_path / "cancelled") == results(tmp_path / "calm")
  assert len(list((tmp_path / "cancelled" / "logs" / "slurm").glob("*_submitted.pkl"))) == 3
  until = time.time() + 30
  while jobs():
    assert time.time() < until
    time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_job_saves_before_its_time_limit(command, tmp_path):
  """A group lasts longer than a job and saves no checkpoints in between: only those that jobs save at their limit."""
  rare = "--config.train.checkpoint_every=1000000"
  limits = ["--workers=slurm:1", "--worker-options=timeout_min=1", "--worker-options=slurm_signal_delay_s=20"]
  subprocess.run([*command("limited", steps=LIMITED, seeds=1), rare, *limits], check=True, timeout=900)
  subprocess.run([*command("calm", steps=LIMITED, seeds=1), rare, "--workers=local:1"], check=True, timeout=900)
  assert len(results(tmp_path / "limited")) == 5
  assert results(tmp_path / "limited") == results(tmp_path / "calm")
  assert len(list((tmp_path / "limited" / "logs" / "slurm").glob("*_submitted.pkl"))) >= 2


@pytest.mark.slow
def test_a_worker_may_be_a_job_of_several_hosts(command, tmp_path, free_port):
  """Two processes hold one lease and train one run at a time together."""
  words = command("hosts", steps=100)
  config, module = load(str(tmp_path / "config.py"), [])
  prepared = study.prepare(config, module.get_study(config), tmp_path / "hosts")
  plans.write(tmp_path / "hosts", study.make_plan(prepared))
  write_json(tmp_path / "hosts" / "study.json", msgspec.to_builtins(prepared.about()))
  port, processes = free_port(), []
  env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  for index in range(2):
    more = ["--worker=pod", f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={index}"]
    processes.append(subprocess.Popen([*words, "--config.parallel.data=4", *more], env=env))
  assert [process.wait(600) for process in processes] == [0, 0]
  ended = record.collect(tmp_path / "hosts")
  assert len(ended) == 10
  assert {one.devices["processes"] for one in ended} == {2}
  held = {group["run_ids"][0] for group in read_json(tmp_path / "hosts" / "plan.json")["groups"]}
  assert {path.name for path in (tmp_path / "hosts" / "leases").iterdir()} == {*held, "ended"}
  assert read_json(tmp_path / "hosts" / "runs" / ended[0].run_id / "status.json")["state"] == "finished"
