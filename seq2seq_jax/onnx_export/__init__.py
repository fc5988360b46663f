"""Programs of JAX as graphs of ONNX, and a search as such graphs."""
