"""The verbs of the command: their help and examples, and the required content of a file in `verbs/`."""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import bigmodel.cli.verbs
from bigmodel import config as configs
from bigmodel.cli import main, parsing
from bigmodel.errors import CheckpointError, Interrupted, UnfitWorker, UserError

ROOT = Path(__file__).parents[2]
VERBS = list(main.verbs())
EXAMPLES = [(verb, example) for verb in VERBS for example in main.find(verb).EXAMPLES]
# These would make the help slow. numpy and rich represent all modules that import them.
SLOW = ("flax", "jax", "ml_collections", "numpy", "polars", "rich")


def arguments_of(command: str) -> argparse.Namespace:
  """The arguments of a whole command, as a shell would pass it."""
  program, verb, *words = shlex.split(command, comments=True)
  assert program == "bigmodel"
  return parsing.parse(verb, main.find(verb), words)


def test_files_and_folders_may_begin_in_the_home_folder(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  found = arguments_of("bigmodel eval --workdir='~/run' --choices '~/a.jsonl'")
  assert (found.workdir, found.choices) == ("/home/me/run", "/home/me/a.jsonl")
  found = arguments_of("bigmodel generate --workdir='~/run' --prompt='~/ is home'")
  assert (found.workdir, found.prompt) == ("/home/me/run", "~/ is home")


def test_the_files_are_the_verbs():
  files = {path.name for path in (ROOT / "bigmodel" / "cli" / "verbs").glob("*.py")} - {"__init__.py"}
  assert files == {"import_.py" if verb == "import" else f"{verb}.py" for verb in VERBS}
  listed = re.findall(r"^  ([a-z]+)  +\S", main.overview(), re.MULTILINE)
  assert listed == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_a_verb_does_and_ends_with_its_examples(verb, capsys):
  with pytest.raises(SystemExit) as ended:
    main.main([verb, "--help"])
  assert ended.value.code == 0
  printed = capsys.readouterr().out
  module = main.find(verb)
  summary = main.summary(main.verbs()[verb])
  assert module.__doc__.splitlines()[0] == summary
  assert summary.endswith(".")
  assert printed.startswith(f"usage: bigmodel {verb} ")
  assert summary in printed
  assert module.EXAMPLES
  assert printed.endswith("examples:\n" + "".join(f"  {example}\n" for example in module.EXAMPLES))
  for option in ("--json", "--debug"):
    assert option in printed


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_explained(verb):
  for action in parsing.parser_of(verb, main.find(verb))._actions:
    assert action.help, action.option_strings or action.dest


@pytest.mark.parametrize(("verb", "example"), EXAMPLES)
def test_every_example_parses_and_its_config_has_the_fields_that_it_sets(verb, example, monkeypatch):
  monkeypatch.chdir(ROOT)
  arguments = arguments_of(example)
  assert arguments.verb == verb
  if getattr(arguments, "config", None):
    configs.load(arguments.config, arguments.overrides)


@pytest.mark.parametrize("path", ["README.md", "docs", "configs", "experiments"])
def test_every_command_of_the_pages_and_docstrings_parses(path):
  files = [ROOT / path] if path.endswith(".md") else [*(ROOT / path).glob("*.md"), *(ROOT / path).glob("*.py")]
  text = "\n".join(file.read_text() for file in files).replace("\\\n", " ")
  commands = [line.strip() for line in text.splitlines() if re.match(r" {4}bigmodel [a-z]+ ", line)]
  for command in commands:
    if "..." not in command.partition("#")[0]:  # a placeholder for earlier output
      arguments_of(command)
  assert commands or path == "docs"


def test_help_and_errors_need_no_slow_imports():
  code = f"""
import sys
from bigmodel.cli import main, parsing
main.overview()
for verb in main.verbs():
  parsing.parser_of(verb, main.find(verb)).format_help()
print(*[name for name in {SLOW} if name in sys.modules])
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert done.stdout.split() == []


def test_verbs_and_what_they_share_do_not_import_main():
  for path in (ROOT / "bigmodel" / "cli").rglob("*.py"):
    imported = {
      f"{node.module}.{alias.name}"
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, ast.ImportFrom)
      for alias in node.names
    }
    assert "bigmodel.cli.main" not in imported or path.name == "__main__.py", path


def test_a_new_file_is_a_new_verb(tmp_path, monkeypatch, capsys):
  (tmp_path / "greet.py").write_text(
    '"""Greet someone."""\n'
    'EXAMPLES = ("bigmodel greet World",)\n'
    'def add_arguments(parser): parser.add_argument("name")\n'
    "def run(arguments, output):\n"
    '  print("chatter")\n'
    '  output.say(f"Hello, {arguments.name}")\n'
    '  return {"greeted": arguments.name}\n'
  )
  monkeypatch.setattr(main, "FOLDER", tmp_path)
  monkeypatch.setattr(bigmodel.cli.verbs, "__path__", [str(tmp_path)])
  assert "  greet  Greet someone.\n" in main.overview()
  assert main.main(["greet", "World"]) == 0
  assert capsys.readouterr().out == "chatter\nHello, World\n"
  assert main.main(["greet", "World", "--json"]) == 0
  printed = capsys.readouterr()
  assert json.loads(printed.out) == {"greeted": "World"}
  assert printed.err == "chatter\n"


@pytest.mark.parametrize("verb", VERBS)
def test_with_json_an_error_is_one_document(verb, inside):
  code, out, err = inside(verb, "--jsn", "--json")
  assert code == 2
  assert len(err.splitlines()) == 1
  assert json.loads(out) == {"error": "--jsn: no such option (did you mean '--json'?)", "code": 2}


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["trian"], "bigmodel: no verb 'trian' (did you mean 'train'?); use one of compare, "),
    (["--config=x"], "bigmodel: no verb '--config=x'; use one of compare, "),
    ([], "bigmodel: a verb is missing; use one of compare, "),
    (["train", "--confg=x", "--workdir=y"], "bigmodel train: --confg: no such option (did you mean '--config'?)"),
    (["train", "--config=x"], "bigmodel train: the following arguments are required: --workdir"),
    (["train", "--config=x", "--workdir=y", "z"], "bigmodel train: 'z': unexpected word"),
    (["status", "--workdir=x", "--config.model.width=8"], "bigmodel status: --config.model.width: no such option"),
    (["models", "--config.model.width=8"], "bigmodel models: --config.model.width=8: needs --config=FILE"),
    (["export", "--workdir=x", "--to=y", "--type=gpt"], "bigmodel export: --type: invalid choice: 'gpt' (choose from"),
    (["status", "--workdir=x", "--watch=-1"], "bigmodel status: --watch: -1 is not a positive number"),
    (["design", "p.csv", "--target=inf"], "bigmodel design: --target: inf is not a positive number"),
    (["design", "p.csv", "--target=1e20", "--folds=3"], "bigmodel design: --folds: no such option"),
    (["generate", "--workdir=x", "--tokens=0"], "bigmodel generate: --tokens: 0 is less than 1"),
    (["generate", "--workdir=x", "--top-p=1.5"], "bigmodel generate: --top-p: 1.5 is not in (0, 1]"),
    (["generate", "--workdir=x", "--temperature=-1"], "bigmodel generate: --temperature: -1 is not a number from 0 up"),
    (["generate", "--workdir=x", "--tokens=many"], "bigmodel generate: --tokens: 'many' is not a whole number"),
  ],
)
def test_an_error_is_one_line_that_says_what_is_allowed(words, message, inside):
  code, out, err = inside(*words)
  assert (code, out) == (2, "")
  assert len(err.splitlines()) == 1
  assert err.startswith(message)


class SurpriseError(UserError):
  """A subclass of `UserError`."""


@pytest.mark.parametrize(
  ("error", "code", "message"),
  [
    (UserError("config.optim.lr: -1 is not positive"), 2, "config.optim.lr: -1 is not positive"),
    (SurpriseError("odd"), 2, "odd"),
    (KeyboardInterrupt(), 75, "interrupted"),
    (Interrupted("step 5 is saved"), 75, "interrupted: step 5 is saved; the same command resumes"),
    (CheckpointError("step 4 is good\nand more"), 1, "step 4 is good"),
    (UnfitWorker("the GPU has errors"), 1, "the GPU has errors"),
    (type("UserError", (Exception,), {})("only its name is the same"), 1, "UserError: only its name is the same"),
    (ValueError("odd\nsecond line"), 1, "ValueError: odd"),
    (ValueError(), 1, "ValueError: "),
  ],
)
def test_the_class_of_an_error_determines_the_exit_code(error, code, message, tmp_path, monkeypatch, capsys):
  def run(arguments, output):
    raise error

  monkeypatch.setattr(main.find("status"), "run", run)
  assert main.main(["status", "--workdir=x"]) == code
  printed = capsys.readouterr()
  assert (printed.out, printed.err) == ("", f"bigmodel status: {message}\n")
  assert main.main(["status", "--workdir=x", "--json", "--debug"]) == code
  printed = capsys.readouterr()
  assert json.loads(printed.out) == {"error": message, "code": code}
  assert "Traceback" in printed.err


def test_the_command_that_started_a_worker_learns_that_the_worker_is_unfit(monkeypatch, capsys):
  def run(arguments, output):
    raise UnfitWorker("the GPU has errors")

  monkeypatch.setattr(main.find("study"), "run", run)
  assert main.main(["study", "--config=x", "--workdir=y", "--worker=one"]) == main.UNFIT
  from bigmodel.workers import pool

  assert main.UNFIT == pool.UNFIT


def numeric_options() -> list[tuple[str, str]]:
  """Every option of every verb that is parsed to a number."""
  actions = [(verb, action) for verb in main.verbs() for action in parsing.parser_of(verb, main.find(verb))._actions]
  return [(verb, action.option_strings[0]) for verb, action in actions if action.type is not None]


@pytest.mark.parametrize(("verb", "option"), numeric_options())
def test_numeric_options_refuse_values_that_are_no_usable_number(verb, option, inside):
  for value in ("nan", "inf", "-inf", "1e400", "many", "", "-1", "0", "1" + "0" * 40, "9" * 5000, "1,5"):
    code, out, err = inside(verb, f"{option}={value}")
    assert (code, out) == (2, ""), value
    assert len(err.splitlines()) == 1, value
    assert len(err) < 200, value
    if value not in ("-1", "0", "1" + "0" * 40) and option not in ("--temperature", "--top-p"):
      assert option in err, value


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["generate", "--workdir=x", "--temperature=nan"], "--temperature: nan is not a number from 0 up"),
    (["generate", "--workdir=x", "--top-p=nan"], "--top-p: nan is not in (0, 1]"),
    (["generate", "--workdir=x", "--seed=2147483648"], "--seed: 2147483648 is more than 2,147,483,647"),
    (["status", "--workdir=x", "--watch=1e300"], "--watch: 1e300 is more than 1,000,000 seconds"),
    (["sweep", "--config=x", "--workdir=y", "--seeds=0"], "--seeds: 0 is less than 1"),
    (["train", "--config=x", "--workdir=y", "--config.model.width", "32"], "write --config.model.width=32"),
    (["train", "--config=x", "--workdir=y", "--processes=2", "--process=0", "--coordinator=h"], "is not HOST:PORT"),
    (["train", "--config=x", "--workdir=y", "--processes=2"], "give all three or none"),
  ],
)
def test_values_that_make_no_sense_are_refused(words, message, inside):
  code, out, err = inside(*words)
  assert (code, out) == (2, "")
  assert len(err.splitlines()) == 1
  assert message in err


@pytest.mark.parametrize(
  ("error", "code", "message"),
  [
    (MemoryError("Unable to allocate 9 TiB"), 1, "out of memory: use a smaller model, batch or context, or more"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 1, "out of memory: use a smaller model, batch or context"),
    (OSError(28, "No space left on device"), 1, "the disk is full: [Errno 28] No space left on device"),
    (PermissionError(13, "Permission denied", "/x/y"), 2, "/x/y: cannot be used (Permission denied)"),
    (OSError(30, "Read-only file system", "/x/y"), 2, "/x/y: cannot be used (Read-only file system)"),
  ],
)
def test_faults_of_the_machine_are_plain_lines(error, code, message, monkeypatch, inside):
  def run(arguments, output):
    raise error

  monkeypatch.setattr(main.find("status"), "run", run)
  ended, _, err = inside("status", "--workdir=x")
  assert ended == code
  assert err.startswith(f"bigmodel status: {message}")
  assert len(err.splitlines()) == 1
