"""A volume's directory in memory: which half is live, where the next block goes, what counts. Pure: it says what to write.

The rules are those of docs/on-disk-format.md, "Directory". The life of one append::

    READY ── prepare(records) ──> PREPARED ── written() ──> READY      the blocks are complete, not yet durable
                                     └─────── lost() ─────> LOST       nobody knows what is on the medium: load again

Invariants:

1. A block that may be durable is never written again; it is always the next index of the live half, or the other half.
2. The other half is written only when the live half's checkpoint is known to be durable (`flushed`).
3. Whatever has been promised fits: `promise` refuses when a checkpoint of all that counts, with all promises kept, would not
   leave room to append.
"""

from __future__ import annotations

import enum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fanout import format as fmt
from fanout.errors import InterfaceError, VolumeError, VolumeForeign, VolumeFull, VolumeTorn
from fanout.format import BlockPlace, DirectoryRecord, Op
from fanout.records import Records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fanout.format import RecordHead, RecordPart, StoredSpan, Superblock


# Blocks that a medium may refuse to read; and as many as one half has. Whatever refuses more is failing, and each may take it seconds.
MOST_REFUSED = 64
# Generations that such blocks may be of, and nobody sees: they may be read another day.
UNSEEN = 1 << 32


class Half(Protocol):
    """The bytes of one half: in memory, or read piece by piece, so that a large directory need not fit memory."""

    def __getitem__(self, part: slice, /) -> bytes:
        """The bytes from `part.start` to `part.stop`; may raise `BlockRefused`."""


class BlockRefused(Exception):
    """The medium refuses to read a block, and gives others; why is its cause."""


class Write(NamedTuple):
    """Whole granules to be written at an offset of the volume."""

    offset: int
    data: bytes


class CheckpointUnsafe(InterfaceError):
    """A checkpoint is due, and the live half's own is not known to be durable: flush, call `flushed`, prepare again."""


class _Phase(enum.Enum):
    READY = 1
    PREPARED = 2
    LOST = 3


class _Plan(NamedTuple):
    """What becomes true when the prepared blocks are complete."""

    half: int
    generation: int
    base_blocks: int
    next_number: int
    sequence: int
    checkpoint: bool


