"""Stands below SQLite: sees every read, write and sync of the catalog's files, and can make each of them fail.

The default VFS of the library that `sqlite3` uses is taken as it is; only three entries of its table and four of each file's are
led through here. So it is SQLite's own code that runs, on real files. One `Below` is in use at a time.
"""

from __future__ import annotations

import ctypes as c
import functools
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.sim.medium import Medium

# Extended result codes: what SQLite says when the system call below it fails.
CODES = {
    "EIO read": 10 | 1 << 8,
    "EIO write": 10 | 3 << 8,
    "EIO sync": 10 | 4 << 8,
    "EIO truncate": 10 | 6 << 8,
    "ENOSPC": 13,
    "ENOMEM": 7,
}
_OPEN_DELETE_ON_CLOSE = 0x8
_CONFIG_SINGLETHREAD, _CONFIG_MEMSTATUS = 1, 9
_PRNG_SEED = 28  # SQLITE_TESTCTRL_PRNG_SEED
_FILE = c.c_void_p
_WRITE = c.CFUNCTYPE(c.c_int, _FILE, c.c_void_p, c.c_int, c.c_int64)
_TRUNCATE = c.CFUNCTYPE(c.c_int, _FILE, c.c_int64)
_SYNC = c.CFUNCTYPE(c.c_int, _FILE, c.c_int)


class _Methods(c.Structure):
    """sqlite3_io_methods, version 3."""

    _fields_: ClassVar = [
        ("version", c.c_int),
        ("close", c.c_void_p),
        ("read", _WRITE),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("others", c.c_void_p * 13),
    ]


class _File(c.Structure):
    """sqlite3_file: the rest belongs to the VFS below."""

    _fields_: ClassVar = [("methods", c.POINTER(_Methods))]


# Names go through as the pointers that they are: the VFS below keeps them, and looks at what SQLite has put round them.
_XOPEN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.POINTER(_File), c.c_int, c.c_void_p)
_XDELETE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_int)


class _Vfs(c.Structure):
    """The beginning of sqlite3_vfs."""

    _fields_: ClassVar = [
        ("version", c.c_int),
        ("file_size", c.c_int),
        ("max_path", c.c_int),
        ("next", c.c_void_p),
        ("name", c.c_char_p),
        ("data", c.c_void_p),
        ("open", _XOPEN),
        ("delete", _XDELETE),
    ]


class Below:
    """What happens below SQLite in one run.

    Attributes:
        script: called with the operation (``read``, ``write``, ``sync`` or ``truncate``) and the file before each; gives the
            name of a result code, and whether the operation is carried out all the same. None: it goes well.
        reads: whether reads are led through here; the others always are.
        asleep: the oracle looks. Nothing is led through here, now or later, of the files that it opens.
        wrong: is given what was raised in here, for SQLite cannot carry it.
    """

    def __init__(self, medium: Medium) -> None:
        self.medium, self.asleep = medium, False
        self.script: Callable[[str, str], tuple[str, bool] | None] = _all_is_well
        self.wrong: Callable[[BaseException], None] = lambda error: None

    @property
    def reads(self) -> bool:
        return _the_hook().reads

    @reads.setter
    def reads(self, wanted: bool) -> None:
        if wanted != _the_hook().reads:
            _the_hook().watch_reads(wanted)


def _all_is_well(operation: str, path: str) -> None:
    """No faults."""


