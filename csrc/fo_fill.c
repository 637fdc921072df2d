/*
 * fo_fill.c: a client's bytes on their way into slots.
 *
 * The caller's thread does the copy and the hashes, without the mutex; the mutex is held to take a slot and to publish it.  A
 * chunk may have any size: chunks are packed into slots, and a slot is published when it is full (or padded).  How a caller
 * fills a slot itself is in fo_lease.c.
 */
#include "fo_stream.h"

#include <errno.h>
#include <string.h>

/* ---- write ---- */

/* Under the mutex: may this stream go on?  */
int fo_stream_state(const fo_stream *s) {
    const fo_machine *m = &s->engine->machine;
    if (s->engine->closing) {
        return -ESHUTDOWN;
    }
    if (m->flows[s->flow].aborted) {
        return -ECANCELED;
    }
    if (s->sealed) {
        return -EINVAL;
    }
    return fo_machine_flow_alive(m, s->flow) ? 0 : -EPIPE;
}

int fo_stream_take(fo_stream *s, uint64_t *deadline, uint32_t *slot) {
    fo_engine *e = s->engine;
    while (*slot == FO_NIL) {
        int rc = fo_stream_state(s);
        if (rc != 0) {
            return rc;
        }
        if (!fo_machine_event_room(&e->machine, FO_MAX_LEGS, 0)) {
            return -ENOBUFS;
        }
        *slot = fo_machine_take(&e->machine, s->flow);
        if (*slot == FO_NIL) {
            if (e->machine.want_step) { /* a look at a laggard is due earlier than the engine thread will wake */
                fo_engine_kick(e);
            }
            if (fo_engine_wait_slots(e, deadline) != 0) {
                return -ETIMEDOUT;
            }
        }
    }
    return 0;
}

/* Closes the current block of the span, whose sum goes into the footer of whoever lays the span out. */
static void end_block(fo_stream *s) {
    if (s->sums_count < s->sums_max) {
        s->sums[s->sums_count++] = s->engine->hash->digest64(&s->block);
    }
    s->engine->hash->reset64(&s->block);
    s->block_fill = 0;
}

unsigned char *fo_stream_memory(const fo_stream *s) {
    return s->engine->arena.base + (size_t)s->slot * s->engine->machine.cfg.slot_size + s->fill;
}

/* Cut at block boundaries, which are slot boundaries except after a pad or a lease in the middle of a span. */
void fo_stream_fill(fo_stream *s, const unsigned char *src, size_t n, bool raw) {
    const fo_hash_unit *hash = s->engine->hash;
    size_t block_size = s->engine->machine.cfg.slot_size;
    unsigned char *to = fo_stream_memory(s);
    uint64_t position = atomic_load_explicit(&s->position, memory_order_relaxed);
    while (n != 0) {
        bool sums = (s->summing || s->proving) && s->sums_max != 0;
        size_t room = block_size - s->block_fill;
        size_t part = sums && room < n ? room : n;
        if (src != NULL) {
            hash->copy(to, src, part, sums ? &s->block : NULL, raw ? NULL : &s->object);
            src += part;
        } else {
            hash->add(to, part, sums ? &s->block : NULL, raw ? NULL : &s->object);
        }
        to += part;
        s->fill += part;
        position += part;
        n -= part;
        s->block_fill += sums ? part : 0;
        if (s->block_fill == block_size) {
            end_block(s);
        }
    }
    atomic_store_explicit(&s->position, position, memory_order_relaxed);
}

void fo_stream_publish(fo_stream *s) {
    uint64_t position = atomic_load_explicit(&s->position, memory_order_relaxed);
    uint32_t slot = s->slot;
    size_t length = s->fill;
    s->slot = FO_NIL;
    s->fill = 0;
    fo_machine_publish(&s->engine->machine, s->flow, slot, position - length, length);
    fo_engine_kick(s->engine);
}

static int write_all(fo_stream *s, const unsigned char *data, size_t len, bool raw, uint64_t *deadline, size_t *taken) {
    fo_engine *e = s->engine;
    size_t slot_size = e->machine.cfg.slot_size;
    while (*taken < len) {
        int rc = fo_stream_take(s, deadline, &s->slot);
        size_t n = len - *taken < slot_size - s->fill ? len - *taken : slot_size - s->fill;
        if (rc != 0) {
            return rc;
        }
        (void)pthread_mutex_unlock(&e->mutex);
        fo_stream_fill(s, data + *taken, n, raw);
        (void)pthread_mutex_lock(&e->mutex);
        *taken += n;
        rc = fo_stream_state(s);
        if (rc != 0) {
            return rc;
        }
        if (s->fill == slot_size) {
            fo_stream_publish(s);
        }
    }
    return 0;
}

