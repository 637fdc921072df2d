#!/usr/bin/env bash
# tests/engine over an extension that is built with a sanitizer: scripts/sanitize.sh address|thread [pytest arguments]
#
# In a tree of its own (build/sanitize-…), so that the extension in place stays what it is. No suppressions: CPython is not
# instrumented, so what is reported is ours. What is switched off, and why:
#   detect_leaks=0                CPython keeps memory until the end of the process; leaks are what `make soak` looks for
#   allocator_may_return_null=1   a test asks for 2**60 bytes, and wants to be refused
#   die_after_fork=0              tests fork beside running threads, which TSan would end by itself
#   one test, under TSan          its child starts threads, which TSan takes for those of the parent ("dup thread with used id")
set -euo pipefail
cd "$(dirname "$0")/.."

readonly KIND=$1
shift
readonly TREE=build/sanitize-$KIND
readonly PYTHON=$PWD/.venv/bin/python
beyond=()
case $KIND in
    address) library=libasan.so ;;
    thread) library=libtsan.so beyond=(--deselect tests/engine/test_forks.py::test_a_grandchild_and_a_second_engine) ;;
    *) echo "usage: scripts/sanitize.sh address|thread [pytest arguments]" >&2; exit 2 ;;
esac

rm -rf "$TREE"
mkdir -p "$TREE"
tar -c --exclude='csrc/build*' --exclude='*.so' --exclude='__pycache__' fanout csrc tests pyproject.toml setup.py README.md LICENSE | tar -x -C "$TREE"
cd "$TREE"
export FANOUT_SANITIZE=$KIND
"$PYTHON" setup.py -q build_ext --inplace

export PYTHONPATH=$PWD PYTHONMALLOC=malloc
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1
export TSAN_OPTIONS=die_after_fork=0:halt_on_error=1
LD_PRELOAD=$("${CC:-cc}" -print-file-name="$library")
export LD_PRELOAD
"$PYTHON" -c "import fanout._core as core; assert core.__file__.startswith('$PWD'), core.__file__"
exec "$PYTHON" -m pytest -q "${beyond[@]}" "${@:-tests/engine}"
