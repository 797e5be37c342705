"""Shared set-up: eight virtual devices, a cache of the session's own, small configs."""

import gc
import os
import socket
from importlib.metadata import version
from pathlib import Path

import hypothesis
import pytest

# Before the first JAX computation: meshes need devices. Little is computed and much compiled here, so the compiler
# optimises nothing, emits the plainer code and leaves each program in one piece: pieces that are compiled in parallel
# take a third more CPU time (choices that later versions may not have). make test-slow compiles as users do.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
  FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # commands of tests need not compile all sources anew
gc.set_threshold(100_000, 50, 100)  # tracing makes much that lives on: looking through it took a tenth of the time


# The same examples in each run, so that a pass stays one; make test-slow draws others and more.
COMMON = {"deadline": None, "database": None, "suppress_health_check": list(hypothesis.HealthCheck)}
hypothesis.settings.register_profile("default", max_examples=100, derandomize=True, **COMMON)
hypothesis.settings.register_profile("slow", max_examples=2000, **COMMON)
hypothesis.settings.load_profile("default")


# Files that take long begin first, so that no worker has one left when the others are done.
LONG = (
  "test_study",
  "test_forms",
  "test_hosts",
  "test_meshes",
  "test_plan",
  "test_failures",
  "test_parametrization",
  "test_law_verbs",
  "test_every_family",
  "test_forecast",
  "test_loop",
  "test_statistics",
  "test_workers",
  "test_packs",
  "test_any_bytes",
  "test_cli",
  "test_points",
  "test_stages",
  "test_diverged",
  "test_laws",
  "test_compare",
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """A data cache shared by the workers of one test session."""
  root = tmp_path_factory.getbasetemp()
  root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
  os.environ["BIGMODEL_CACHE"] = str(root / "cache")
  import jax

  # What one worker has compiled, the others need not.
  jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
  return root / "cache"


@pytest.fixture(scope="session")
def corpus_dir(cache):
  """A little corpus of text files: 60 documents of words in two files, so that loss can fall."""
  folder = cache.parent / f"corpus-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
  folder.mkdir(parents=True, exist_ok=True)
  import json

  words = [
    "the",
    "model",
    "reads",
    "a",
    "word",
    "and",
    "guesses",
    "which",
    "of",
    "these",
    "comes",
    "next",
    "in",
    "line",
  ]
  for part in range(2):
    rows = []
    for doc in range(30):
      text = " ".join(words[(i * (doc + 3) + i // 7 + part) % len(words)] for i in range(400))
      rows.append(json.dumps({"text": f"{part}-{doc}: {text}"}))
    (folder / f"part{part}.jsonl").write_text("\n".join(rows) + "\n")
  return folder


@pytest.fixture
def config(corpus_dir):
  """A decoder of 7k parameters on the little corpus, 30 steps."""
  from bigmodel.study import default_config

  config = default_config()
  config.data.name = "text_files"
  config.data.path = str(corpus_dir / "*.jsonl")
  config.data.heldout_fraction = 0.2
  config.data.context = 32
  config.model.width = 16
  config.model.layers = 1
  config.model.head_size = 8
  config.train.steps = 30
  config.train.batch_size = 8
  config.train.checkpoint_every = 10
  config.train.log_every = 5
  config.eval.tokens = 2048
  config.parallel.data = 1
  return config


@pytest.fixture
def resolved(config):
  """The config with everything derived filled in, and its corpus."""
  from bigmodel import study
  from bigmodel.data import corpus as corpora

  corpus = corpora.prepare(config)
  return study.resolve(config, corpus), corpus


@pytest.fixture
def stop_at():
  """`stop_at(looks)`: a stop that is requested, as by a signal, after so many looks at it: one a step."""

  class StopAt:
    def __init__(self, looks):
      self.looks = looks

    def requested(self):
      self.looks -= 1
      return self.looks < 0

    def lost(self):
      return False

  return StopAt


@pytest.fixture
def inside(capsys):
  """`inside("train", ...)`: the command in this process, which imports nothing anew; its code and what it wrote."""
  from bigmodel.cli import main

  def run(*arguments):
    try:
      code = main.main(list(map(str, arguments)))
    finally:
      output = capsys.readouterr()
    return code, output.out, output.err

  return run


@pytest.fixture
def free_port():
  """`free_port()`: a port of this machine that nobody listens at."""

  def find():
    with socket.socket() as s:
      s.bind(("127.0.0.1", 0))
      return s.getsockname()[1]

  return find


@pytest.fixture
def scaling_data():
  """The published points, where they are; see $BIGMODEL_SCALING_DATA."""
  root = Path(os.environ.get("BIGMODEL_SCALING_DATA") or Path(__file__).parents[2] / "shared" / "scaling_data")
  if not root.is_dir():
    pytest.skip(f"no published points at {root}; set BIGMODEL_SCALING_DATA")
  return root
