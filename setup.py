"""The one extension module, ``fanout._core``; everything else about the project is in pyproject.toml.

``FANOUT_SANITIZE=address`` or ``=thread`` in the environment builds it instrumented.
"""

import os
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Header: Debian package.
HEADERS = {
    "stdio.h": "gcc libc6-dev",
    "Python.h": "python3-dev",
    "liburing.h": "liburing-dev",
    "xxhash.h": "libxxhash-dev",
}
SANITIZERS = {
    "": ["-O3"],
    "address": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-fsanitize=thread"],
}
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none yet

os.chdir(Path(__file__).resolve().parent)
sanitize = SANITIZERS[os.environ.get("FANOUT_SANITIZE", "")]


class CheckedBuildExt(build_ext):  # type: ignore[misc]  # setuptools types this as Any
    """Says in one line which packages are missing, before the compiler says it in a hundred."""

    def build_extensions(self) -> None:
        """Check, then build."""
        missing = [package for header, package in HEADERS.items() if not self.has_header(header)]
        if missing:
            names = " ".join(missing)
            raise SystemExit(
                f"fanout: cannot build, a compiler or headers are missing; install the packages: {names}"
                f" (Debian: apt-get install {names})"
            )
        super().build_extensions()

    def has_header(self, header: str) -> bool:
        """Whether the compiler, with all its settings, finds a header; without a compiler nothing is found."""
        places = [f"-I{place}" for place in self.compiler.include_dirs]
        try:
            probe = subprocess.run(
                [*self.compiler.compiler_so, *places, "-E", "-x", "c", "-"],
                input=f"#include <{header}>\n".encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except OSError:
            return False
        return probe.returncode == 0


core = Extension(
    "fanout._core",
    sources=["fanout/_core.pyx", *sorted(str(path) for path in Path("csrc").glob("*.c"))],
    depends=["fanout/_csrc.pxd", *sorted(str(path) for path in Path("csrc").glob("*.h"))],
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", "1")]
    + ([("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []),
    extra_compile_args=["-std=c11", "-fvisibility=hidden", "-pthread", "-g", *sanitize],
    # Static: what is probed at build time is what runs, wherever the wheel goes.
    extra_link_args=["-l:liburing.a", "-pthread", *sanitize],
    py_limited_api=LIMITED_API,
)

setup(
    ext_modules=[core],
    cmdclass={"build_ext": CheckedBuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"} if LIMITED_API else {}},
)
