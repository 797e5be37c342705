"""The most bytes that a traced function holds at once, without compiling it.

Walks a jaxpr in order and frees each array after its last use. What a compiler fuses
away is not counted: elementwise operations, broadcasts and changes of shape live on as
their inputs until something reads them that needs an array in memory, such as a product.
"""

from collections.abc import Callable
from typing import Any

from jax.extend import core

# Each of these writes its result to memory, and reads its operands from there.
ARRAYS = {
  "dot_general", "reduce_sum", "reduce_max", "argmax", "cumsum", "sort", "top_k", "gather", "scatter", "scatter-add",
  "concatenate", "dynamic_update_slice", "optimization_barrier", "split", "conv_general_dilated", "reduce_window",
  "reduce_window_max", "reduce_window_sum", "select_and_scatter_add", "select_and_gather_add",
}  # fmt: skip
READERS = {"dot_general", "scan", "gather", "conv_general_dilated"}  # need their operands in memory as they are
FREE = {"reshape", "broadcast_in_dim", "convert_element_type", "transpose", "squeeze", "expand_dims", "copy"}


def peak(jaxpr: Any, size_of: Callable[[Any], float], fuses_scatters: bool = False) -> float:
  """The largest sum of live arrays but the inputs; `size_of(aval)` is an array's bytes.

  With `fuses_scatters`, as compilers for accelerators do it, a scatter onto zeros that is then added to another array
  is written into that one: the gradient of picking each token's logit takes no array of its own.
  """
  return _Walk(size_of, fuses_scatters).run(jaxpr, {})[0]


def stacked(jaxpr: Any, size_of: Callable[[Any], float]) -> float:
  """Bytes that loops save for later: their stacked results, all loops together, where `size_of` counts them."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      total += sum(size_of(v.aval) for v in eqn.outvars[eqn.params["num_carry"] :])
    for inner in _inner(eqn):
      total += stacked(inner, size_of) if eqn.primitive.name != "scan" else 0.0
  return total


def _inner(eqn: Any) -> list[Any]:
  found = []
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    if name in eqn.params:
      found.append(getattr(eqn.params[name], "jaxpr", eqn.params[name]))
  return found


class _Walk:
  def __init__(self, size_of: Callable[[Any], float], fuses_scatters: bool):
    self.size_of = size_of
    self.fuses_scatters = fuses_scatters

  def run(self, jaxpr: Any, roots: dict[Any, frozenset]) -> tuple[float, None]:
    """Peak of a jaxpr whose inputs are held by the caller."""
    eqns, outvars = _flatten(jaxpr)
    materialized = self._materialized(eqns, outvars)
    # var -> the arrays in memory that it is computed from
    sources: dict[Any, frozenset] = dict(roots)
    reads: list[frozenset] = []
    for eqn in eqns:
      used = frozenset().union(*(sources.get(v, frozenset()) for v in eqn.invars if not isinstance(v, core.Literal)))
      reads.append(used)
      for out in eqn.outvars:
        sources[out] = frozenset([out]) if out in materialized else used
    kept = frozenset().union(*(sources.get(v, frozenset()) for v in outvars))
    last: dict[Any, int] = {}
    for index, used in enumerate(reads):
      for var in used:
        last[var] = index
    live, largest = 0.0, 0.0
    for index, eqn in enumerate(eqns):
      made = sum(self.size_of(v.aval) for v in eqn.outvars if v in materialized)
      inside = 0.0
      if eqn.primitive.name in ("scan", "while", "cond"):
        inside = max((self.run(body, {})[0] for body in _bodies(eqn)), default=0.0)
      dying = [v for v in reads[index] if last[v] == index and v not in kept]
      freed = sum(self.size_of(v.aval) for v in dying)
      in_place = min(made, freed) if eqn.primitive.name not in ARRAYS and not inside else 0.0
      largest = max(largest, live + made + inside - in_place)
      unused = sum(self.size_of(v.aval) for v in eqn.outvars if v in materialized and v not in last and v not in kept)
      live += made - freed - unused
    return max(largest, live), None

  def _materialized(self, eqns: list[Any], outvars: Any) -> set:
    """Results that lie in memory: of products and the like, what those read, and what is computed once for many."""
    chosen, readers = set(), {}
    for eqn in eqns:
      solid = eqn.primitive.name in ARRAYS or eqn.primitive.name in ("scan", "while", "cond") or _opaque(eqn)
      if solid:
        chosen.update(eqn.outvars)
      for var in eqn.invars:
        if not isinstance(var, core.Literal):
          readers.setdefault(var, []).append(eqn.primitive.name)
    makers = {out: eqn.primitive.name for eqn in eqns for out in eqn.outvars}
    for var, names in readers.items():
      if var in makers and makers[var] not in FREE and READERS & set(names):
        chosen.add(var)
    chosen.update(v for v in outvars if v in makers and makers[v] not in FREE)
    if self.fuses_scatters:
      for eqn in eqns:
        if eqn.primitive.name == "scatter-add" and not isinstance(eqn.invars[0], core.Literal):
          onto_zeros = makers.get(eqn.invars[0]) in FREE
          if onto_zeros and set(readers.get(eqn.outvars[0], ())) == {"add_any"}:
            chosen.discard(eqn.outvars[0])
    return chosen


def _opaque(eqn: Any) -> bool:
  return "custom_call" in eqn.primitive.name or "pallas" in eqn.primitive.name


def _bodies(eqn: Any) -> list[Any]:
  bodies = [eqn.params[n] for n in ("jaxpr", "body_jaxpr") if n in eqn.params] + list(eqn.params.get("branches", ()))
  return [getattr(body, "jaxpr", body) for body in bodies]


def _flatten(jaxpr: Any) -> tuple[list[Any], list[Any]]:
  """Equations with those of inlined calls in their place, and the results."""
  flat: list[Any] = []

  def visit(inner: Any, names: dict[Any, Any]) -> None:
    rename = lambda v: v if isinstance(v, core.Literal) else names.get(v, v)
    for eqn in inner.eqns:
      calls = _inner(eqn) if eqn.primitive.name not in ("scan", "while", "cond", "pallas_call") else []
      renamed = eqn.replace(invars=[rename(v) for v in eqn.invars])
      if not calls:
        fresh = [core.Var(v.aval) if v in seen else v for v in eqn.outvars]  # a body may be inlined twice
        seen.update(fresh)
        names.update({old: new for old, new in zip(eqn.outvars, fresh, strict=True) if old is not new})
        flat.append(renamed.replace(outvars=fresh))
        continue
      body = calls[0]
      local = dict(zip(body.invars, renamed.invars[-len(body.invars) :] if body.invars else [], strict=True))
      visit(body, local)
      for out, result in zip(eqn.outvars, body.outvars, strict=True):
        names[out] = result if isinstance(result, core.Literal) else local.get(result, result)

  seen: set = set()
  top: dict[Any, Any] = {}
  visit(jaxpr, top)
  return flat, [top.get(v, v) for v in jaxpr.outvars if not isinstance(v, core.Literal)]
