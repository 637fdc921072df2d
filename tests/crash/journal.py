"""What a client sent and what it was told, as JSON lines that leave the client's process at once.

The client writes lines with `Teller`, to a pipe or a file outside of the store; whoever survives the client reads them with `Journal`.
A line is written *before* a transaction begins and *after* its receipt: a client that dies between the two leaves a transaction
that may be there or not, but only as a whole.

    {"begin": ID, "node": …, "kind": …, "objects": [[NAME, LENGTH, DIGEST], …]}     digest: XXH3-128 of the source, by python-xxhash
    {"receipt": ID, "csn": N, "removed": [POOL, …]}
    {"refused": ID}         failed for good, or given up: must not be there
    {"unknown": ID}         nobody knows: may be there
    {"delete": N, "of": [[ID, NAME], …]}     the client asks for these objects of these transactions to be deleted, together
    {"deleted": N}          it was told that they are
    {"repair": true}        from here on pools may hold what the client's receipts did not say
    {"audit": POOL}         from here on the pool may have given up what it held: then a gap says so
    {"say": TEXT}           a word to the harness
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from fanout.types import Receipt


class Fate(Enum):
    """What the client was told."""

    OPEN = "nothing: it died first"
    ACKNOWLEDGED = "a receipt"
    REFUSED = "that it failed"
    UNKNOWN = "that nobody knows"


class SentObject(NamedTuple):
    """An object of a transaction: name, bytes, XXH3-128 of the source."""

    name: bytes
    length: int
    digest: bytes


@dataclass(slots=True)
class Sent:
    """One transaction.

    Attributes:
        transaction: its id.
        node, kind: of the client.
        objects: in the order in which they were sent.
        fate: what the client was told.
        csn: of the receipt.
        removed: pools that the receipt says had left the session.
        repaired: a repair began after the receipt.
    """

    transaction: bytes
    node: str
    kind: str
    objects: tuple[SentObject, ...]
    fate: Fate = Fate.OPEN
    csn: int = 0
    removed: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(slots=True)
class Erasure:
    """A deletion that a client asked for.

    Attributes:
        objects: transaction and name of each.
        done: it was told so: they must be gone. Else all of them may be gone, or none.
    """

    objects: frozenset[tuple[bytes, bytes]]
    done: bool = False


class Teller:
    """The client's side: every call is one line, written at once to the descriptor `fd`. Any thread.

    Args:
        fd: of the journal.
        waits: of the harness's side; `wait` waits for its `go`.
    """

    def __init__(self, fd: int, waits: int = -1) -> None:
        self.fd, self._waits = fd, waits
        self._whole = threading.Lock()  # a long line is not written to a pipe in one piece

    def wait(self) -> bool:
        """Wait until the harness says go. False: it is gone."""
        return bool(os.read(self._waits, 1))

    def begin(
        self,
        transaction: bytes,
        node: str,
        objects: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]],
        *,
        kind: str = "backup",
    ) -> None:
        """A transaction is about to begin with these objects: name and bytes."""
        pairs = objects.items() if hasattr(objects, "items") else objects
        listed = [[name.hex(), len(data), xxhash.xxh3_128_hexdigest(data)] for name, data in pairs]
        self._tell(begin=transaction.hex(), node=node, kind=kind, objects=listed)

    def receipt(self, receipt: Receipt) -> None:
        """It was acknowledged."""
        self._tell(receipt=receipt.transaction, csn=receipt.csn, removed=list(receipt.removed))

    def refused(self, transaction: bytes) -> None:
        """It failed for good, or the client gave it up."""
        self._tell(refused=transaction.hex())

    def unknown(self, transaction: bytes) -> None:
        """Its outcome is unknown."""
        self._tell(unknown=transaction.hex())

    def delete(self, number: int, objects: Iterable[tuple[bytes, bytes]]) -> None:
        """These are about to be deleted in one commit: transaction and name of each. `number`: of the deletion."""
        self._tell(delete=number, of=[[txn.hex(), name.hex()] for txn, name in objects])

    def deleted(self, number: int) -> None:
        """They were."""
        self._tell(deleted=number)

    def repair(self) -> None:
        """A repair is about to begin."""
        self._tell(repair=True)

    def audit(self, pool: str) -> None:
        """An audit that marks what is damaged is about to begin."""
        self._tell(audit=pool)

    def say(self, text: str) -> None:
        """A word to the harness."""
        self._tell(say=text)

    def _tell(self, **line: Any) -> None:
        data = json.dumps(line).encode() + b"\n"
        with self._whole:
            while data:
                data = data[os.write(self.fd, data) :]


_ANSWERS = {"receipt", "refused", "unknown", "deleted"}


@dataclass(slots=True)
class Journal:
    """The survivor's side.

    Attributes:
        sent: by id, in the order in which they began.
        erasures: by number, in the order in which they were asked for.
        audited: pools that may have given up what they held.
        words: what clients said.
        lines: as they came, for `save`.
    """

    sent: dict[bytes, Sent] = field(default_factory=dict)
    erasures: dict[int, Erasure] = field(default_factory=dict)
    audited: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)

    def take(self, data: bytes, *, heard: bool = True) -> None:
        """Take what a client wrote, all of it; a last line without an end was cut off by its death, and says nothing.

        `heard`: whether anybody was there to hear the answers that it got. If not they say nothing, what it asked for does.
        """
        for line in data.splitlines(keepends=True):
            if line.endswith(b"\n") and (heard or not _ANSWERS & json.loads(line).keys()):
                self.lines.append(line)
                self._note(json.loads(line))

    def _note(self, line: dict[str, Any]) -> None:
        if "begin" in line:
            objects = tuple(
                SentObject(bytes.fromhex(name), length, bytes.fromhex(digest))
                for name, length, digest in line["objects"]
            )
            identity = bytes.fromhex(line["begin"])
            self.sent[identity] = Sent(identity, line["node"], line["kind"], objects)
        elif "receipt" in line:
            sent = self.sent[bytes.fromhex(line["receipt"])]
            sent.fate, sent.csn, sent.removed = (
                Fate.ACKNOWLEDGED,
                line["csn"],
                tuple(line["removed"]),
            )
        elif "refused" in line:
            self.sent[bytes.fromhex(line["refused"])].fate = Fate.REFUSED
        elif "unknown" in line:
            self.sent[bytes.fromhex(line["unknown"])].fate = Fate.UNKNOWN
        elif "delete" in line:
            pairs = ((bytes.fromhex(txn), bytes.fromhex(name)) for txn, name in line["of"])
            self.erasures[line["delete"]] = Erasure(frozenset(pairs))
        elif "deleted" in line:
            self.erasures[line["deleted"]].done = True
        elif "repair" in line:
            for sent in self.sent.values():
                sent.repaired = True
        elif "audit" in line:
            self.audited.add(line["audit"])
        elif "say" in line:
            self.words.append(line["say"])

    @property
    def erased(self) -> frozenset[tuple[bytes, bytes]]:
        """What must be gone."""
        done = [one.objects for one in self.erasures.values() if one.done]
        return frozenset(item for objects in done for item in objects)

    def of(self, fate: Fate) -> list[Sent]:
        """The transactions that ended so."""
        return [sent for sent in self.sent.values() if sent.fate is fate]

    def save(self, path: Path) -> None:
        """Write it down for another process."""
        path.write_bytes(b"".join(self.lines))

    @classmethod
    def load(cls, path: Path) -> Journal:
        """What `save` wrote."""
        journal = cls()
        journal.take(path.read_bytes())
        return journal
