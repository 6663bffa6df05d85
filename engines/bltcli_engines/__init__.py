"""What runs a graph: ONNX Runtime, and PyTorch as the reference; each behind the same protocol."""
