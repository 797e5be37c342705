"""The planner: published sizes, bytes by arithmetic beside the compiler's, search, money."""

import json

import jax
import pytest

from bigmodel import config as configs
from bigmodel import models, parallel, study
from bigmodel.cli import main
from bigmodel.parallel import topology
from bigmodel.plan import analytic, compiled, search
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
def test_bytes_by_arithmetic_are_those_of_the_compiler(preset, experts):
  """State exactly, the peak within 15%."""
  config = small(experts, preset=preset)
  found = compiled.compiled(config, topology.parse(""))
  guess = analytic.estimate(config, parallel.mesh_sizes(config, 8), None)
  assert guess["argument_bytes"] == pytest.approx(found["argument_bytes"], rel=1e-3)
  assert guess["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.15)


@pytest.mark.parametrize(("width", "stages"), [(16, (1, 1, 1)), (32, (2, 2, 2))])
def test_bytes_of_convolutions_are_those_of_the_compiler(width, stages):
  config = study.default_config("resnet")
  config.model.update(width=width, stages=stages, groups=8)
  config.train.update(batch_size=64, steps=10)
  config.eval.batch_size = 64
  config.parallel.data = 1
  models.resolve(config.model, {"inputs": (28, 28, 1), "outputs": 10})
  found = compiled.compiled(config, topology.parse(""))
  guess = analytic.estimate(config, parallel.mesh_sizes(config, 1), None)
  assert guess["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=0.15)


@pytest.mark.parametrize("frozen", [(), ("experts", "^embedding$")], ids=str)
def test_state_bytes_are_those_on_a_device(frozen):
  config = small(True, preset="ep")
  config.optim.frozen = frozen
  state = programs.program(config).init(0)
  known = analytic.state_bytes(config, parallel.mesh_sizes(config, 8))
  device = jax.devices()[5]
  assert known["parameters"] == parallel.bytes_on(device, state.params)
  assert known["optimizer"] == parallel.bytes_on(device, state.opt_state)
  config.optim.name = "sgd"
  assert analytic.state_bytes(config, parallel.mesh_sizes(config, 8)) == {**known, "optimizer": 0}


def test_a_plan_adds_up():
  config, _ = configs.load("configs/published.py:llama2_7b")
  where = topology.parse("h100:64")
  facts = compiled.plan(study.resolve_for_plan(config, 64), where, {"h100": 2.0})
  assert facts["fits"]
  assert facts["compiled"] is None
  assert "arithmetic" in facts["why_not_compiled"]
  assert facts["hours"] == pytest.approx(facts["steps"] * facts["step_seconds"] / 3600)
  assert facts["cost"] == pytest.approx(2 * 64 * facts["hours"])
  assert facts["tokens_per_second"] * facts["step_seconds"] == pytest.approx(facts["tokens_per_step"])
  used = facts["mfu"] * 64 * 989e12 * facts["step_seconds"]
  assert used == pytest.approx(facts["flops_per_step"]["flops_exact"])
  # Recomputing every layer's forward pass makes at most 4/3 of the FLOPs.
  assert 1.25 < facts["flops_per_step"]["flops_hardware"] / facts["flops_per_step"]["flops_exact"] < 4 / 3


def test_what_does_not_fit_is_said():
  config, _ = configs.load("configs/published.py:llama2_70b")
  facts = compiled.plan(study.resolve_for_plan(config, 8), topology.parse("h100:8"), {})
  assert facts["fits"] is False
  assert facts["cost"] is None


def test_search_drops_what_does_not_fit_and_ranks_the_rest():
  config, _ = configs.load("configs/published.py:llama2_7b")
  config = study.resolve_for_plan(config, 16)
  where = topology.parse("h100:16")
  found = search.search(config, where, {})
  assert found
  assert all(row["fits"] for row in found)
  assert [row["step_seconds"] for row in found] == sorted(row["step_seconds"] for row in found)
  plain = compiled.plan(config, where, {})
  assert found[0]["step_seconds"] <= plain["step_seconds"] or not plain["fits"]
  again = compiled.plan(configs.with_overrides(config, found[0]["overrides"]), where, {})
  assert again["step_seconds"] == found[0]["step_seconds"]


def test_communication_goes_with_the_mesh_as_theory_says():
  """What a chip sends in a step, with the same rows a chip on 8 to 256 chips."""
  config, _ = configs.load("configs/published.py:mixtral_8x7b")
  sent, ways = {}, {}
  for preset in parallel.PRESETS:
    for n in (8, 32, 128, 256):
      config.parallel.preset = preset
      config.train.batch_size = config.eval.batch_size = 8 * n
      sizes = parallel.mesh_sizes(config, n)
      sent[preset, n] = sum(row["bytes"] for row in analytic.traffic(config, sizes, None))
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
def test_topologies_that_are_none_are_refused(capsys, name, message):
  assert main(["plan", "--config=configs/published.py:llama2_7b", f"--topology={name}"]) == 2
  assert message in capsys.readouterr().err


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
  monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
  where = topology.parse("v5e:4x4")
  assert where.devices is None
  assert where.count == 16
  assert "pip install 'bigmodel[tpu]'" in where.why_not
