"""The peak FLOP/s of all devices of a run's mesh in its compute dtype; and flags of XLA."""

import dataclasses
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bigmodel import config as configs
from bigmodel import hardware, models, study, train
from bigmodel.files import absolute, read_json
from bigmodel.hardware import CHIPS
from bigmodel.parallel import topology
from bigmodel.planner.plan import plan_run
from bigmodel.train.display import Display
from bigmodel.train.fields import DTYPES
from bigmodel.train.member import open_member
from bigmodel.train.run import Run, write_provenance
from bigmodel.train.schedule import Dispatched
from bigmodel.train.stop import StopRequest
from bigmodel.train.watch import Clock, Watch


@dataclasses.dataclass
class Described:
  """A device with only the attributes that the peak depends on."""

  device_kind: str
  platform: str
  process_index: int
  id: int = 0

  def memory_stats(self):
    return None


def devices_of(kind, hosts, on_each, platform="tpu"):
  """Devices of several hosts, as JAX describes them."""
  return [Described(kind, platform, host) for host in range(hosts) for _ in range(on_each)]


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_known_chips_have_their_published_peak_times_the_devices_of_all_hosts(name, dtype):
  chip = CHIPS[name]
  assert chip.kinds
  for kind in chip.kinds:
    one = hardware.peak_flops(devices_of(kind, 1, 1), dtype)
    assert one == (chip.flops if dtype == "bfloat16" else chip.peak("float32")) / chip.devices
    assert hardware.peak_flops(devices_of(kind, 16, 4), dtype) == pytest.approx(64 * one)
  assert chip.peak("float32") <= chip.peak("bfloat16") / 4  # no float32 product runs in the narrow units


def test_device_kinds_are_unique_among_chips():
  kinds = [kind for chip in CHIPS.values() for kind in chip.kinds]
  assert len(kinds) == len(set(kinds))


def test_unknown_devices_are_measured_and_other_hosts_assumed_equal(monkeypatch):
  asked = []

  def measured(devices, dtype, size):
    asked.append((len(devices), dtype, size))
    return len(devices) * {"float32": 100.0, "bfloat16": 60.0}[dtype]

  monkeypatch.setattr(hardware, "measured_flops", measured)
  assert hardware.peak_flops(devices_of("cpu", 4, 2, "cpu"), "float32") == 800
  assert hardware.peak_flops(jax.devices()[:3], "bfloat16") == 300  # a CPU may compute bfloat16 in float32
  assert hardware.peak_flops(devices_of("NVIDIA Other", 2, 8, "gpu"), "bfloat16") == 960
  assert asked[0] == (2, "float32", 1024)
  assert {count for count, _, _ in asked[1:3]} == {3}
  assert asked[3] == (8, "bfloat16", 8192)  # smaller products would leave it idle


def test_measured_speed_covers_only_the_given_devices():
  few = hardware.measured_flops(tuple(jax.devices()[:1]), "float32", 256, 2)
  assert 1e8 < few < 1e14


@pytest.mark.parametrize("hosts", [1, 4])
def test_the_share_of_the_peak_covers_all_hosts(resolved, tmp_path, monkeypatch, hosts):
  config, corpus = resolved
  config.train.log_every = 1
  now = [0.0]
  monkeypatch.setattr("bigmodel.train.watch.time", SimpleNamespace(monotonic=lambda: now[0]))
  member = open_member(Run(config, absolute(tmp_path)), corpus, StopRequest())
  peak = hardware.peak_flops(devices_of("TPU v5 lite", hosts, 4), "float32")
  watch = Watch([member], 0, 30, Display(quiet=True), Clock(1), peak)
  rows = []
  monkeypatch.setattr(member.metrics, "add", lambda step, facts: rows.append(facts))
  now[0] += 2.0
  metrics = {"loss": np.ones((1, 1)), "diverged_at": -np.ones((1, 1))}
  watch.read(Dispatched(0, 1, lambda: metrics, None))
  member.checkpoints.close()
  flops = models.counts_of(config).exact_per_token * train.batch_tokens(config)
  assert rows[0]["peak_fraction"] == pytest.approx(flops / 2.0 / (4 * hosts * 197e12 / 6))


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_plan_exceeds_the_peak_of_its_chips_and_dtype(name, dtype):
  config, _ = configs.load("configs/published.py:tinyllama_1b")
  config.train.compute_dtype = dtype
  where = topology.parse(f"{name}:{'x'.join(['2'] * max(1, CHIPS[name].dimensions))}", devices=False)
  plan = plan_run(study.resolve_for_plan(config, where.count), where, {}, compiles=False, memory=False)
  assert plan.work.compute_dtype == dtype
  assert 0 < plan.costs.mfu <= 0.75
  peak = CHIPS[name].peak(dtype) * where.chips
  assert plan.costs.mfu * plan.costs.step_seconds * peak == pytest.approx(plan.work.flops_per_step["flops_exact"])


GPU = ["/dev/null", "/dev/nvidia0", "/dev/nvidiactl"]
MINE = "--xla_dump_to=/tmp/dump"
SET = hardware.DETERMINISTIC


@pytest.mark.parametrize(
  ("platforms", "devices", "flags", "expected"),
  [
    ("", GPU, "", SET),
    ("cuda", GPU, "", SET),
    ("cuda,cpu", ["/dev/dxg"], MINE, f"{MINE} {SET}"),
    ("rocm", ["/dev/kfd"], "", SET),
    ("", [], MINE, MINE),  # a CPU
    ("", ["/dev/accel0"], "", ""),  # a TPU
    ("cpu", GPU, "", ""),
    ("tpu", GPU, MINE, MINE),
    ("", GPU, "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),  # the user's decision
    ("", GPU, "--xla_gpu_exclude_nondeterministic_ops=true", "--xla_gpu_exclude_nondeterministic_ops=true"),
    ("", GPU, f"{MINE} {SET}", f"{MINE} {SET}"),  # of a parent process
  ],
)
def test_runs_on_gpus_are_deterministic_unless_the_user_sets_flags(platforms, devices, flags, expected):
  assert hardware.flags_of_xla(platforms, devices, flags) == expected


def test_xla_accepts_the_flag():
  """An unknown flag would end the process; this build of XLA has the flags of all platforms."""
  environment = {**os.environ, "XLA_FLAGS": SET, "JAX_PLATFORMS": "cpu"}
  code = "import jax; assert jax.jit(lambda x: x + 1)(1.0) == 2"
  done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_flags_are_set_before_the_first_computation_and_kept_with_the_run(resolved, tmp_path, monkeypatch):
  config, _ = resolved
  monkeypatch.setenv("XLA_FLAGS", MINE)
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  for name in ("_keep_memory", "_has_libtpu_without_tpu"):
    monkeypatch.setattr(hardware, name, lambda: False)
  monkeypatch.setattr(hardware.jax, "config", SimpleNamespace(update=lambda *_: None))  # this process has begun
  monkeypatch.setattr(hardware.glob, "glob", lambda pattern: GPU)
  hardware.setup()
  assert os.environ["XLA_FLAGS"] == f"{MINE} {SET}"
  run = Run(config, absolute(tmp_path))
  write_provenance(run)
  assert read_json(run.folder / "provenance.json")["xla_flags"] == f"{MINE} {SET}"
