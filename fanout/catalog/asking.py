"""A catalog that is open for questions: one connection, which any thread may use.

Every question is one short read transaction whose answer is fetched before it is handed out, so that no consumer, however slow, keeps
the write-ahead log from being folded into the database. Questions of one reader wait for each other.

Answers that may be long are packed into one JSON row by the database: the sqlite3 module gives up the GIL at every row, which
beside a busy Python thread costs up to 5 ms each (4,096 members: 20 s row by row, 15 ms packed).
"""

from __future__ import annotations

import json
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

from fanout.catalog import values
from fanout.catalog.connection import (
    INHERITED,
    SCHEMA_VERSION,
    check_identity,
    connect,
    imitate,
    refuse_links,
    translated,
)
from fanout.errors import CatalogVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

T = TypeVar("T")

# Whether object `o` is active: no newer version of its name.
ACTIVE = """NOT EXISTS (
    SELECT 1 FROM object AS n
    WHERE n.node = o.node AND n.kind = o.kind AND n.name = o.name AND n.id > o.id)"""

# The objects that a copy row or gap row's set names; NULL names all of the aggregate's.
IN_SET = """({column} IS NULL OR EXISTS (
    SELECT 1 FROM json_each({column}) AS r
    WHERE o.id - g.first_object >= json_extract(r.value, '$[0]')
      AND o.id - g.first_object < json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')))"""


_open: WeakSet[Questions] = WeakSet()  # of this process


def _leave_to_the_parent() -> None:
    INHERITED.update(os.path.realpath(one.path) for one in _open)
    _open.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


class Questions:
    """How a catalog is asked.

    Args:
        path: of the database; must exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._lock = threading.RLock()
        refuse_links(self.path)
        with translated(self.path):
            self._reads = connect(self.path, read_only=True)
            try:
                self.schema = check_identity(self._reads, self.path)
                if self.schema != SCHEMA_VERSION:
                    imitate(self._reads, self.schema)
                self._load_identity()
                _open.add(self)
            except BaseException:
                self._reads.close()
                raise

    def _load_identity(self) -> None:
        rows = self._reads.execute("SELECT uuid, created FROM store").fetchall()
        if len(rows) != 1:
            raise CatalogVersion(self.path, "not a catalog, or a damaged one: it names no store")
        ((self.store_id, self._created),) = self._made(values.identity, rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close; idempotent."""
        with self._lock:
            self._reads.close()
            _open.discard(self)

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One question, one snapshot, the whole answer."""
        with self._lock, translated(self.path):
            return self._reads.execute(sql, parameters).fetchall()

    @contextmanager
    def _moment(self) -> Iterator[None]:
        """Several questions that one snapshot answers."""
        with (
            self._lock,
            translated(self.path),
            self._reads,
        ):  # whose end no interrupt can keep from coming
            self._reads.execute("BEGIN")
            yield

    def _packed(self, columns: str, sql: str, parameters: Sequence[Any] = ()) -> list[list[Any]]:
        """Like `_rows` for long answers: one row comes back, in no particular order."""
        packed = f"SELECT json_group_array(json_array({columns})) FROM ({sql})"
        ((rows,),) = self._made(lambda text: (json.loads(text),), self._rows(packed, parameters))
        answer: list[list[Any]] = rows
        return answer

    def _columns(self, columns: str, sql: str, parameters: Sequence[Any] = ()) -> list[list[Any]]:
        """Like `_packed`, column by column: for answers of so many rows that nobody should look at each."""
        packed = ", ".join(f"json_group_array({column})" for column in columns.split(", "))
        ((*texts,),) = self._rows(f"SELECT {packed} FROM ({sql})", parameters)
        return self._made(json.loads, [(text,) for text in texts])

    def _made(self, make: Callable[..., T], rows: Iterable[Sequence[Any]]) -> list[T]:
        """Rows as values. A row that cannot be one is damage: the schema's checks hold for what is written, not for what is read."""
        try:
            return [make(*row) for row in rows]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise CatalogVersion(
                self.path, f"damaged: it holds a row that cannot be ({error!s:.200})"
            ) from error
