"""Stands before a C compiler: of the same text, with the same options, it is asked for an object once.

::

    CC="python tests/sim/compile_once.py OBJECTS cc" python setup.py build_ext

A planted bug changes one source of many; the others come to the objects that they came to before. OBJECTS may be shared, also by
processes that run side by side, and may be removed at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def compile_once(objects: Path, command: Sequence[str]) -> int:
    """Do what the compiler would do. Returns its exit code."""
    if "-c" not in command or "-o" not in command:
        return subprocess.run(command, check=False).returncode
    at = command.index("-o")
    target, rest = Path(command[at + 1]), [*command[:at], *command[at + 2 :]]
    # All that the object depends on: the text with its headers in it, and the options.
    preprocess = [word for word in rest if word != "-c"]
    preprocess += ["-E", "-fno-working-directory"]  # it may be compiled anywhere
    text = subprocess.run(preprocess, stdout=subprocess.PIPE, check=False)
    key = hashlib.sha256(text.stdout + repr(rest).encode()).hexdigest()
    kept = objects / f"{key}.o"
    if text.returncode or not kept.exists():
        code = subprocess.run(command, check=False).returncode
        if code or text.returncode:
            return code
        objects.mkdir(parents=True, exist_ok=True)
        draft = objects / f"{key}.{os.getpid()}"
        shutil.copyfile(target, draft)
        draft.rename(kept)
    else:
        shutil.copyfile(kept, target)
    return 0


if __name__ == "__main__":
    sys.exit(compile_once(Path(sys.argv[1]), sys.argv[2:]))
