"""Checkpoints people have: this project's own, Hugging Face's and Meta's; read without torch."""

from bltcli.checkpoint.native import write_checkpoint
from bltcli.checkpoint.opening import Checkpoint, open_checkpoint
from bltcli.checkpoint.weights import Weight

__all__ = ["Checkpoint", "Weight", "open_checkpoint", "write_checkpoint"]
