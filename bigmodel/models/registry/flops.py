"""FLOPs of the matrix products and convolutions of a function, counted in its jaxpr without compiling."""

import math
from collections.abc import Callable, Iterator
from typing import cast

import jax
from jax.extend import core


def product_flops(function: Callable[..., object], *arguments: object) -> float:
  """Returns the FLOPs of products in `function(*arguments)`, two per multiply-add; arguments may be abstract.

  The body of a scan counts once per iteration, that of other loops once. Of several branches, the largest counts.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of_jaxpr(jaxpr: core.Jaxpr) -> float:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> float:
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = parameters["dimension_numbers"]
    shape = _shape(equation.invars[0])
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(shape[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel, out_channels = _shape(equation.invars[1]), parameters["dimension_numbers"].rhs_spec[0]
    return 2.0 * math.prod(_shape(equation.outvars[0])) * math.prod(kernel) / kernel[out_channels]
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(parameters)]
  if not inner:
    return 0.0
  return max(inner) if name == "cond" else sum(inner) * parameters.get("length", 1)


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
  return cast(jax.ShapeDtypeStruct, variable.aval).shape  # an abstract array also has a shape


def _inner(parameters: dict[str, object]) -> Iterator[core.Jaxpr]:
  """Yields the jaxprs of the functions that an equation calls."""
  for value in parameters.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part