class Directory:
    """The directory of one volume. One thread at a time: the volume holds a lock.

    Args:
        superblock: geometry and identity.
        path: names the volume in errors.

    Attributes:
        torn: blocks that were written are damaged or missing: a crash tore them before they were durable, or they have rotten since.
        holed: such blocks lie among those that count, or may. A checkpoint ends that.
        complete: it has a whole checkpoint. Else this is what is left of it.
        refused: offsets on the volume of blocks that the medium refused to read, and that were not written since.
    """

    def __init__(self, superblock: Superblock, *, path: str) -> None:
        self.path, self.torn, self.holed, self.complete = path, False, False, True
        self.refused: set[int] = set()
        self._stuck = False  # some of the live half were refused: nothing is appended to it
        self._superblock = superblock
        self._room = fmt.record_room(superblock.granule)
        self._blocks = superblock.directory_bytes // superblock.granule
        # An eighth stays for appending, so that a full directory is not rewritten at every commit.
        self._capacity = (self._blocks - max(1, self._blocks // 8)) * self._room
        self._span_charge = self._charge(fmt.size_of(1, 0, 64))
        self._records = Records()
        self._charged = 0
        self._promises: dict[int, int] = {}
        self._promised = 0
        self._forget: set[bytes] = set()
        self._live = _Plan(0, 0, 0, 0, 0, checkpoint=False)
        self._top_generation = 0
        self._base_durable = True
        self._phase = _Phase.READY
        self._plan: _Plan | None = None
        self._added: list[tuple[DirectoryRecord, bytes]] = []  # with it: each with its bytes
        self.last_csn = 0

    # ---- loading -------------------------------------------------------------------------------

    @classmethod
    def load(
        cls, superblock: Superblock, halves: Sequence[Half], *, path: str, vouched: bool = False
    ) -> Directory:
        """From the bytes of both halves, each read once in order, and the live one once more where it holds records.

        Args:
            superblock: of the volume.
            halves: their bytes.
            path: names the volume in errors.
            vouched: a catalog that is as new as the volume can say what a directory without a complete checkpoint has lost.

        Raises:
            VolumeTorn: neither half holds a complete checkpoint, or a block is of an epoch that no superblock knows.
            VolumeError: the medium refuses too many blocks.
        """
        made = cls(superblock, path=path)
        found = [made._scan(half, data) for half, data in enumerate(halves)]
        everything = [place for places in found for place in places.values()]
        made._top_generation = max((place.generation for place in everything), default=1)
        live, generation, base_blocks = made._choose(found, vouched=vouched)
        mine = sorted(n for n, place in found[live].items() if place.generation == generation)
        next_number = mine[-1] + 1 if mine else made._blocks  # nothing is appended to nothing
        made.holed = next_number > len(mine) or made._top_generation > generation
        if made.refused:
            made._mind_refused(live)
        made.torn |= made.holed
        sequence = 1 + max((place.sequence for place in everything), default=0)
        if max(made._top_generation, sequence) > fmt.MAX_COUNTER - superblock.directory_bytes:
            raise VolumeTorn(path, "the counters of its directory are at their end: damaged")
        made._live = _Plan(live, generation, base_blocks, next_number, sequence, checkpoint=False)
        for head, data in fmt.join_parts(made._parts(live, halves[live], mine)):
            made._apply(*made._fitting(head, data))
        # Whether the base that was found is durable: it was read from the medium, but perhaps out of a cache that a
        # power cut would empty. The caller flushes once after opening, before it writes anything.
        made._base_durable = False
        return made

    def _scan(self, half: int, data: Half) -> dict[int, BlockPlace]:
        """The valid blocks of a half."""
        found = {}
        for number in range(self._blocks):
            try:
                block = self._bytes(data, number)
            except BlockRefused as error:
                self._refuse(half, number, error)
                continue
            if block[:8] != fmt.MAGIC:
                continue  # never written: most of a young volume's directory
            try:
                place = fmt.decode_place(
                    block,
                    self._superblock,
                    path=self.path,
                    half=half,
                    number=number,
                )
            except VolumeTorn:
                self.torn = True
                continue
            except VolumeForeign:
                continue  # left by an earlier use of the medium
            if place.epoch > self._superblock.epoch:
                raise VolumeTorn(
                    self.path,
                    f"its directory is of epoch {place.epoch}, its superblocks know only "
                    f"{self._superblock.epoch}: a superblock was restored from the past",
                )
            found[number] = place
        return found

    def _refuse(self, half: int, number: int, error: BlockRefused) -> None:
        self.refused.add(self._superblock.half_offset(half) + number * self._superblock.granule)
        most = min(MOST_REFUSED, self._blocks)
        if len(self.refused) > most:
            message = f"cannot be read: more than {most} blocks of its directory are refused ({error.__cause__})"
            raise VolumeError(self.path, message) from error.__cause__

    def _mind_refused(self, live: int) -> None:
        """What was there counts, as far as anybody knows: in the live half, or where a newer use of the other one would begin."""
        begin = self._superblock.half_offset(live)
        self._stuck = any(
            begin <= at < begin + self._superblock.directory_bytes for at in self.refused
        )
        self.holed |= self._stuck or self._superblock.half_offset(1 - live) in self.refused
        self._top_generation += UNSEEN

    def _bytes(self, data: Half, number: int) -> bytes:
        granule = self._superblock.granule
        return data[number * granule : (number + 1) * granule]

    def _choose(
        self, found: Sequence[Mapping[int, BlockPlace]], *, vouched: bool
    ) -> tuple[int, int, int]:
        """Half, generation and base blocks of the use that counts: the newest with a complete base, or else what is left of the newest."""
        bases = [self._base(places) for places in found]
        live = max((0, 1), key=lambda half: bases[half][0])
        if bases[live][0]:
            return live, *bases[live]
        self.complete = False
        for half, places in enumerate(found):
            for place in places.values():
                # The first base was empty. What was in a later one the catalog can say.
                if place.generation == self._top_generation and (vouched or place.generation == 1):
                    return half, place.generation, place.base_blocks
        if vouched:
            return 0, 0, 0
        raise VolumeTorn(self.path, "no complete directory: both halves are damaged")

    @staticmethod
    def _base(places: Mapping[int, BlockPlace]) -> tuple[int, int]:
        """(generation, base blocks) of a half if its highest generation has a complete base, else (0, 0)."""
        top = max((place.generation for place in places.values()), default=0)
        mine = {number: place for number, place in places.items() if place.generation == top}
        sizes = {place.base_blocks for place in mine.values()}
        if len(sizes) != 1:
            return 0, 0
        base_blocks = sizes.pop()
        return (top, base_blocks) if all(n in mine for n in range(base_blocks)) else (0, 0)

    def _parts(self, half: int, data: Half, numbers: Iterable[int]) -> Iterator[RecordPart]:
        for number in numbers:
            block = fmt.decode_block(
                self._bytes(data, number),
                self._superblock,
                path=self.path,
                half=half,
                number=number,
            )
            yield from block.parts

    def _fitting(self, head: RecordHead, data: bytes) -> tuple[RecordHead, bytes]:
        """An encoded record that was read. One of an older version of the format may have become too long for blocks: it is cut anew."""
        if len(data) > self._room and max(map(len, fmt.split_parts(data))) > self._room:
            data = b"".join(fmt.encode_record(fmt.decode_record(data), self._room))
            head = fmt.head_of(data)
        return head, data

    @staticmethod
    def first_block(superblock: Superblock) -> Write:
        """The empty checkpoint with which a volume begins."""
        place = BlockPlace(superblock.epoch, 1, 1, 0, 0, 1)
        return Write(superblock.half_offset(0), fmt.encode_block(superblock, place, ()))

    # ---- questions -----------------------------------------------------------------------------

    @property
    def records(self) -> Mapping[bytes, DirectoryRecord]:
        """The newest record of each aggregate, deletes included."""
        return self._records

    def heads(self) -> Iterator[RecordHead]:
        """The heads of these records."""
        return self._records.heads()

    def held_csns(self) -> dict[bytes, int]:
        """Every aggregate that is on the volume, with the commit of its record."""
        return {head.aggregate: head.csn for head in self._records.heads() if head.spans}

    def names(self, aggregate: bytes) -> bool:
        """Whether anything of an aggregate is on the volume."""
        head = self._records.head(aggregate)
        return head is not None and bool(head.spans)

    def deletes(self) -> list[bytes]:
        """Aggregates that a record says were deleted."""
        return [head.aggregate for head in self._records.deletes()]

    def spans(self) -> Iterator[StoredSpan]:
        """All spans on the volume."""
        return (span for _, data in self._records.encoded() for span in fmt.spans_of(data))

    def retirements(self) -> list[DirectoryRecord]:
        """The records of volumes that were given up."""
        return [self._records[head.aggregate] for head in self._records.deletes() if head.retires]

    @property
    def live_half(self) -> int:
        """Which half counts."""
        return self._live.half

    @property
    def extent(self) -> tuple[int, int]:
        """Where the live half's blocks begin and end on the volume, in bytes."""
        begin = self._superblock.half_offset(self._live.half)
        return begin, begin + self._live.next_number * self._superblock.granule

    def readable(self) -> Iterator[tuple[int, int]]:
        """The same without the blocks that were refused, in pieces."""
        begin, end = self.extent
        for at in sorted(self.refused):
            if begin <= at < end:
                yield begin, at
                begin = at + self._superblock.granule
        yield begin, end

    @property
    def full(self) -> bool:
        """Whether not even one more span of one more aggregate can be promised."""
        return self._charged + self._promised + self._span_charge > self._capacity

    @property
    def blocks_left(self) -> int:
        """Blocks that can be appended before a checkpoint is due."""
        return 0 if self._stuck else self._blocks - self._live.next_number

    # ---- room ----------------------------------------------------------------------------------

    def _charge(self, size: int) -> int:
        """Bytes of a checkpoint that a record can cost at most, `size` bytes long in one part.

        Records of up to a quarter of a block fill their blocks to three quarters at least; larger ones are counted as whole
        blocks.
        """
        if size <= self._room // 4:
            return -(-size * 4 // 3)
        return fmt.round_up(size * 9 // 8, self._room)

    def growth(self, record: DirectoryRecord) -> int:
        """Bytes that a record may cost more than the one that it replaces; negative: less."""
        old = self._records.head(record.aggregate)
        return self._charge(fmt.record_size(record)) - (self._charge(old.size) if old else 0)

    @property
    def spare_bytes(self) -> int:
        """Room for records that say more of aggregates that are here: they may have half of what stays for appending."""
        appending = self._blocks * self._room - self._capacity
        return self._capacity + appending // 2 - self._charged - self._promised

    def promise(self, offset: int) -> bool:
        """Keep room for the record of the span at `offset`. False: the directory is full, and so is the volume."""
        if self.full:
            return False
        assert offset not in self._promises
        self._promises[offset] = self._span_charge
        self._promised += self._span_charge
        return True

    def unpromise(self, offset: int) -> None:
        """The span at `offset` will not be committed (or its record is here): the room is free again."""
        self._promised -= self._promises.pop(offset, 0)

    def _keep(self, spans: Iterable[StoredSpan]) -> None:
        """Promises that are kept: the records of these spans are here."""
        for span in spans:
            self.unpromise(span.offset)

    def inherit(self, other: Directory) -> None:
        """Take over what an earlier load of the same directory had promised."""
        for offset, charge in other._promises.items():
            self._promises[offset] = charge
            self._promised += charge
        self._keep(self.spans())
        self._forget |= other._forget

    def forget_deletes(self, aggregates: Iterable[bytes]) -> None:
        """Their deletes are durable on every volume that held them: the next checkpoint drops the records."""
        self._forget.update(self._records.keys() & set(aggregates))

    # ---- writing -------------------------------------------------------------------------------

    def prepare(
        self, records: Sequence[DirectoryRecord], *, epoch: int, anew: bool = False
    ) -> list[Write]:
        """Blocks that hold these records, to be written in any order; a checkpoint if the half is full.

        Args:
            records: in the order of their commits.
            epoch: of the present opening.
            anew: a checkpoint in any case.

        Raises:
            CheckpointUnsafe: a checkpoint is due; flush first. Nothing has changed.
            InterfaceError: the last append was neither `written` nor `lost`.
            VolumeFull: not even a checkpoint has room for them.
        """
        if self._phase is not _Phase.READY:
            raise InterfaceError(f"directory of {self.path}: prepare in state {self._phase.name}")
        if not (records or anew):
            return []
        encoded = [fmt.encode_record(record, self._room) for record in records]
        blocks = fmt.pack_blocks(chain.from_iterable(encoded), self._room)
        added = list(zip(records, map(b"".join, encoded), strict=True))
        if len(blocks) <= self.blocks_left and not anew:
            writes = self._append(blocks, epoch)
        else:
            writes = self._checkpoint([data for _, data in added], epoch)
        self._added = added
        return writes

    def _append(self, blocks: list[list[bytes]], epoch: int) -> list[Write]:
        live = self._live
        plan = _Plan(
            live.half,
            live.generation,
            live.base_blocks,
            live.next_number + len(blocks),
            live.sequence + len(blocks),
            checkpoint=False,
        )
        return self._planned(plan, blocks, live.next_number, live.sequence, epoch)

    def _checkpoint(self, added: Iterable[bytes], epoch: int) -> list[Write]:
        if not self._base_durable:
            raise CheckpointUnsafe(
                f"directory of {self.path}: flush before the next checkpoint (invariant 2)"
            )
        after = self._records.copy()
        for data in added:
            after.put(fmt.head_of(data), data)
        newest = max((head.csn for head in after.heads()), default=0)
        parts = [
            part
            for head, data in after.encoded()
            if self._counts(head, newest)
            for part in fmt.split_parts(data)
        ]
        parts.sort(key=len, reverse=True)  # large parts first: small ones fill their blocks
        blocks = fmt.pack_blocks(parts, self._room) or [[]]
        if len(blocks) > self._blocks:
            raise VolumeFull(
                self.path,
                f"its directory is full: {len(after)} aggregates need {len(blocks)} blocks of "
                f"{self._blocks}; move some away, or make a volume with a larger directory",
            )
        plan = _Plan(
            half=1 - self._live.half,
            generation=self._top_generation + 1,
            base_blocks=len(blocks),
            next_number=len(blocks),
            sequence=self._live.sequence + len(blocks),
            checkpoint=True,
        )
        return self._planned(plan, blocks, 0, self._live.sequence, epoch)

    def _counts(self, record: RecordHead, newest: int) -> bool:
        """Whether a checkpoint must keep the record. The newest stays in any case: a catalog from before it must be recognised."""
        wanted = record.op == Op.DELETE and record.aggregate not in self._forget
        return bool(record.spans) or wanted or record.csn == newest

    def _planned(
        self, plan: _Plan, blocks: list[list[bytes]], number: int, sequence: int, epoch: int
    ) -> list[Write]:
        made = []
        for step, parts in enumerate(blocks):
            place = BlockPlace(
                epoch, plan.generation, sequence + step, plan.half, number + step, plan.base_blocks
            )
            offset = self._superblock.half_offset(plan.half)
            offset += place.number * self._superblock.granule
            made.append(Write(offset, fmt.encode_block(self._superblock, place, parts)))
        self._plan, self._phase = plan, _Phase.PREPARED
        return made

    def written(self) -> None:
        """All prepared blocks are complete (not yet durable): from now on they count."""
        plan, added = self._plan, self._added
        if plan is None or self._phase is not _Phase.PREPARED:
            raise InterfaceError(f"directory of {self.path}: nothing was prepared")
        for record, data in added:
            if self._apply(fmt.head_of(data), data):
                self._keep(record.spans)
        if plan.checkpoint:
            self._drop_what_does_not_count()
            self._base_durable = self.holed = self._stuck = False
            self.complete = True
        self._top_generation = max(self._top_generation, plan.generation)
        self._live = plan
        begin, end = self.extent
        self.refused = {at for at in self.refused if not begin <= at < end}
        self._plan, self._added, self._phase = None, [], _Phase.READY

    def lost(self) -> None:
        """A prepared block failed to be written, or a flush failed: load the directory again before the next append."""
        self._plan, self._added, self._phase = None, [], _Phase.LOST

    def flushed(self) -> None:
        """A flush that was issued after the last `written` succeeded."""
        if self._phase is _Phase.READY:
            self._base_durable = True

    def _apply(self, head: RecordHead, data: bytes) -> bool:
        """Let an encoded record replace an older one of its aggregate. False: the older one is newer."""
        old = self._records.put(head, data)
        if old is not None and old.csn > head.csn:
            return False
        self._charged += self._charge(head.size) - (self._charge(old.size) if old else 0)
        self.last_csn = max(self.last_csn, head.csn)
        return True

    def _drop_what_does_not_count(self) -> None:
        newest = max((head.csn for head in self._records.heads()), default=0)
        for head in self._records.heads():
            if not self._counts(head, newest):
                self._forget.discard(head.aggregate)
                self._records.drop(head.aggregate)
                self._charged -= self._charge(head.size)


def newest_commit(superblock: Superblock, halves: Sequence[Half], *, path: str) -> int:
    """A commit that a directory has heard of, the last one as a rule; 0: nothing can be said.

    Reads a dozen blocks, where loading it reads all. Its writer may go on meanwhile.
    """
    blocks = superblock.directory_bytes // superblock.granule

    def bytes_of(half: int, number: int) -> bytes:
        return halves[half][number * superblock.granule : (number + 1) * superblock.granule]

    def generation(half: int, number: int) -> int:
        try:
            block = bytes_of(half, number)
            return fmt.decode_place(
                block, superblock, path=path, half=half, number=number
            ).generation
        except (VolumeTorn, VolumeForeign):
            return 0

    live = max((0, 1), key=lambda half: generation(half, 0))
    mine = generation(live, 0)
    there, end = 0, blocks  # the last block of this generation is in between
    while end - there > 1:
        middle = (there + end) // 2
        if generation(live, middle) == mine:
            there = middle
        else:
            end = middle
    try:
        last = fmt.decode_block(
            bytes_of(live, there), superblock, path=path, half=live, number=there
        )
    except (VolumeTorn, VolumeForeign):
        return 0
    return max((part.head.csn for part in last.parts), default=0)
