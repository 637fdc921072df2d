/*
 * fo_lease.c: a slot lent to the caller, who fills it in place.
 *
 * A lent slot belongs to nobody else: it stays FILLING in the machine's books, and no abort, close of the stream or close of the
 * engine gives it back before the caller does.  That is what makes it safe to let a kernel, a library or another thread write
 * into it: they can be late, but never in another's bytes.
 */
#include "fo_stream.h"

#include <errno.h>
#include <string.h>

/* Too little is left in the slot: its whole granules go on their way, and the bytes behind them begin a new slot.  They have
 * been hashed already.  The new slot is had first, so that a wait that ends by its deadline changes nothing. */
static int roll_over(fo_stream *s, uint64_t *deadline) {
    fo_engine *e = s->engine;
    size_t tail = s->fill % s->granule, whole = s->fill - tail;
    uint64_t from = fo_stream_position(s) - s->fill;
    uint32_t full = s->slot, next = FO_NIL;
    const unsigned char *rest = fo_stream_memory(s) - tail;
    int rc = fo_stream_take(s, deadline, &next);
    if (rc != 0) {
        return rc;
    }
    FO_ASSERT(whole != 0); /* else the slot would have had room */
    s->slot = next;
    s->fill = 0;
    memcpy(fo_stream_memory(s), rest, tail);
    s->fill = tail;
    fo_machine_publish(&e->machine, s->flow, full, from, whole);
    return 0;
}

static int make_room(fo_stream *s, size_t min, uint64_t *deadline) {
    size_t slot_size = s->engine->machine.cfg.slot_size;
    if (min > s->placed - fo_stream_position(s)) {
        return -EFBIG;
    }
    if (min > slot_size - s->fill % s->granule) {
        return -EINVAL;
    }
    if (s->slot != FO_NIL && slot_size - s->fill < min) {
        return roll_over(s, deadline);
    }
    return fo_stream_take(s, deadline, &s->slot);
}

int fo_stream_lease(fo_stream *s, size_t min, uint64_t timeout_ns, void **data, size_t *room) {
    uint64_t deadline;
    int rc = fo_stream_enter(s);
    *data = NULL;
    *room = 0;
    if (rc != 0) {
        return rc;
    }
    rc = fo_stream_state(s);
    if (rc == 0) {
        deadline = fo_engine_after(s->engine, timeout_ns);
        rc = make_room(s, min != 0 ? min : 1, &deadline);
    }
    if (rc == 0) {
        uint64_t left = s->placed - fo_stream_position(s);
        size_t rest = s->engine->machine.cfg.slot_size - s->fill;
        s->room = left < rest ? (size_t)left : rest;
        s->leased = true;
        *data = fo_stream_memory(s);
        *room = s->room;
    }
    fo_stream_leave(s);
    return rc;
}

/* Unlike every other call also while the engine closes: what was lent can always be given back. */
static int enter_lease(fo_stream *s) {
    fo_engine *e = s->engine;
    if (atomic_load(&e->dead)) {
        return -EOWNERDEAD;
    }
    (void)pthread_mutex_lock(&e->mutex);
    if (!s->leased) {
        (void)pthread_mutex_unlock(&e->mutex);
        return -EINVAL;
    }
    return 0;
}

/* A slot without a byte in it is not worth keeping, and `place` asks for a slot's end. */
static void drop_unused(fo_stream *s) {
    if (s->fill == 0 || s->engine->machine.flows[s->flow].aborted) {
        fo_stream_drop_slot(s);
    }
}

static int take_in_place(fo_stream *s, size_t len, bool raw) {
    fo_engine *e = s->engine;
    int rc = fo_stream_state(s);
    if (rc != 0 || len == 0) {
        return rc;
    }
    (void)pthread_mutex_unlock(&e->mutex);
    fo_stream_fill(s, NULL, len, raw);
    (void)pthread_mutex_lock(&e->mutex);
    rc = fo_stream_state(s);
    if (rc == 0 && s->fill == e->machine.cfg.slot_size) {
        fo_stream_publish(s);
    }
    return rc;
}

int fo_stream_commit(fo_stream *s, size_t len, uint32_t flags, uint32_t *failed) {
    fo_engine *e = s->engine;
    int rc = enter_lease(s);
    if (rc != 0) {
        return rc;
    }
    if (s->closed || len > s->room) {
        (void)pthread_mutex_unlock(&e->mutex);
        return -EINVAL;
    }
    fo_engine_ref(e);
    s->leased = false;
    s->busy = true;
    rc = take_in_place(s, len, (flags & FO_WRITE_RAW) != 0);
    drop_unused(s);
    if (failed != NULL) {
        *failed = fo_machine_failed_mask(&e->machine, s->flow);
    }
    fo_stream_leave(s);
    return rc;
}

void fo_stream_return(fo_stream *s) {
    fo_engine *e = s->engine;
    if (enter_lease(s) != 0) {
        return;
    }
    s->leased = false;
    if (s->closed) {
        fo_stream_end(s);
        return;
    }
    drop_unused(s);
    fo_engine_kick(e);
    (void)pthread_mutex_unlock(&e->mutex);
}
