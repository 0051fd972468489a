"""An analysis as files: NAME.json and NAME.png, both or none."""

import tempfile
from pathlib import Path
from typing import Any

from qtool.analyses import Analysis
from qtool.core.files import json_bytes, write_together

ANALYSIS_FORMAT = 1


def write_analysis(
    analysis: Analysis, content: dict[str, Any], folder: Path
) -> tuple[Path, Path]:
    """Write the data and the picture of `content` into `folder`; return their paths."""
    data, image = folder / f"{analysis.name}.json", folder / f"{analysis.name}.png"
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / image.name
        analysis.draw(content, drawn)
        pixels = drawn.read_bytes()
    header = {"format": ANALYSIS_FORMAT, "analysis": analysis.name}
    write_together({image: pixels, data: json_bytes({**header, **content})})
    return data, image
