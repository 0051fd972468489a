"""Relay, which TVM had up to 0.19: its environment, the process in it, files and libraries.

The packages of that TVM and of TVM 0.27 are both called ``tvm``. So the older one is in an
environment of its own, and `worker`, a process of its interpreter, does what needs it.
"""