class _Hook:
    """The patched tables. Made once; it lives as long as the process, for SQLite keeps pointers to it."""

    def __init__(self) -> None:
        library = _library()
        library.sqlite3_vfs_find.restype = c.POINTER(_Vfs)
        self.vfs = library.sqlite3_vfs_find(None).contents
        assert self.vfs.version in (1, 2, 3)
        self.below: Below | None = None
        self.reads = False
        self.paths: dict[int, str] = {}
        self.tables: dict[int, _Methods] = {}
        # By address: a function that is read from a table is whatever the table holds when it is called.
        self.original_open = _XOPEN(_address(self.vfs.open))
        self.original_delete = _XDELETE(_address(self.vfs.delete))
        self.open, self.delete = _XOPEN(self._open), _XDELETE(self._delete)
        self.vfs.open, self.vfs.delete = self.open, self.delete

    def _open(self, vfs: int, name: int | None, file: Any, flags: int, out: int) -> int:
        code = self.original_open(vfs, name, file, flags, out)
        if code or self.below is None or name is None or flags & _OPEN_DELETE_ON_CLOSE:
            return int(code)
        path = os.fsdecode(c.string_at(name))
        log = self.below.medium.logs.get(path)
        if log is None:
            return 0
        log.exists = True  # who only looks makes a log that is not there, too
        if not self.below.asleep:
            self.paths[c.addressof(file.contents)] = path
            file.contents.methods = c.pointer(self._table(file.contents.methods))
        return 0

    def _delete(self, vfs: int, name: int, sync: int) -> int:
        path = os.fsdecode(c.string_at(name))
        below = self.below
        if below is not None and not below.asleep and path in below.medium.logs:
            if below.script("truncate", path):
                return CODES["EIO truncate"]
            below.medium.catalog_delete(path)
        return int(self.original_delete(vfs, name, sync))

    def _table(self, methods: Any) -> _Methods:
        """The table of a file with our entries; one for each table of the VFS below."""
        address = c.addressof(methods.contents)
        made = self.tables.get(address)
        if made is None:
            below = methods.contents
            made = _Methods.from_buffer_copy(below)
            made.kept = below.read
            made.watched = _WRITE(self._led_through("read", below.read))
            made.read = made.watched if self.reads else made.kept
            made.write = _WRITE(self._write_led_through(below.write))
            made.truncate = _TRUNCATE(self._led_through("truncate", below.truncate))
            made.sync = _SYNC(self._led_through("sync", below.sync))
            self.tables[address] = made
        return made

    def watch_reads(self, wanted: bool) -> None:
        """Lead reads through here as well, or not: there are many."""
        self.reads = wanted
        for table in self.tables.values():
            table.read = table.watched if wanted else table.kept

    def _led_through(self, operation: str, original: Any) -> Callable[..., int]:
        """What stands in the place of an entry."""
        paths, note = self.paths, _NOTES[operation]

        def run(*arguments: Any) -> int:
            below, path = self.below, paths.get(arguments[0])
            if below is None or path is None or below.asleep:
                return int(original(*arguments))
            try:
                fault = below.script(operation, path)
                if fault is not None and not fault[1]:
                    if operation == "sync":
                        below.medium.catalog_sync(path, good=False)
                    return CODES[fault[0]]
                code = int(original(*arguments))
                if code == 0:
                    note(below.medium, path, arguments)
                return code if fault is None else CODES[fault[0]]
            except BaseException as error:
                below.wrong(error)
                return CODES["EIO read"]

        return run

    def _write_led_through(self, original: Any) -> Callable[..., int]:
        """The same for writes: it runs twice for every page that a commit writes."""
        paths, string_at = self.paths, c.string_at

        def write(file: int, data: int, length: int, offset: int) -> int:
            below, path = self.below, paths.get(file)
            if below is None or path is None or below.asleep:
                return int(original(file, data, length, offset))
            try:
                fault = below.script("write", path)
                if fault is not None and not fault[1]:
                    return CODES[fault[0]]
                code: int = original(file, data, length, offset)
                if not code:
                    below.medium.catalog_write(path, offset, string_at(data, length))
                return code if fault is None else CODES[fault[0]]
            except BaseException as error:
                below.wrong(error)
                return CODES["EIO read"]

        return write


_NOTES: dict[str, Callable[[Medium, str, tuple[Any, ...]], None]] = {
    "read": lambda medium, path, arguments: None,
    "truncate": lambda medium, path, arguments: medium.catalog_truncate(path, arguments[1]),
    "sync": lambda medium, path, arguments: medium.catalog_sync(path, good=True),
}


@functools.cache
def _the_hook() -> _Hook:
    return _Hook()


def _address(function: Any) -> int:
    return c.cast(function, c.c_void_p).value or 0


def lighten_sqlite() -> None:
    """Let SQLite do without its locks and its statistics of memory, for the whole process: one thread alone uses it.

    Only where nothing has a database open, and nobody limits its memory: at the beginning of a command.
    """
    library = _library()
    for code in (
        library.sqlite3_shutdown(),
        library.sqlite3_config(_CONFIG_SINGLETHREAD),
        library.sqlite3_config(_CONFIG_MEMSTATUS, c.c_int(False)),
        library.sqlite3_initialize(),
    ):
        assert code == 0, f"SQLite says {code}"


@functools.cache
def _library() -> c.CDLL:
    """The very library that the `sqlite3` module uses: it is loaded already, so its name is in the map of the process."""
    import sqlite3

    assert sqlite3.sqlite_version
    with open("/proc/self/maps", encoding="utf-8") as maps:
        found = [line.split(None, 5)[5].strip() for line in maps if "sqlite3" in line]
    names = [name for name in found if ".so" in name]
    shared = [name for name in names if "libsqlite3" in name]
    return c.CDLL((shared or names)[0])


@contextmanager
def below_sqlite(below: Below) -> Iterator[Below]:
    """Stand below all files that SQLite opens meanwhile and that the medium knows."""
    hook = _the_hook()
    # The salts of logs come from it: so the bytes of a catalog are those that its history demands, too.
    _library().sqlite3_test_control(_PRNG_SEED, c.c_int(1), None)
    hook.below = below
    try:
        yield below
    finally:
        below.reads = False
        hook.below = None
        hook.paths.clear()
