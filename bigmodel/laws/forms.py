"""The registry of laws: a built-in law is one decorated function in a file *_forms.py here; a user's is FILE.py:NAME.

This is also what a user's file imports: `from bigmodel.laws.forms import POSITIVE, decay, law`.
"""

import importlib
import pkgutil
from types import ModuleType

import jax
import jax.numpy as jnp

from bigmodel import laws, user_files
from bigmodel.config import nearest
from bigmodel.errors import UserError
from bigmodel.laws import mixture_forms
from bigmodel.laws.law import POSITIVE, REAL, Law, decay, law

__all__ = ["LAWS", "POSITIVE", "REAL", "Law", "absolute", "decay", "find", "law"]

MODULES = tuple(
  importlib.import_module(f"{laws.__name__}.{module.name}")
  for module in pkgutil.iter_modules(laws.__path__)
  if module.name.endswith("_forms")
)


def laws_in(module: ModuleType) -> list[Law]:
  """The laws that a module defines, in its order."""
  return [value for value in vars(module).values() if isinstance(value, Law)]


LAWS: dict[str, Law] = {each.name: each for module in MODULES for each in laws_in(module)}


def find(name: str, where: str = "--law") -> Law:
  """The built-in law of this name, or that of a user's file for FILE.py:NAME; `where` begins messages.

  NAME is that of the function or that given to the decorator. Raises `UserError` for a name that does not exist.
  """
  if user_files.is_reference(name):
    return _law_of_file(name, where)
  family = name.rstrip("0123456789")
  if name not in LAWS and family in mixture_forms.FAMILIES:
    return _law_of_shares(family, name.removeprefix(family), where)
  if name not in LAWS:
    raise UserError(f"{where}: no law {name!r}{nearest(name, LAWS)}; known: {', '.join(LAWS)}")
  return LAWS[name]


def _law_of_shares(family: str, count: str, where: str) -> Law:
  if not count or int(count) < mixture_forms.LEAST_SHARES:
    raise UserError(
      f"{where}: {family} is a law of the shares of several domains: --column r=COLUMN,COLUMN,... names them, or"
      f" {family}5 is that of five columns r1 to r5"
    )
  return mixture_forms.FAMILIES[family](int(count))


def _law_of_file(reference: str, where: str) -> Law:
  path, _, name = reference.rpartition(":")
  name = name.partition("@")[0]  # of the hash
  by_name: dict[str, Law] = {}
  for each in laws_in(user_files.module_of(reference, where)):
    by_name |= {each.value.__name__: each, each.name: each}
  if name not in by_name:
    defined = ", ".join(each.name for each in dict.fromkeys(by_name.values())) or "none"
    raise UserError(f"{where}: {path} defines no law {name!r}{nearest(name, by_name)}; it defines {defined}")
  _require_losses(by_name[name], f"{where}: {path}: law {name}")
  return by_name[name]


def _require_losses(law: Law, where: str) -> None:
  """Refuses a user's law that fails, or that does not return one value for each point."""
  shape = (3,)
  theta = jax.ShapeDtypeStruct((len(law.names),), jnp.float32)
  columns = [jax.ShapeDtypeStruct(shape, jnp.float32) for _ in law.columns]
  try:
    found = jax.eval_shape(law.predict, theta, columns)
  except Exception as error:
    raise UserError(f"{where} fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error
  if getattr(found, "shape", None) != shape:
    raise UserError(
      f"{where} returns shape {getattr(found, 'shape', None)} for points of shape {shape}; one value each"
    )


def absolute(name: str, where: str = "get_study: laws") -> str:
  """The name as it can be found from any folder: for FILE.py:NAME with the absolute path and the hash of the file."""
  return user_files.complete(name, where)
