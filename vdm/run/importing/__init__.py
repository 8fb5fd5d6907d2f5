"""Checkpoints of other code as runs, ready to be evaluated and sampled."""

from vdm.run.importing.checkpoint_file import Checkpoint, read
from vdm.run.importing.official import Imported, prepare, write
from vdm.run.importing.settings import official_values

__all__ = ["Checkpoint", "Imported", "official_values", "prepare", "read", "write"]
