"""Checkpoints: arrays written by orbax in the background, sealed by checksums, verified before they are restored.

Orbax writes `checkpoints/STEP/arrays`, each process its part. A single process joins small arrays to one array per
dtype, because orbax takes a millisecond for each array. `checkpoints/STEP/SEAL` holds the size and the sha256 of every
file, block by block, the fingerprint of every array and the names of the joined ones, and begins with the sha256 of
itself. Each process hashes the files that it wrote. Before a restore, one step is verified; each process hashes a
share.
Nothing in a checkpoint depends on the mesh: it restores on any other, and every process reads what its devices hold.

A writer has a temporary folder that no other writer uses. It becomes `STEP` by a rename once all of it is on disk. So
two writers of one run, of which one has not noticed yet that the other has taken over, leave only sound checkpoints.
"""

from bigmodel.train.checkpoint.arrays import Arrays, to_flat
from bigmodel.train.checkpoint.integrity import SEAL, Seal, read_seal
from bigmodel.train.checkpoint.store import Checkpoints, newest_common

__all__ = ["SEAL", "Arrays", "Checkpoints", "Seal", "newest_common", "read_seal", "to_flat"]
