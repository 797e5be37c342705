"""The planner: published sizes, bytes by arithmetic compared with the compiler's, search, costs."""

import itertools
import json
import tomllib
from pathlib import Path

import jax
import pytest

from bigmodel import config as configs
from bigmodel import models, parallel, study
from bigmodel.cli.main import main
from bigmodel.hardware import CHIPS
from bigmodel.parallel import topology
from bigmodel.planner import analytic, search, traffic
from bigmodel.planner.compiled import compile_step
from bigmodel.planner.plan import plan_run
from bigmodel.train import programs

# Parameters of the released weights.
PUBLISHED = {
  "tinyllama_1b": 1_100_048_384,
  "llama2_7b": 6_738_415_616,
  "llama2_13b": 13_015_864_320,
  "llama2_70b": 68_976_648_192,
  "mistral_7b": 7_241_732_096,
  "mixtral_8x7b": 46_702_792_704,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_parameters(name):
  config, _ = configs.load(f"configs/published.py:{name}")
  counts = models.counts_of(config)
  assert counts.params_total == PUBLISHED[name]
  if name == "mixtral_8x7b":
    assert counts.params_active == pytest.approx(12.9e9, rel=0.005)  # "13B", as the paper rounds it
  assert study.resolve_for_plan(config, 64).model.vocab == 32_000


def small(experts, **layout):
  config = study.default_config()
  config.model.update(vocab=2048, width=256, layers=8, heads=8, kv_heads=4, head_size=32, feed_forward=704)
  config.model.update(tie_embeddings=False, experts=8 if experts else 0, expert_group=64)
  config.data.context = 256
  config.train.update(batch_size=32, steps=100)
  config.eval.batch_size = 32
  config.parallel.update(scan=True, remat="full")
  config.parallel.update(layout)
  return config


QUICK = {("fsdp", False), ("pp", False), ("fsdp_tp", False), ("ep", True)}
CASES = [
  pytest.param(preset, experts, marks=() if (preset, experts) in QUICK else pytest.mark.slow)
  for experts in (False, True)
  for preset in parallel.PRESETS
  if experts or preset != "ep"
]


@pytest.mark.parametrize(("preset", "experts"), CASES)
def test_bytes_by_arithmetic_agree_with_the_compiler(preset, experts):
  """Bytes of the state agree exactly, the peak within 15%."""
  config = small(experts, preset=preset)
  found = compile_step(config, topology.parse(""))
  guess = analytic.estimate(config, parallel.mesh_sizes(config, 8), None)
  assert guess.argument_bytes == pytest.approx(found.argument_bytes, rel=1e-3)
  assert guess.peak_bytes == pytest.approx(found.peak_bytes, rel=0.15)


@pytest.mark.parametrize(("width", "stages"), [(16, (1, 1, 1)), (32, (2, 2, 2))])
def test_bytes_of_convolutions_agree_with_the_compiler(width, stages):
  config = study.default_config("resnet")
  config.model.update(width=width, stages=stages, groups=8)
  config.train.update(batch_size=64, steps=10)
  config.eval.batch_size = 64
  config.parallel.data = 1
  models.resolve(config.model, {"inputs": (28, 28, 1), "outputs": 10})
  found = compile_step(config, topology.parse(""))
  guess = analytic.estimate(config, parallel.mesh_sizes(config, 1), None)
  assert guess.peak_bytes == pytest.approx(found.peak_bytes, rel=0.15)


@pytest.mark.parametrize("frozen", [(), ("experts", "^embedding$")], ids=str)
def test_state_bytes_equal_those_on_a_device(frozen):
  config = small(True, preset="ep")
  config.model.update(vocab=512, width=64, head_size=8, feed_forward=176)  # every device draws all initial values
  config.optim.frozen = frozen
  state = programs.program(config).init(0)
  expected_bytes = analytic.state_bytes(config, parallel.mesh_sizes(config, 8))
  device = jax.devices()[5]
  assert expected_bytes["parameters"] == parallel.bytes_on(device, state.params)
  assert expected_bytes["optimizer"] == parallel.bytes_on(device, state.opt_state)
  config.optim.name = "sgd"
  assert analytic.state_bytes(config, parallel.mesh_sizes(config, 8)) == {**expected_bytes, "optimizer": 0}


def test_a_plan_adds_up():
  config, _ = configs.load("configs/published.py:llama2_7b")
  where = topology.parse("h100:64")
  plan = plan_run(study.resolve_for_plan(config, 64), where, {"h100": 2.0})
  assert plan.costs.fits
  assert plan.compiled is None
  assert "estimated" in plan.why_not_compiled
  assert plan.costs.hours == pytest.approx(plan.work.steps * plan.costs.step_seconds / 3600)
  assert plan.costs.cost == pytest.approx(2 * 64 * plan.costs.hours)
  assert plan.costs.tokens_per_second * plan.costs.step_seconds == pytest.approx(plan.work.tokens_per_step)
  used = plan.costs.mfu * 64 * 989e12 * plan.costs.step_seconds
  assert used == pytest.approx(plan.work.flops_per_step["flops_exact"])
  # Recomputing every layer's forward pass makes at most 4/3 of the FLOPs.
  assert 1.25 < plan.work.flops_per_step["flops_hardware"] / plan.work.flops_per_step["flops_exact"] < 4 / 3


def test_idle_devices_are_noted_and_paid_for():
  config, _ = configs.load("configs/published.py:llama2_7b")
  plan = plan_run(study.resolve_for_plan(config, 24), topology.parse("h100:24"), {"h100": 2.0})
  assert plan.work.devices == 16
  assert any(note.startswith("8 of 24 devices are idle") for note in plan.notes)
  assert plan.costs.cost == pytest.approx(2 * 24 * plan.costs.hours)
  used = plan.costs.mfu * 24 * 989e12 * plan.costs.step_seconds
  assert used == pytest.approx(plan.work.flops_per_step["flops_exact"])


def test_a_plan_says_if_a_run_does_not_fit():
  config, _ = configs.load("configs/published.py:llama2_70b")
  plan = plan_run(study.resolve_for_plan(config, 8), topology.parse("h100:8"), {})
  assert plan.costs.fits is False
  assert plan.costs.cost is None


def test_search_ranks_the_layouts_that_fit():
  config, _ = configs.load("configs/published.py:llama2_7b")
  config = study.resolve_for_plan(config, 16)
  where = topology.parse("h100:16")
  found = search.search(config, where, {})
  assert found
  assert all(layout.plan.costs.fits for layout in found)
  seconds = [layout.plan.costs.step_seconds for layout in found]
  assert seconds == sorted(seconds)
  plain = plan_run(config, where, {})
  assert seconds[0] <= plain.costs.step_seconds or not plain.costs.fits
  again = plan_run(configs.with_overrides(config, found[0].overrides), where, {})
  assert again.costs.step_seconds == seconds[0]


GPUS = [name for name, chip in CHIPS.items() if not chip.dimensions]


@pytest.mark.parametrize("name", GPUS)
def test_between_hosts_a_group_has_the_network_cards_of_its_members(name):
  """Groups of 16 GPUs with 8, 4 and 1 per host, and of 8 on one host, have NVIDIA's bandwidths, one way."""
  chip, sent = CHIPS[name], 8e9
  assert chip.link == (300e9 if name == "a100" else 450e9)
  assert chip.network == (25e9 if name == "a100" else 50e9)

  def seconds(members, near, kind="all-gather"):
    return traffic.wire_seconds(kind, sent, traffic.Group(members, near=near), chip)

  inside = seconds(8, 8)
  assert inside == pytest.approx(sent / chip.link, rel=1e-2)  # the rest is the latency of a few hops
  for near in (8, 4, 1):
    expected = sent / min(chip.link, near * chip.network)
    hops = 16 * 14e-6 / near + (16 - 16 / near) * 3.4e-6
    assert seconds(16, near) == pytest.approx(expected + hops)
    assert seconds(16, near, "all-reduce") == pytest.approx(expected + 2 * hops)
    assert seconds(16, near, "collective-permute") == pytest.approx(sent / chip.network + 14e-6)
  assert inside < seconds(16, 8) < seconds(16, 4) < seconds(16, 1)
  # What a member has for others on other hosts leaves through its card alone.
  assert seconds(16, 8, "all-to-all") == pytest.approx(sent * 8 / 15 / chip.network + 7 * 3.4e-6 + 8 * 14e-6)
  small = traffic.wire_seconds("all-gather", 1e3, traffic.Group(1024, near=8), chip, times=10)
  assert small == pytest.approx(10 * (128 * 14e-6 + 896 * 3.4e-6), rel=1e-2)  # latency, however few the bytes


def test_members_of_a_group_on_a_host_follow_from_the_order_of_the_axes():
  sizes = dict.fromkeys(parallel.AXES, 1) | {"data": 2, "fsdp": 4, "tensor": 4, "pipeline": 2}  # 64 GPUs, 8 a host
  near = lambda *axes: traffic.members_per_host(sizes, axes, 8)
  assert near("pipeline") == 2
  assert near("tensor") == 4  # every other GPU of a host
  assert near("fsdp") == near("data") == 1
  assert near("fsdp", "tensor") == 4
  flat = dict.fromkeys(parallel.AXES, 1) | {"fsdp": 64}
  assert traffic.members_per_host(flat, ("fsdp", "sequence", "expert"), 8) == 8


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("preset", parallel.PRESETS)
def test_the_share_of_the_peak_falls_from_one_host_of_gpus_to_many(name, preset):
  """Both with the same batch and with the same number of rows per GPU."""
  for rows_of in (lambda n: 1024, lambda n: n):
    shares = []
    for n in (8, 16, 64, 256, 1024):
      config, _ = configs.load(
        "configs/published.py:mixtral_8x7b" if preset == "ep" else "configs/published.py:llama2_7b"
      )
      config.parallel.preset = preset
      config.model.vocab = 32_000
      config.train.batch_size = config.eval.batch_size = rows_of(n) * (4 if preset == "pp" else 1)
      where = topology.parse(f"{name}:{n}")
      plan = plan_run(study.resolve_for_plan(config, n), where, {}, memory=False)
      assert plan.work.devices == n
      shares.append(plan.costs.mfu)
    assert all(a > b for a, b in itertools.pairwise(shares)), shares
    assert shares[-1] > 0


def test_prices_are_part_of_the_package(inside, tmp_path, monkeypatch):
  root = Path(__file__).parents[2]
  config = f"--config={root}/configs/published.py:tinyllama_1b"
  monkeypatch.chdir(tmp_path)
  code, out, err = inside("plan", config, "--topology=h100:8", "--json")
  assert code == 0, err
  facts = json.loads(out)
  assert facts["cost"] == pytest.approx(facts["chip_hours"] * facts["price_per_chip_hour"])
  assert {*json.loads((root / "bigmodel" / "planner" / "prices.json").read_text())} == {*CHIPS}
  packed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
  files = [p for p in (root / "bigmodel").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
  packed_files = {
    p for room, patterns in packed.items() for x in patterns for p in root.joinpath(*room.split(".")).glob(x)
  }
  assert {*files} == packed_files


def test_communication_scales_with_the_mesh_as_in_theory():
  """Bytes that a chip sends in a step, with the same rows per chip on 8 to 256 chips."""
  config, _ = configs.load("configs/published.py:mixtral_8x7b")
  sent, ways = {}, {}
  for preset in parallel.PRESETS:
    for n in (8, 32, 128, 256):
      config.parallel.preset = preset
      config.train.batch_size = config.eval.batch_size = 8 * n
      sizes = parallel.mesh_sizes(config, n)
      sent[preset, n] = sum(cost.bytes for cost in traffic.collectives(config, sizes, None))
      ways.setdefault(preset, max(sizes["data"], sizes["fsdp"] * sizes["sequence"] * sizes["expert"]))
  for preset, k in ways.items():
    # A ring of k sends (k - 1) / k of an array, so what 8 chips send grows by k / (k - 1) at most.
    assert sent[preset, 8] <= sent[preset, 256] <= sent[preset, 8] * k / (k - 1)


def test_a_study_is_planned_whole(capsys):
  assert main(["plan", "--config=configs/quickstart.py", "--topology=v6e:2x2", "--json"]) == 0
  result = json.loads(capsys.readouterr().out)
  total = result["total"]
  assert total["runs"] == len(result["runs"]) > 30
  assert total["hours"] == pytest.approx(sum(run["hours"] for run in result["runs"]))
  assert result["runs"][-1]["role"] == "target"
  assert total["critical_path_hours"] < total["hours"]
  assert total["fits"]


@pytest.mark.parametrize(
  ("name", "message"),
  [("v5p", "is not KIND:SHAPE"), ("v5q:2x2", "no chip 'v5q'"), ("v5e:2x2x2", "v5e has 2 dimensions")],
)
def test_invalid_topologies_are_refused(capsys, name, message):
  assert main(["plan", "--config=configs/published.py:llama2_7b", f"--topology={name}"]) == 2
  assert message in capsys.readouterr().err


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  where = topology.parse("v5e:4x4")
  assert where.devices is None
  assert where.count == 16
  assert "pip install 'bigmodel[tpu]'" in where.why_not
