"""Estimates the most bytes that a traced function holds at once, without compiling it.

Walks a jaxpr in order and frees each array after its last use. What a compiler fuses
away is not counted: elementwise operations, broadcasts and changes of shape live on as
their inputs until something reads them that needs an array in memory, such as a product.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeAlias, cast

import numpy as np
from jax.extend import core


class Array(Protocol):
  """An abstract array of a trace."""

  @property
  def shape(self) -> tuple[int, ...]: ...
  @property
  def dtype(self) -> np.dtype: ...


SizeOf: TypeAlias = Callable[[Array], float]  # bytes
Atom: TypeAlias = core.Var | core.Literal
Sources: TypeAlias = frozenset[core.Var]  # arrays in memory that a value is computed from

# Each of these writes its result to memory, and reads its operands from there.
ARRAYS = {
  *("dot_general", "conv_general_dilated", "reduce_sum", "reduce_max", "argmax", "cumsum", "sort", "top_k", "split"),
  *("gather", "scatter", "scatter-add", "concatenate", "dynamic_update_slice", "optimization_barrier"),
  *("reduce_window", "reduce_window_max", "reduce_window_sum", "select_and_scatter_add", "select_and_gather_add"),
}
READERS = {"dot_general", "scan", "gather", "conv_general_dilated"}  # need their operands in memory
FREE = {"reshape", "broadcast_in_dim", "convert_element_type", "transpose", "squeeze", "expand_dims", "copy"}


LOOPS = {"scan", "while", "cond"}


def peak(jaxpr: core.Jaxpr, size_of: SizeOf, fuses_scatters: bool = False) -> float:
  """The largest sum of live arrays without the inputs, in bytes.

  With `fuses_scatters`, as in compilers for accelerators, a scatter onto zeros that is then added to another array is
  written into that array, so that the gradient of picking each token's logit needs no additional array.
  """
  flat = _flatten(jaxpr)
  materialized = _materialized(flat, fuses_scatters)
  # The arrays in memory that each equation reads.
  sources: dict[core.Var, Sources] = {}
  reads: list[Sources] = []
  for eqn in flat.eqns:
    used = _union(sources.get(var, frozenset()) for var in _variables(eqn))
    reads.append(used)
    for out in eqn.outvars:
      sources[out] = frozenset([out]) if out in materialized else used
  kept = _union(sources.get(var, frozenset()) for var in flat.outvars)
  last_read = {var: index for index, used in enumerate(reads) for var in used}

  def bytes_of(variables: list[core.Var]) -> float:
    return sum(size_of(_array(var)) for var in variables)

  live, largest = 0.0, 0.0
  for index, eqn in enumerate(flat.eqns):
    results = [var for var in eqn.outvars if var in materialized]
    made, inside = bytes_of(results), 0.0
    if eqn.primitive.name in LOOPS:
      inside = max((peak(body, size_of, fuses_scatters) for body in _bodies(eqn)), default=0.0)
    freed = bytes_of([var for var in reads[index] if last_read[var] == index and var not in kept])
    in_place = min(made, freed) if eqn.primitive.name not in ARRAYS and not inside else 0.0
    largest = max(largest, live + made + inside - in_place)
    unused = bytes_of([var for var in results if var not in last_read and var not in kept])
    live += made - freed - unused
  return max(largest, live)


def stacked(jaxpr: core.Jaxpr, size_of: SizeOf) -> float:
  """Bytes that loops save for later: their stacked results, all loops together, where `size_of` counts them."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      total += sum(size_of(_array(var)) for var in eqn.outvars[eqn.params["num_carry"] :])
    for inner in _called(eqn):
      total += stacked(inner, size_of) if eqn.primitive.name != "scan" else 0.0
  return total


def _array(var: core.Var) -> Array:
  return cast(Array, var.aval)  # values without a shape, such as tokens, are not in a trace of loss and gradients


