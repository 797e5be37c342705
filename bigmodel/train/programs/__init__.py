"""Programs: the compiled functions that train one run, or several runs of one shape side by side.

`single` trains one run. `batched` and `lanes` train a pack: in one batched computation, or one after another on each
core of a CPU. All three offer what `protocol.Program` lists, and `choose` says which of them trains a config.
"""

from bigmodel.train.programs.choose import key, program
from bigmodel.train.programs.protocol import Program

__all__ = ["Program", "key", "program"]
