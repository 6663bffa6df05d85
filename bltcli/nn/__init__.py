"""The PyTorch reference model: one file per graph. What the exported graphs are held against, and what is trained."""

from bltcli.nn.model import Blt

__all__ = ["Blt"]
