"""Text is printed literally: names of extras in brackets, paths and config values with brackets, emoji codes."""

import io
import re
import sys
import tomllib
from pathlib import Path

import pytest

from bigmodel import hardware
from bigmodel.cli.console import Output
from bigmodel.train.display import Display, plain_console

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SOURCES = {path: path.read_text() for path in sorted((ROOT / "bigmodel").rglob("*.py"))}
HARD = ["/data/[old]/x[/old]", "model[bold]", ":smile: :100:", "[red]", "[/]", "a\\[b]"]
HARD += [f"pip install 'bigmodel[{extra}]'" for extra in EXTRAS]


@pytest.mark.parametrize("text", HARD)
def test_every_way_of_printing_keeps_the_text(text, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", "200")
  Output().table(f"title {text}", (f"column {text}",), [(f"cell {text}",)])
  Output().say(f"said {text}")
  Display().say(f"shown {text}")
  out, err = capsys.readouterr()
  for where in ("title", "column", "cell", "said"):
    assert f"{where} {text}" in out
  assert f"shown {text}" in err


@pytest.mark.parametrize("text", HARD)
def test_the_progress_on_a_terminal_keeps_the_text(text):
  display, output = Display(), io.StringIO()
  display.console = display._progress.live.console = plain_console(file=output, width=200)
  display._live = True
  display.begin(text, 3)
  display.update(1, 3, 0.5, f"5 {text}/s", 1.0)
  display.console.print(display._progress.get_renderable())
  drawn = output.getvalue()
  assert text in drawn
  assert f"5 {text}/s" in drawn


def test_messages_name_extras_that_exist_and_all_go_through_one_console():
  named = {name for text in SOURCES.values() for name in re.findall(r"pip install 'bigmodel\[(\w+)\]'", text)}
  assert named <= set(EXTRAS)
  assert "tpu" in named
  consoles = [path.name for path, text in SOURCES.items() if re.search(r"\bConsole\(|rich import print", text)]
  assert consoles == ["display.py"]


@pytest.mark.parametrize(
  ("devices", "vendors", "variables", "signs"),
  [
    ([], [], {}, 0),
    (["/dev/null", "/dev/tty"], ["0x8086", "0x1af4"], {"TPU_LIBRARY_PATH": "x", "TPU_SKIP_MDS_QUERY": "1"}, 0),
    (["/dev/accel0"], [], {}, 1),
    (["/dev/vfio"], [], {}, 1),
    (["/dev/nvidia0"], [], {}, 1),
    ([], ["0x1ae0"], {}, 1),
    ([], [], {"TPU_WORKER_ID": "0"}, 1),
    ([], [], {"CLOUD_TPU_TASK_ID": "0"}, 1),
    ([], [], {"JAX_FORCE_TPU_INIT": "1"}, 1),
  ],
)
def test_accelerators_are_detected_by_devices_or_environment(devices, vendors, variables, signs):
  assert len(hardware._signs_of_accelerators(devices, vendors, variables)) == signs


def test_only_libtpu_without_any_accelerator_makes_the_platform_cpu(monkeypatch):
  installed, found = {"libtpu": True}, []
  monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: installed.get(name))
  monkeypatch.setattr(hardware, "_signs_of_accelerators", lambda *_: found)
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  assert hardware._has_libtpu_without_tpu()
  found.append("/dev/accel0")
  assert not hardware._has_libtpu_without_tpu()
  found.clear()
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  assert not hardware._has_libtpu_without_tpu()
  monkeypatch.delenv("JAX_PLATFORMS")
  installed.clear()
  assert not hardware._has_libtpu_without_tpu()


@pytest.mark.tpu_compiler
def test_with_libtpu_and_no_tpu_a_command_writes_nothing_to_standard_error():
  pytest.importorskip("libtpu")
  import os
  import subprocess

  environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_"))}
  command = [sys.executable, "-m", "bigmodel.cli", "plan", "--config=configs/published.py:tinyllama_1b"]
  done = subprocess.run(
    [*command, "--topology=h100:8", "--json"], capture_output=True, text=True, cwd=ROOT, env=environment
  )
  assert done.returncode == 0
  assert done.stderr == ""
