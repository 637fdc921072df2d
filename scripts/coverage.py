#!/usr/bin/env python3
"""What the C tests reach of the native core: lines and branches by file, and what is left.

    make coverage        counts (csrc/build-coverage), then this

A branch of an FO_ASSERT whose other side is the abort cannot be taken by a passing test; it is counted apart, and so is what the
compiler adds for the sanitizers' sake. Standard library only; asks gcov for JSON.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

CSRC = Path(__file__).resolve().parents[1] / "csrc"
BUILD = CSRC / "build-coverage"
IMPOSSIBLE = ("FO_ASSERT", "_Static_assert", "fo_assert_failed")


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


def main() -> int:
    """Print the table; 1 when nothing was counted."""
    found = counts()
    if not found:
        print(f"no counts in {BUILD}: make -C csrc test SAN=coverage", file=sys.stderr)
        return 1
    total = [0, 0, 0, 0]
    missing: list[str] = []
    print(f"{'file':24} {'lines':>14} {'branches':>14}")
    for name in sorted(found):
        text = (CSRC / name).read_text(encoding="utf-8").splitlines()
        mine = [0, 0, 0, 0]
        for number, records in sorted(found[name].items()):
            source = text[number - 1].strip()
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
        print(f"{name:24} {share(mine[0], mine[1]):>14} {share(mine[2], mine[3]):>14}")
        total = [a + b for a, b in zip(total, mine, strict=True)]
    print(f"{'all':24} {share(total[0], total[1]):>14} {share(total[2], total[3]):>14}")
    if "-v" in sys.argv:
        print("\nlines that no test reaches:", *missing, sep="\n  ")
    return 0


def share(part: int, whole: int) -> str:
    """As "98.1 % of 270"."""
    return f"{100 * part / whole:.1f} % of {whole}" if whole else "-"


if __name__ == "__main__":
    sys.exit(main())
