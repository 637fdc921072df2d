"""What a session asks of the format: the bytes around the data of a span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fanout.format.blocks import (
    BLOCK,
    UUID,
)
from fanout.format.footer import (
    MAX_SUM_BLOCK,
    MIN_SUM_BLOCK,
    SpanFooter,
    encode_footer,
    footer_size,
)
from fanout.format.header import HEAD_SIZE, SpanHeader, SpanPlace, encode_header, header_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fanout.host import Fragment, ReserveRequest, Span


class SpanFraming:
    """Header and footer for the spans that a session writes; implements `fanout.host.Framing`. Stateless.

    Args:
        store: UUID of the store.
        block_size: bytes of one sum: the engine's slot size.
        volumes: UUIDs of the volumes of a span's placements, in their order.
    """

    def __init__(
        self, store: bytes, *, block_size: int, volumes: Callable[[Span], Sequence[bytes]]
    ) -> None:
        assert len(store) == UUID
        assert MIN_SUM_BLOCK <= block_size <= MAX_SUM_BLOCK
        assert block_size & (block_size - 1) == 0
        self._store, self._block_size, self._volumes = store, block_size, volumes

    def head_size(self) -> int:
        """Bytes before the data: `HEAD_SIZE`, whatever the span."""
        return HEAD_SIZE

    def foot_size(self, fragments: int, name_bytes: int, data_length: int) -> int:
        """Bytes after the data, before padding to the granule. Exact."""
        return footer_size(fragments, name_bytes, data_length, self._block_size)

    def head(self, request: ReserveRequest, number: int, span: Span, data_start: int) -> bytes:
        """The header block of a span.

        Raises:
            InterfaceError: too many places or pools for one header.
        """
        volumes = self._volumes(span)
        return encode_header(
            SpanHeader(
                store=self._store,
                transaction=request.transaction,
                attempt=request.attempt,
                aggregate=request.aggregate,
                number=number,
                data_start=data_start,
                length=span.length,
                required=request.required or (request.primary,),
                places=tuple(
                    SpanPlace(volume, placement.offset, placement.pool)
                    for volume, placement in zip(volumes, span.placements, strict=True)
                ),
                ordinal=request.ordinal,
            )
        )

    def foot(
        self,
        request: ReserveRequest,
        number: int,
        span: Span,
        fragments: Sequence[Fragment],
        sums: bytes,
        data_start: int,
        data_length: int,
        final: bool,
    ) -> bytes:
        """The footer of a span, padded to the largest granule among its places.

        Raises:
            InterfaceError: fragments, sums and data length contradict each other.
        """
        granule = max(BLOCK, *(placement.target.granule for placement in span.placements))
        footer = SpanFooter(
            store=self._store,
            transaction=request.transaction,
            aggregate=request.aggregate,
            attempt=request.attempt,
            number=number,
            data_start=data_start,
            data_length=data_length,
            header_sum=header_sum(self.head(request, number, span, data_start)),
            final=final,
            fragments=tuple(fragments),
            block_size=self._block_size,
            sums=sums,
        )
        return encode_footer(footer, granule)
