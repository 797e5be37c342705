"""Imports inside the package only go down its list of rooms, at load time and inside functions."""

import ast
import collections
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "bigmodel"

# From top to bottom. Names in one row are files that belong together.
ROOMS = (
  ("__init__", "api"),
  ("cli",),
  ("experiments",),
  ("study",),
  ("report",),
  ("workers",),
  ("designs",),
  ("planner",),
  ("train",),
  ("laws",),
  ("parallel",),
  ("optim",),
  ("tasks",),
  ("models",),
  ("data",),
  ("record",),
  ("accounting", "hardware", "processes", "types", "user_files"),
  ("declarations",),
  ("readers",),
  ("config",),
  ("files",),
  ("errors",),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}


def module_name(path):
  return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path):
  """Modules of the package that a file imports anywhere, except those for type checkers only."""
  tree = ast.parse(path.read_text())
  skipped = {
    child
    for node in ast.walk(tree)
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    for child in ast.walk(node)
  }
  for node in ast.walk(tree):
    if node in skipped:
      continue
    if isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        submodule = f"{node.module}.{alias.name}"
        yield submodule if submodule in MODULES else node.module
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


def room_of(module):
  parts = module.split(".")
  return parts[1] if len(parts) > 1 else "__init__"


def test_every_file_belongs_to_a_room():
  assert {room_of(module) for module in MODULES} == LEVEL.keys() - ({"api"} - {room_of(m) for m in MODULES})


def test_imports_only_go_down():
  up = [
    f"{module} imports {target}"
    for module, path in MODULES.items()
    for target in imports_of(path)
    if target in MODULES
    and LEVEL[room_of(target)] < LEVEL[room_of(module)]
    and not (target == "bigmodel" and room_of(module) == "cli")
  ]
  assert not up, "\n".join(up)


def test_no_module_imports_itself_through_others():
  edges = collections.defaultdict(set)
  for module, path in MODULES.items():
    edges[module] = {target for target in imports_of(path) if target in MODULES} - {module}

  def reachable(start):
    seen, todo = set(), [start]
    while todo:
      for target in edges[todo.pop()] - seen:
        seen.add(target)
        todo.append(target)
    return seen

  cycles = [module for module in MODULES if module in reachable(module)]
  assert not cycles, cycles
