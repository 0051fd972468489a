"""ONNX files: QDQ and operator form."""
