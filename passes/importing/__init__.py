"""Passes over ONNX files: other tools' spellings become the integer dialect."""
