#!/usr/bin/env python3
"""What the C tests reach of the native core: lines and branches by file, and what is left.

    make coverage        counts (csrc/build-coverage), then this
    scripts/coverage.py -v        names what no test reaches

What counts not, and is said:

* the branches of an FO_ASSERT: its other side is the abort;
* a line that ends with ``/* not tested: … */``: what cannot happen here, or only in a race that no test can win, and why;
* a unit for instructions that this processor has not.

It fails below what has been reached (FLOOR). Standard library only; asks gcov for JSON.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

CSRC = Path(__file__).resolve().parents[1] / "csrc"
BUILD = CSRC / "build-coverage"
IMPOSSIBLE = ("FO_ASSERT", "_Static_assert", "fo_assert_failed")
EXCUSED = "/* not tested: "
UNITS = {"fo_hash_avx2.c": "avx2", "fo_hash_avx512.c": "avx512f"}  # what the processor must have
FLOOR = (100.0, 99.8)  # per cent of lines, of branches


def counts() -> dict[str, dict[int, list[dict[str, Any]]]]:
    """File → line number → every record of it that gcov gives (inline functions have several)."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as directory:
        for data in sorted(BUILD.glob("fo_*.gcda")):
            command = [
                "gcov",
                "--json-format",
                "--branch-probabilities",
                "-o",
                str(BUILD),
                str(data),
            ]
            subprocess.run(command, cwd=directory, check=True, capture_output=True)
        for report in Path(directory).glob("*.gcov.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                name = Path(file["file"]).name
                if (CSRC / name).exists():
                    for line in file["lines"]:
                        found[name][line["line_number"]].append(line)
    return found


def absent() -> list[str]:
    """The units that cannot run on this processor."""
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text(encoding="utf-8")))
    return [name for name, flag in UNITS.items() if flag not in flags]


def main() -> int:
    """Print the table; 1 when nothing was counted, or less than before."""
    found = counts()
    skipped = [name for name in absent() if found.pop(name, None) is not None]
    excused = 0
    if not found:
        print(f"no counts in {BUILD}: make -C csrc test SAN=coverage", file=sys.stderr)
        return 1
    total = [0, 0, 0, 0]
    missing: list[str] = []
    halves: list[str] = []
    print(f"{'file':24} {'lines':>14} {'branches':>14}")
    for name in sorted(found):
        text = (CSRC / name).read_text(encoding="utf-8").splitlines()
        mine = [0, 0, 0, 0]
        for number, records in sorted(found[name].items()):
            source = text[number - 1].strip()
            if EXCUSED in source:
                excused += 1
                continue
            run = any(record["count"] for record in records)
            mine[1] += 1
            mine[0] += run
            if not run:
                missing.append(f"{name}:{number}: {source}")
            if any(word in source for word in IMPOSSIBLE):
                continue
            taken = [record["branches"] for record in records if record["branches"]]
            for sides in zip(*taken, strict=False):
                mine[3] += 1
                mine[2] += any(side["count"] for side in sides)
            if run and not all(
                any(side["count"] for side in sides) for sides in zip(*taken, strict=False)
            ):
                halves.append(f"{name}:{number}: {source}")
        print(f"{name:24} {share(mine[0], mine[1]):>14} {share(mine[2], mine[3]):>14}")
        total = [a + b for a, b in zip(total, mine, strict=True)]
    print(f"{'all':24} {share(total[0], total[1]):>14} {share(total[2], total[3]):>14}")
    print(
        f"not counted: {excused} lines that say why{''.join(f', {name}: not this processor' for name in skipped)}"
    )
    reached = 100 * total[0] / total[1], 100 * total[2] / total[3]
    below = [
        f"{now:.2f} % < {floor:.2f} %"
        for now, floor in zip(reached, FLOOR, strict=True)
        if now < floor
    ]
    if "-v" in sys.argv or below:
        print("\nlines that no test reaches:", *missing, sep="\n  ")
        print("\nbranches of which some side is never taken:", *halves, sep="\n  ")
    if below:
        print(f"less than has been reached: {', '.join(below)}", file=sys.stderr)
    return 1 if below else 0


def share(part: int, whole: int) -> str:
    """As "98.1 % of 270"."""
    return f"{100 * part / whole:.1f} % of {whole}" if whole else "-"


if __name__ == "__main__":
    sys.exit(main())
