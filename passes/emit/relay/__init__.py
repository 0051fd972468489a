"""The Relay target: the integer dialect in operators of Relay, which TVM had up to 0.19."""
