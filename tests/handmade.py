"""Labels of parameters that a test makes by hand, without a model that would give them."""

import jax

from bigmodel.models.layers.roles import Label, Labels, Role, dotted


def labels_of(params):
  """Those under `blocks` are stacked over layers, `embedding` is a table, and all other matrices are hidden ones."""
  rows = []
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = dotted(path)
    axes = ("layers",) * name.startswith("blocks.")
    axes += tuple(f"axis_{i}" for i in range(x.ndim - len(axes)))
    matrix = Role.TABLE if name == "embedding" else Role.HIDDEN
    rows.append((name, Label(axes, matrix if x.ndim - axes.count("layers") > 1 else Role.NORM)))
  return Labels(tuple(rows))
