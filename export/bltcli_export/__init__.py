"""Checkpoint -> bundle: four ONNX graphs written directly with onnx-ir, no torch; one file per graph."""

from typing import Final

#: Counts changes of the graphs for the same checkpoint, so that cached bundles of an older program are not taken.
EXPORT_VERSION: Final = 4
