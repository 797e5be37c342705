"""The pages: links exist, every page is linked, and verbs and Python examples agree with the package."""

import re
from pathlib import Path

import pytest

import bigmodel
from bigmodel import config as configs
from bigmodel.cli import main, parsing
from bigmodel.study import default_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
HERE = ("bigmodel/", "configs/", "experiments/", "benchmarks/", "tests/", "docs/")


def links_of(page: Path) -> list[str]:
  return [link for link in LINK.findall(page.read_text()) if "://" not in link]


def anchors_of(page: Path) -> set[str]:
  """The anchors that GitHub makes from a page's headings."""
  headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text()), re.MULTILINE)
  return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
  for link in links_of(page):
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    assert not anchor or anchor in anchors_of(target), link


def test_every_page_can_be_reached_from_the_readme_and_from_the_index():
  for start in (ROOT / "README.md", ROOT / "docs" / "README.md"):
    reached, todo = set(), [start]
    while todo:
      page = todo.pop()
      if page not in reached:
        reached.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links_of(page)]
        todo += [target for target in targets if target.suffix == ".md"]
    assert {page.resolve() for page in PAGES if page.parent.name == "docs"} <= reached


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
  for name in re.findall(r"`([\w./*-]+)`", page.read_text()):
    if name.startswith(HERE):
      assert list(ROOT.glob(name.rstrip("/"))), name


def test_the_reference_has_every_verb_with_its_summary():
  text = (ROOT / "docs" / "command.md").read_text()
  for verb, path in main.verbs().items():
    assert f"| `{verb}` | {main.summary(path)} |" in text


def test_pages_name_options_that_exist():
  parsers = [parsing.parser_of(verb, main.find(verb)) for verb in main.verbs()]
  options = {option for parser in parsers for action in parser._actions for option in action.option_strings}
  for page in PAGES:
    for option in re.findall(r"`(--[a-z][a-z-]*)[ =`]", page.read_text()):
      assert option in options, (page.name, option)


def test_pages_name_fields_that_exist():
  configurations = [default_config("decoder"), default_config("mlp"), default_config("bert")]
  fields = {name for config in configurations for name in configs.flatten(config)}
  groups = {name.split(".")[0] for name in fields} - {"seed"}
  for page in PAGES:
    for name in re.findall(r"`(?:config\.)?(\w+\.\w+)(?:=[^`]*)?`", page.read_text()):
      group = name.split(".")[0]
      if group in groups and not name.endswith((".py", ".json", ".jsonl")) and not hasattr(bigmodel, name):
        assert name in fields, (page.name, name)


def test_the_page_about_python_lists_every_function():
  text = (ROOT / "docs" / "python.md").read_text()
  for name in bigmodel.__all__:
    if name.islower():
      assert f"| `{name}(" in text, name


def test_the_readme_is_short():
  assert len((ROOT / "README.md").read_text().split()) <= 1300


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_examples_run(page, tmp_path, monkeypatch):
  blocks = [block for block in CODE.findall((ROOT / page).read_text()) if "runs/quickstart" not in block]
  assert blocks
  monkeypatch.chdir(tmp_path)
  for block in blocks:
    exec(compile(block, page, "exec"), {})
