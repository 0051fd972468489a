"""Is TVM here, and is it the pair of packages that works? Asked before TVM is imported.

apache-tvm-ffi 0.1.15 crashes apache-tvm 0.27.0 (segmentation fault in save_json and script),
and pip alone would choose it.
"""

from importlib import metadata

from qtool.core.errors import UserError

TVM = "0.27.0.post1"
FFI = "0.1.14.post1"
INSTALL = f"pip install apache-tvm=={TVM} apache-tvm-ffi=={FFI}"


def require_tvm() -> None:
    """Raise `UserError` unless the supported TVM packages are installed."""
    for package, wanted in (("apache-tvm", TVM), ("apache-tvm-ffi", FFI)):
        try:
            got = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise UserError(
                f"the TVM target needs {package}, not installed: {INSTALL}"
            ) from None
        if got != wanted:
            raise UserError(
                f"{package} {got} does not work here, expected {wanted}: {INSTALL}"
            )
