"""The name of this machine's CPU, as its vendor writes it."""

import platform
from pathlib import Path

from runtimes.isa import CPUINFO


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """Return ``AMD EPYC 9R14``, or the architecture where the system does not say.

    Args:
        cpuinfo: Linux's description of the CPUs.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
