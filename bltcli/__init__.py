"""Byte Latent Transformers, exported to ONNX and decoded many bytes per pass."""

__version__ = "0.1.0"
