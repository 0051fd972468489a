"""Pickle files of dictionaries of numpy arrays, lists and strings, read without unpickling.

A pickle is a program, and ``pickle.load`` runs it. Here its instructions (PEP 307, protocol
2) are followed on plain values by a reader that has no other ones: the only "functions" are
the four names with which Python 2 and 3 write byte strings and uint8 arrays, and they are
stand-ins that build values, never looked up. Everything else in a file is refused.
"""

import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtool.core.errors import UserError

_ENCODE = "_codecs encode"
_ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NAMES = {_ENCODE, *_ARRAYS, "numpy ndarray", "numpy dtype"}
_VALUES = {
    "SHORT_BINSTRING", "BINSTRING", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """Something that no such file holds."""


@dataclass(frozen=True)
class _Name:
    """A stand-in for a function or class."""

    name: str


@dataclass
class _Built:
    """What a stand-in was called with: an array or its type, completed by BUILD."""

    kind: str
    args: tuple[Any, ...]
    state: tuple[Any, ...] = ()


@dataclass
class _Machine:
    """Stack and memo of a pickle's instructions."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def follow(self, name: str, arg: Any) -> None:
        """Follow instruction `name`, which pickletools describes."""
        if name in _VALUES:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name == "GLOBAL":
            if arg not in _NAMES:
                raise _Refused(f"it asks for {arg.replace(' ', '.')!r}")
            self.stack.append(_Name(arg))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[arg])
        elif name in _TUPLES or name == "TUPLE":
            self.stack.append(tuple(self._pop(_TUPLES.get(name))))
        elif name != "PROTO" or arg > 2:
            self._combine(name)

    def _pop(self, count: int | None) -> list[Any]:
        """Take `count` values from the stack; None: those above the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < 0:
            raise IndexError
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _combine(self, name: str) -> None:
        if name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            empty: dict[str, Any] = {"EMPTY_LIST": [], "EMPTY_DICT": {}, "EMPTY_TUPLE": ()}
            self.stack.append(empty[name])
        elif name in ("APPEND", "APPENDS"):
            values = self._pop(1 if name == "APPEND" else None)
            self._top(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = self._pop(2 if name == "SETITEM" else None)
            self._top(dict).update(zip(values[::2], values[1::2], strict=True))
        elif name == "REDUCE":
            function, args = self._pop(2)
            self.stack.append(_called(function, args))
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._top(_Built).state = state
        elif name != "STOP":
            raise _Refused(f"it has a {name} instruction")

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise _Refused(f"it changes a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _called(function: Any, args: Any) -> Any:
    if not isinstance(function, _Name) or not isinstance(args, tuple):
        raise _Refused("it calls what is no function")
    if function.name == _ENCODE:  # how Python 3 writes bytes for protocol 2
        text, encoding = args
        if encoding != "latin1":
            raise _Refused(f"it encodes as {encoding!r}")
        return text.encode("latin-1")
    return _Built(function.name, args)


def read_pickled(path: Path, expected: str) -> dict[str, Any]:
    """Return the dictionary in `path`: its lists and strings, uint8 arrays as numpy's.

    Args:
        path: pickle file, protocol 2 or below.
        expected: what it should hold, for the message.

    Raises:
        UserError: missing, truncated, or anything else than such a dictionary.
    """
    machine = _Machine()
    try:
        with open(path, "rb") as file:
            for code, arg, _ in pickletools.genops(file):
                machine.follow(code.name, arg)
        (value,) = machine.stack
        if not isinstance(value, dict):
            raise _Refused(f"it holds a {type(value).__name__}")
        return {_text(key): _array(item) for key, item in value.items()}
    except OSError:
        raise UserError(f"data file missing: {path} ({expected})") from None
    except _Refused as error:
        reason = f"{error}, which is not followed: pickles can run code"
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        reason = f"truncated or not a pickle ({' '.join(str(error).split())[:80]})"
    raise UserError(f"data file {path}: {reason}; expected {expected}")


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _array(value: Any) -> Any:
    """Return a uint8 array for what stands for one."""
    if not isinstance(value, _Built):
        return value
    if value.kind not in _ARRAYS:
        raise _Refused(f"it holds a {value.kind}")
    _version, shape, kind, by_columns, raw = value.state
    if not isinstance(kind, _Built) or kind.args[0] != "u1" or by_columns is not False:
        raise _Refused("it holds an array of other values than bytes by rows")
    data = raw if isinstance(raw, bytes) else raw.encode("latin-1")
    array: NDArray[np.uint8] = np.frombuffer(data, np.uint8).reshape(shape)
    return array
