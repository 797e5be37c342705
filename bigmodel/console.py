"""Where the command prints for people: text is printed as it is, whatever characters it has."""

from typing import Any

from rich.console import Console


def plain_console(**options: Any) -> Console:
  """A console that reads no markup and no emoji codes into text.

  Paths, config values and error messages may hold brackets, such as `bigmodel[tpu]`, which rich would otherwise
  take for styles and leave out.
  """
  return Console(markup=False, emoji=False, **options)
