"""CUDA source -> machine code, by NVRTC: NVIDIA's compiler as a library; it needs no GPU.

TVM's own call of NVRTC compiles with ``--use_fast_math``, which contracts products and sums,
approximates divisions and flushes small numbers to 0. Requantization is exact in one order of
roundings only, so that the library is called here, with `OPTIONS`.

NVRTC 13, because TVM's wheel runs modules with CUDA 13 (its libtvm_runtime_cuda.so links
libcudart.so.13). Source: NVRTC's documentation and nvrtc.h.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

from qtool.core.errors import UserError

PACKAGE, MAJOR = "nvidia-cuda-nvrtc", 13
INSTALL = f"pip install '{PACKAGE}=={MAJOR}.*' (extra: cuda)"
# No contraction of a * b + c, IEEE division, small numbers kept; the first is not the default.
OPTIONS = ("--fmad=false", "--prec-div=true", "--ftz=false", "-default-device")

# What TVM's source includes of the CUDA toolkit, which NVRTC's package does not have.
_INTEGERS = """namespace cuda { namespace std {
using int8_t = signed char; using uint8_t = unsigned char;
using int16_t = short; using uint16_t = unsigned short;
using int32_t = int; using uint32_t = unsigned int;
using int64_t = long long; using uint64_t = unsigned long long;
} }
"""
_TRAITS = """namespace cuda { namespace std {
template <class A, class B> struct is_same { static constexpr bool value = false; };
template <class A> struct is_same<A, A> { static constexpr bool value = true; };
template <class A, class B> inline constexpr bool is_same_v = is_same<A, B>::value;
template <class A> struct is_integral;
template <class A> struct is_signed;
template <class A> struct is_unsigned;
template <class A> struct is_floating_point;
template <bool, class A = void> struct enable_if;
template <bool, class A, class B> struct conditional;
} }
"""
_HEADERS = {"cuda/std/cstdint": _INTEGERS, "cuda/std/type_traits": _TRAITS}


@dataclass(frozen=True)
class DeviceCode:
    """What a source was compiled to.

    Args:
        cubin: machine code.
        ptx: NVIDIA's assembly that it was made of.
    """

    cubin: bytes
    ptx: str


def require_nvrtc() -> None:
    """Raise `UserError` unless NVRTC is installed."""
    _library()


@cache
def architectures() -> tuple[str, ...]:
    """Return the GPUs that this NVRTC compiles for: sm_80, ..., in order."""
    library, count = _library(), ctypes.c_int()
    _checked(
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs"
    )
    found = (ctypes.c_int * count.value)()
    _checked(library.nvrtcGetSupportedArchs(found), "nvrtcGetSupportedArchs")
    return tuple(f"sm_{number}" for number in found)


def compile_source(source: str, architecture: str) -> DeviceCode:
    """Compile CUDA source.

    Args:
        source: kernels, as TVM writes them.
        architecture: one of `architectures`.

    Raises:
        UserError: NVRTC is not installed.
        RuntimeError: NVRTC refuses the source, with its reason.
    """
    library, program = _library(), ctypes.c_void_p()
    texts, names = _strings(_HEADERS.values()), _strings(_HEADERS)
    _checked(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", len(_HEADERS), texts, names
        ),
        "nvrtcCreateProgram",
    )
    try:
        options = [f"--gpu-architecture={architecture}", *OPTIONS]
        if library.nvrtcCompileProgram(program, len(options), _strings(options)):
            log = _text(library, program, "ProgramLog").rstrip(b"\0").decode()
            raise RuntimeError(f"NVRTC: {log}")
        cubin = _text(library, program, "CUBIN")
        return DeviceCode(cubin, _text(library, program, "PTX").rstrip(b"\0").decode())
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: Any, program: Any, what: str) -> bytes:
    """Return the result `what` of a program: ``nvrtcGetCUBINSize``, then ``nvrtcGetCUBIN``."""
    size = ctypes.c_size_t()
    name = f"nvrtcGet{what}"
    _checked(getattr(library, f"{name}Size")(program, ctypes.byref(size)), name)
    content = ctypes.create_string_buffer(size.value)
    _checked(getattr(library, name)(program, content), name)
    return content.raw


def _checked(status: int, name: str) -> None:
    if status:
        raise RuntimeError(f"NVRTC: {name} returned {status}")


def _strings(values: Any) -> Any:
    encoded = [str(value).encode() for value in values]
    return (ctypes.c_char_p * len(encoded))(*encoded)


@cache
def _library() -> Any:
    """Return the library of the installed package."""
    what = f"--device cuda compiles with {PACKAGE} {MAJOR}"
    try:
        installed = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UserError(f"{what}, not installed: {INSTALL}") from None
    if installed.version.partition(".")[0] != str(MAJOR):
        raise UserError(f"{what}, got {installed.version}: {INSTALL}")
    files = [p for p in installed.files or () if p.name == f"libnvrtc.so.{MAJOR}"]
    try:
        return ctypes.CDLL(str(files[0].locate()))
    except (IndexError, OSError) as error:
        raise UserError(
            f"{what}, whose library cannot be loaded ({error}): {INSTALL}"
        ) from None
