/*
 * fo_stream.h: a stream's handle, as fo_stream.c, fo_fill.c and fo_lease.c see it.
 *
 * The machine's own record of the stream (fo_flow) knows legs and slots; what is here belongs to the one caller that is inside.
 */
#ifndef FO_STREAM_H
#define FO_STREAM_H

#include "fo_engine.h"

struct fo_stream {
    fo_engine *engine;
    uint32_t flow, id, count, granule;
    bool busy;    /* a caller is inside */
    bool sealed;
    bool leased; /* the rest of the slot is with the caller; nobody is inside */
    bool closed; /* while a lease was out: what is left to do, fo_stream_return does */
    size_t room; /* how much is lent */
    uint32_t slot; /* the one that is being filled, or FO_NIL */
    size_t fill;
    uint64_t placed;          /* bytes that may follow the place */
    _Atomic uint64_t position; /* since the place, padding included */
    fo_hash object, block;
    size_t block_fill;
    uint64_t *sums;
    uint32_t sums_max, sums_count;
    bool summing;   /* until the sums are asked for */
    bool proving;   /* goes on with the blocks after that */
    uint32_t told, whole; /* sums that were given out, and those of whole blocks among them; */
    uint64_t tail;        /* the other one */
};

/* Locks; -EBUSY when another caller is inside or a lease is out. */
int fo_stream_enter(fo_stream *s);
void fo_stream_leave(fo_stream *s);

/* Under the mutex. */

/* May it take more bytes?  0, -ESHUTDOWN, -ECANCELED, -EINVAL (sealed), -EPIPE (no leg is left). */
int fo_stream_state(const fo_stream *s);
/* Not while it is lent: then whoever gives it back drops it. */
void fo_stream_drop_slot(fo_stream *s);
/* A slot into *slot, unless there is one.  Waits; what may go wrong is as for fo_stream_write. */
int fo_stream_take(fo_stream *s, uint64_t *deadline, uint32_t *slot);
/* Hands the slot that is being filled to the engine. */
void fo_stream_publish(fo_stream *s);
/* Pads and publishes the slot that is being filled, if there is one.  Gives the mutex up meanwhile; never waits. */
void fo_stream_pad_slot(fo_stream *s);
/* The handle ends.  Unlocks. */
void fo_stream_end(fo_stream *s);

/* Without the mutex, by the caller that is inside. */

/* The first free byte of the slot. */
unsigned char *fo_stream_memory(const fo_stream *s);
/* n bytes more in the slot: copied from src, or (NULL) there already; hashed in the same pass. */
void fo_stream_fill(fo_stream *s, const unsigned char *src, size_t n, bool raw);

#endif