def _called(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
  """The functions that an equation calls."""
  names = [name for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params]
  return [_opened(eqn.params[name]) for name in names]


def _bodies(eqn: core.JaxprEqn) -> list[core.Jaxpr]:
  """The bodies of a loop, or the branches of a condition."""
  bodies = [eqn.params[name] for name in ("jaxpr", "body_jaxpr") if name in eqn.params]
  return [_opened(body) for body in (*bodies, *eqn.params.get("branches", ()))]


def _opened(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> core.Jaxpr:
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr


def _variables(eqn: core.JaxprEqn) -> list[core.Var]:
  """The inputs of an equation that are not constants."""
  return [var for var in eqn.invars if not isinstance(var, core.Literal)]


def _union(parts: Iterator[Sources]) -> Sources:
  return frozenset().union(*parts)


@dataclasses.dataclass(frozen=True)
class _Flat:
  """The equations of a trace, with calls replaced by their equations, and its results."""

  eqns: list[core.JaxprEqn]
  outvars: list[core.Var]


def _materialized(flat: _Flat, fuses_scatters: bool) -> set[core.Var]:
  """The values that are in memory: results of products and the like, their operands, and the trace's results."""
  chosen: set[core.Var] = set()
  readers: dict[core.Var, list[str]] = {}
  for eqn in flat.eqns:
    if eqn.primitive.name in ARRAYS | LOOPS or _is_opaque(eqn):
      chosen.update(eqn.outvars)
    for var in _variables(eqn):
      readers.setdefault(var, []).append(eqn.primitive.name)
  makers = {out: eqn.primitive.name for eqn in flat.eqns for out in eqn.outvars}
  for var, names in readers.items():
    if var in makers and makers[var] not in FREE and READERS & set(names):
      chosen.add(var)
  chosen.update(var for var in flat.outvars if var in makers and makers[var] not in FREE)
  if fuses_scatters:
    for eqn in flat.eqns:
      if eqn.primitive.name == "scatter-add" and not isinstance(eqn.invars[0], core.Literal):
        onto_zeros = makers.get(eqn.invars[0]) in FREE
        if onto_zeros and set(readers.get(eqn.outvars[0], ())) == {"add_any"}:
          chosen.discard(eqn.outvars[0])
  return chosen


def _is_opaque(eqn: core.JaxprEqn) -> bool:
  return "custom_call" in eqn.primitive.name or "pallas" in eqn.primitive.name


def _renamed(atom: Atom, names: Mapping[core.Var, Atom]) -> Atom:
  return atom if isinstance(atom, core.Literal) else names.get(atom, atom)


def _flatten(jaxpr: core.Jaxpr) -> _Flat:
  """Inlines all calls but loops, conditions and kernels."""
  eqns: list[core.JaxprEqn] = []
  seen: set[core.Var] = set()

  def visit(inner: core.Jaxpr, names: dict[core.Var, Atom]) -> None:
    """Appends the equations of `inner`, with its variables renamed by `names`; adds the names of its results there."""
    for eqn in inner.eqns:
      calls = _called(eqn) if eqn.primitive.name not in (*LOOPS, "pallas_call") else []
      renamed = eqn.replace(invars=[_renamed(var, names) for var in eqn.invars])
      if not calls:
        fresh = [core.Var(var.aval) if var in seen else var for var in eqn.outvars]  # a body may be inlined twice
        seen.update(fresh)
        names.update({old: new for old, new in zip(eqn.outvars, fresh, strict=True) if old is not new})
        eqns.append(renamed.replace(outvars=fresh))
        continue
      body = calls[0]
      local = dict(zip(body.invars, renamed.invars[-len(body.invars) :] if body.invars else [], strict=True))
      visit(body, local)
      for out, result in zip(eqn.outvars, body.outvars, strict=True):
        names[out] = _renamed(result, local)

  names: dict[core.Var, Atom] = {}
  visit(jaxpr, names)
  results = [_renamed(var, names) for var in jaxpr.outvars]
  return _Flat(eqns, [var for var in results if not isinstance(var, core.Literal)])
