"""Checkpoint -> bundle: four ONNX graphs written directly with onnx-ir, no torch; one file per graph."""
