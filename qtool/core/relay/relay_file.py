"""model.relay.json: what a network is, its Relay modules and parameters, and a checksum.

    {"format": 1, "sha256": of the rest, "facts": {...}, "main": {...}, "trace": {...},
     "parameters": base64 of what tvm.relay.load_param_dict reads}

"facts" are `passes.emit.facts.describe` of the program and, of the module, "tvm", "mcpu",
"input_name" and "differs". "main" and "trace" are what ``tvm.ir.save_json`` writes: image ->
output, and image -> every integer tensor.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from qtool.core.errors import UserError
from qtool.core.files import read_json

FORMAT = 1
MAIN, TRACE = "main", "trace"
_PARTS = {"facts": dict, MAIN: dict, TRACE: dict, "parameters": str}
# Of the facts, what is read of every file.
_FACTS: dict[str, type | UnionType] = {
    "digest": str, "dataset": str | None, "frames": int, "classes": list, "input_shape": list,
    "input_kind": str, "input_name": str, "output_scale": float, "output_zero_point": int,
    "output_kind": str, "tensors": list, "layers": dict, "layer_macs": dict, "macs": int,
    "bops": int, "weight_bytes": int, "islands": list, "mcpu": str | None,
    "differs": str | None,
}  # fmt: skip


@dataclass(frozen=True)
class RelayFile:
    """The content of a model.relay.json.

    Args:
        facts: what it says of its network.
        modules: Relay modules as JSON, `MAIN` and `TRACE`.
        parameters: of both, as TVM stores them.
    """

    facts: Mapping[str, Any]
    modules: Mapping[str, bytes]
    parameters: bytes

    def to_bytes(self) -> bytes:
        """Return the file."""
        content = {
            "facts": dict(self.facts),
            **{name: json.loads(module) for name, module in self.modules.items()},
            "parameters": base64.b64encode(self.parameters).decode(),
        }
        head = {"format": FORMAT, "sha256": _digest(content)}
        return (json.dumps(head | content, separators=(",", ":")) + "\n").encode()


def read_relay(path: Path) -> RelayFile:
    """Return the content of the file `path`.

    Raises:
        UserError: missing, not written by qtool, of a newer version, truncated or altered.
    """
    content = read_json(path, "model")
    if content.pop("format", None) != FORMAT:
        raise UserError(f"model {path}: not a Relay file of qtool, or of another version")
    digest = content.pop("sha256", None)
    if {key: type(value) for key, value in content.items()} != _PARTS:
        raise UserError(f"model {path}: expected {', '.join(_PARTS)}: damaged")
    if digest != _digest(content):
        raise UserError(f"model {path}: its checksum does not fit its content: damaged")
    for name, kind in _FACTS.items():
        if not isinstance(content["facts"].get(name), kind):
            raise UserError(f"model {path}: its facts say nothing of {name!r}: damaged")
    try:
        parameters = base64.b64decode(content["parameters"], validate=True)
    except binascii.Error:
        raise UserError(f"model {path}: its parameters are not base64: damaged") from None
    modules = {name: json.dumps(content[name]).encode() for name in (MAIN, TRACE)}
    return RelayFile(content["facts"], modules, parameters)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