int fo_stream_write(fo_stream *s, const void *data, size_t len, uint32_t flags, uint64_t timeout_ns, size_t *taken,
                    uint32_t *failed) {
    uint64_t position, deadline;
    size_t n = 0;
    int rc = fo_stream_enter(s);
    if (taken != NULL) {
        *taken = 0;
    }
    if (rc != 0) {
        return rc;
    }
    position = fo_stream_position(s);
    rc = fo_stream_state(s);
    if (rc == 0 && len > s->placed - position) {
        rc = -EFBIG;
    }
    if (rc == 0 && len != 0) {
        deadline = fo_engine_after(s->engine, timeout_ns);
        rc = write_all(s, data, len, (flags & FO_WRITE_RAW) != 0, &deadline, &n);
    }
    if (taken != NULL) {
        *taken = n;
    }
    if (failed != NULL) {
        *failed = fo_machine_failed_mask(&s->engine->machine, s->flow);
    }
    fo_stream_leave(s);
    return rc;
}

/* ---- pad, sums, digest ---- */

/* The slot is ours already, so nothing here can wait. */
void fo_stream_pad_slot(fo_stream *s) {
    size_t granule = s->granule;
    size_t rest = s->fill % granule;
    if (s->slot == FO_NIL) {
        return;
    }
    if (rest != 0) {
        (void)pthread_mutex_unlock(&s->engine->mutex);
        memset(fo_stream_memory(s), 0, granule - rest);
        fo_stream_fill(s, NULL, granule - rest, true);
        (void)pthread_mutex_lock(&s->engine->mutex);
    }
    fo_stream_publish(s);
}

int fo_stream_pad(fo_stream *s, uint64_t timeout_ns) {
    int rc = fo_stream_enter(s);
    (void)timeout_ns; /* padding fits the slot that is being filled: nothing to wait for */
    if (rc != 0) {
        return rc;
    }
    rc = fo_stream_state(s);
    if (rc == 0) {
        fo_stream_pad_slot(s);
    }
    fo_stream_leave(s);
    return rc;
}

int fo_stream_digest(fo_stream *s, uint8_t out[FO_DIGEST_SIZE]) {
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    s->engine->hash->digest128(&s->object, out);
    s->engine->hash->reset128(&s->object);
    fo_stream_leave(s);
    return 0;
}

_Static_assert(sizeof(fo_hash) == FO_UNFINISHED_SIZE, "an unfinished digest is the state of the hash");

/* An XXH3 state points nowhere: a copy is a state of its own. */
int fo_stream_suspend(fo_stream *s, fo_unfinished *out) {
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    memcpy(out->state, &s->object, sizeof s->object);
    s->engine->hash->reset128(&s->object);
    fo_stream_leave(s);
    return 0;
}

int fo_stream_resume(fo_stream *s, const fo_unfinished *from) {
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    memcpy(&s->object, from->state, sizeof s->object);
    fo_stream_leave(s);
    return 0;
}

/* Sums of so many blocks: the whole ones, and perhaps one that is not. */
static int give_sums(const fo_stream *s, uint32_t count, uint32_t whole, uint64_t partial, uint64_t *out, uint32_t max) {
    for (uint32_t i = 0; i < count && i < max; i++) {
        out[i] = i < whole ? s->sums[i] : partial;
    }
    return (int)count;
}

int fo_stream_sums(fo_stream *s, uint64_t *out, uint32_t max) {
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    if (s->summing) {
        s->whole = s->sums_count;
        s->told = s->whole + (s->block_fill != 0 && s->whole < s->sums_max ? 1 : 0);
        s->tail = s->engine->hash->digest64(&s->block); /* the block itself may go on */
        s->summing = false;
    }
    rc = give_sums(s, s->told, s->whole, s->tail, out, max);
    fo_stream_leave(s);
    return rc;
}

int fo_stream_prove(fo_stream *s) {
    int rc = fo_stream_enter(s);
    if (rc == 0) {
        s->proving = true;
        s->sums_max = 0; /* whatever was summed before this is not to be had */
        fo_stream_leave(s);
    }
    return rc;
}

int fo_stream_media(fo_stream *s, uint64_t *out, uint32_t max) {
    uint64_t blocks, size = s->engine->machine.cfg.slot_size;
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    blocks = (fo_stream_position(s) + size - 1) / size;
    if (!s->proving || (blocks != 0 && s->sums_max == 0)) {
        rc = -EINVAL;
    } else if (blocks > s->sums_max) {
        rc = -EFBIG;
    } else {
        rc = give_sums(s, (uint32_t)blocks, s->sums_count, s->engine->hash->digest64(&s->block), out, max);
    }
    fo_stream_leave(s);
    return rc;
}
