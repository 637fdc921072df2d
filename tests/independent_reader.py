"""Reads a fanout volume by docs/on-disk-format.md alone. Imports nothing of fanout: where the two disagree, one of them is wrong.

python tests/independent_reader.py VOLUME        lists what is committed on the volume
"""

from __future__ import annotations

import struct
import sys
from typing import Any, BinaryIO

import xxhash

BLOCK = struct.Struct("<8s4sHHQQ16s")  # how every block begins
RECORD = struct.Struct("<4xBBBBQ16s16sIHHQII")  # and every record; two more numbers since version 2
MAGIC = bytes.fromhex("89464E4F55540D0A")


class Bad(Exception):
    """Not valid by the format page."""


def u(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def check(data: bytes, kind: bytes, length: int, own: int, store: bytes | None) -> None:
    """What every block has in common."""
    if len(data) < length or data[:8] != MAGIC or data[8:12] != kind:
        raise Bad(f"no {kind.decode()}")
    _, _, _, version, size, place, whose = BLOCK.unpack_from(data)
    if version > 2 or size != length or place != own or store not in (None, whose):
        raise Bad("version, length, place or store")
    if xxhash.xxh3_64_intdigest(data[: length - 8]) != u(data, length - 8, 8):
        raise Bad("sum")


class Volume:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.end = file.seek(0, 2)
        best: dict[str, Any] | None = None
        for at in self.superblock_places():
            try:
                block = self.superblock(at)
            except Bad:
                continue
            if best is None or block["sequence"] > best["sequence"]:
                best = block
        if best is None:
            raise Bad("no superblock")
        self.info = best
        self.records = self.directory()
        self.retired = {n: r["version"] for n, r in self.records.items() if n == r["transaction"]}

    def read(self, at: int, length: int) -> bytes:
        self.file.seek(at)
        return self.file.read(length)

    def superblock_places(self) -> list[int]:
        try:
            first = self.superblock(0)
        except Bad:
            return [self.end // (4096 << n) * (4096 << n) - (4096 << n) for n in range(9)]
        return [0, first["size"] - first["granule"]]

    def superblock(self, at: int) -> dict[str, Any]:
        if at < 0:
            raise Bad("place")
        data = self.read(at, 4096)
        check(data, b"SUPR", 4096, at, None)
        block: dict[str, Any] = {"epoch": u(data, 80, 8), "sequence": u(data, 88, 8)}
        block |= {"size": u(data, 96, 8), "granule": u(data, 104, 4)}
        block |= {"store": data[32:48], "volume": data[48:64], "pool_uuid": data[64:80]}
        block |= {"directory": u(data, 120, 8), "state": u(data, 144, 4)}
        return block | {"pool": data[192 : 192 + u(data, 184, 2)].decode()}

    def directory(self) -> dict[bytes, dict[str, Any]]:
        """The newest record of each aggregate, from the live half."""
        granule, half_bytes = self.info["granule"], self.info["directory"]
        uses: list[tuple[int, dict[int, bytes]]] = []  # of each half: generation, and its blocks
        for half in (0, 1):
            blocks = {}
            whole = self.read(begin := granule + half * half_bytes, half_bytes)
            for index in range(half_bytes // granule):
                at = begin + index * granule
                data = whole[index * granule : (index + 1) * granule]
                try:
                    check(data, b"DIRB", granule, at, self.info["store"])
                except Bad:
                    continue
                if data[48:64] == self.info["volume"] and u(data, 64, 8) <= self.info["epoch"]:
                    blocks[index] = data
            top = max((u(data, 72, 8) for data in blocks.values()), default=0)
            uses.append((top, {n: data for n, data in blocks.items() if u(data, 72, 8) == top}))
        uses.sort(key=lambda use: use[0])
        for top, mine in reversed(uses):
            base = u(next(iter(mine.values())), 96, 4) if mine else 1
            if uses[-1][0] == 1 == top or all(n in mine for n in range(base)):
                return self.replay([mine[n] for n in sorted(mine)])
        raise Bad("no directory")

    def replay(self, blocks: list[bytes]) -> dict[bytes, dict[str, Any]]:
        parts: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
        newest: dict[bytes, dict[str, Any]] = {}
        for data in blocks:
            at = 112
            for _ in range(u(data, 100, 4)):
                record = self.record(data[at : at + u(data, at, 4)], u(data, 12, 2))
                at += u(data, at, 4)
                key = (record["csn"], record["aggregate"], record["op"], record["parts"])
                pieces = parts.setdefault(key, {})
                pieces[record["part"]] = record
                if len(pieces) == record["parts"]:
                    whole = dict(pieces[0], part=0, parts=1)
                    for field in ("spans", "ranges", "deleted"):
                        whole[field] = [x for n in range(len(pieces)) for x in pieces[n][field]]
                    old = newest.get(record["aggregate"])
                    if old is None or old["csn"] <= record["csn"]:
                        newest[record["aggregate"]] = whole
        return newest

    def record(self, data: bytes, version: int) -> dict[str, Any]:
        if xxhash.xxh3_64_intdigest(data[:-8]) != u(data, len(data) - 8, 8):
            raise Bad("record sum")
        op, kind, everything, node, *numbers, spans, ranges = RECORD.unpack_from(data)
        at = (head := 72 if version == 1 else 88) + node
        fixed = ("csn", "aggregate", "transaction", "attempt", "part", "parts", "time")
        made: dict[str, Any] = {"op": op, "kind": kind, "all": everything == 1}
        made |= {"node": data[head:at].decode(), **dict(zip(fixed, numbers, strict=True))}
        made |= {"committed": u(data[:head], 72, 8), "version": u(data[:head], 80, 8)}
        names = ("number", "objects", "offset", "length", "used", "data_start", "data_length")
        fields = [struct.unpack_from("<IIQQQQQ", data, at + 48 * n) for n in range(spans)]
        made["spans"] = [dict(zip(names, values, strict=True)) for values in fields]
        at += 48 * spans
        runs = [struct.unpack_from("<II", data, at + 8 * n) for n in range(ranges)]
        made["ranges"] = [run for run in runs if run[1] < 1 << 31]
        made["deleted"] = [(n, count - (1 << 31)) for n, count in runs if count >= 1 << 31]
        return made

    def span(self, span: dict[str, int]) -> dict[str, Any]:
        """Header and footer of a span of the directory, all its sums checked; its data under "data"."""
        head = self.read(span["offset"], 4096)
        check(head, b"HEAD", 4096, 0, self.info["store"])
        at = 120 + 32 * u(head, 108, 2)
        places = list(struct.iter_unpack("<16sQH6x", head[120:at]))
        if (self.info["volume"], span["offset"]) not in [place[:2] for place in places]:
            raise Bad("misdirected header")
        pools = []
        for _ in range(u(head, 106, 2)):
            pools.append(head[at + 1 : at + 1 + head[at]].decode())
            at += 1 + head[at]
        start = span["offset"] + 4096 + span["data_length"]
        foot = self.read(start, span["offset"] + span["used"] - start)
        check(foot, b"FOOT", len(foot), 0, self.info["store"])
        if foot[48:96] != head[48:96] or u(foot, 104, 8) != u(head, 4088, 8):
            raise Bad("header and footer do not belong together")
        if foot[-24:-16] != b"FNOUTEND" or u(foot, len(foot) - 16, 8) != len(foot):
            raise Bad("trailer")
        fragments, names = u(foot, 116, 4), u(foot, 120, 8)
        block, sums = u(foot, 128, 4), u(foot, 132, 4)
        body = head + self.read(span["offset"] + 4096, span["data_length"])
        sums_at = 144 + 40 * fragments
        if sums != -(-len(body) // block):
            raise Bad("number of sums")
        for n in range(sums):
            piece = body[n * block : (n + 1) * block]
            if xxhash.xxh3_64_intdigest(piece) != u(foot, sums_at + 8 * n, 8):
                raise Bad(f"sum of block {n}")
        made, name_at = [], sums_at + 8 * sums
        for n in range(fragments):
            fields = struct.unpack_from("<QQ16sHHI", foot, 144 + 40 * n)
            name = foot[name_at : name_at + fields[3]]
            name_at += fields[3]
            made.append((name, fields[0], fields[1], fields[2] if fields[4] & 1 else None))
        if name_at != sums_at + 8 * sums + names:
            raise Bad("names")
        return {
            "pools": pools, "required": pools[: u(head, 104, 2)], "places": places,
            "transaction": head[48:64], "aggregate": head[64:80], "number": u(head, 84, 4),
            "data_start": u(head, 88, 8), "length": u(head, 96, 8), "fragments": made,
            "final": bool(u(foot, 112, 4) & 1), "data": body[4096:],
        }  # fmt: skip


def main(path: str) -> None:
    with open(path, "rb") as file:
        volume = Volume(file)
        for record in sorted(volume.records.values(), key=lambda record: record["csn"]):
            print(f"commit {record['csn']} of {record['node']}: {record['aggregate'].hex()}")
            for span in record["spans"]:
                for name, offset, length, _ in volume.span(span)["fragments"]:
                    print(f"  {name!r} {length} bytes at {span['data_start'] + offset}")


if __name__ == "__main__":
    main(sys.argv[1])
