/*
 * fo_stream.c: a stream's handle from open to close.  How bytes get into its slots is in fo_fill.c.
 */
#include "fo_stream.h"

#include <errno.h>
#include <string.h>

#define SUMS_UNBOUNDED 65536u /* sums kept for a place of unknown length: 64 GiB in slots of 1 MiB, 512 KiB of memory */

/* ---- one caller at a time ---- */

int fo_stream_enter(fo_stream *s) {
    int rc = fo_engine_enter(s->engine);
    if (rc == 0 && (s->busy || s->leased)) {
        fo_engine_leave(s->engine);
        return -EBUSY;
    }
    if (rc == 0) {
        s->busy = true;
    }
    return rc;
}

/* An abort may have come from another thread while we were filling: then the slot has to go back. */
void fo_stream_drop_slot(fo_stream *s) {
    if (s->slot != FO_NIL && !s->leased) {
        fo_machine_give_back(&s->engine->machine, s->slot);
        s->slot = FO_NIL;
        s->fill = 0;
    }
}

void fo_stream_leave(fo_stream *s) {
    fo_engine *e = s->engine;
    if (e->machine.flows[s->flow].aborted) {
        fo_stream_drop_slot(s);
    }
    fo_engine_kick(e); /* may give the mutex up where it drives the step, and then the handle could go */
    s->busy = false;
    if (e->closing || e->machine.flows[s->flow].aborted) {
        (void)pthread_cond_broadcast(&e->state_cond); /* fo_stream_close may be waiting for us */
    }
    fo_engine_leave(e);
}

/* ---- open and place ---- */

static void restart_sums(fo_stream *s) {
    s->engine->hash->reset64(&s->block);
    s->block_fill = 0;
    s->sums_count = 0;
    s->summing = true;
    s->told = s->whole = 0;
}

static int reserve_sums(fo_stream *s, uint64_t length) {
    uint32_t slot_size = s->engine->machine.cfg.slot_size;
    uint64_t blocks = length == UINT64_MAX ? SUMS_UNBOUNDED : (length + slot_size - 1) / slot_size;
    uint64_t *sums;
    if (blocks <= s->sums_max) {
        return 0;
    }
    if (blocks > UINT32_MAX) {
        return -EINVAL;
    }
    sums = calloc(blocks, sizeof *sums); /* untouched pages cost nothing */
    if (sums == NULL) {
        return -ENOMEM;
    }
    free(s->sums);
    s->sums = sums;
    s->sums_max = (uint32_t)blocks;
    return 0;
}

static fo_stream *stream_new(fo_engine *e, uint32_t count) {
    size_t size = (sizeof(fo_stream) + 63) / 64 * 64;
    fo_stream *s = aligned_alloc(64, size);
    if (s == NULL) {
        return NULL;
    }
    memset(s, 0, sizeof *s);
    s->engine = e;
    s->count = count;
    s->slot = FO_NIL;
    s->placed = UINT64_MAX;
    atomic_init(&s->position, 0);
    e->hash->reset128(&s->object);
    restart_sums(s);
    return s;
}

static uint32_t largest_granule(const fo_machine *m, const uint16_t *targets, uint32_t count) {
    uint32_t granule = 1;
    for (uint32_t i = 0; i < count; i++) {
        granule = m->targets[targets[i]].granule > granule ? m->targets[targets[i]].granule : granule;
    }
    return granule;
}

int fo_stream_open(fo_engine *e, const uint16_t *targets, uint32_t count, uint64_t timeout_ns, fo_stream **out) {
    uint64_t deadline;
    uint32_t flow = 0;
    fo_stream *s;
    int rc = fo_engine_enter(e);
    *out = NULL;
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    /* Closing first: it gives the admissions of others back, and takes the targets away. */
    while ((rc = e->closing ? -ESHUTDOWN : fo_machine_stream_open(&e->machine, targets, count, &flow)) == -EAGAIN) {
        if (fo_engine_wait_slots(e, &deadline) != 0) {
            rc = -ETIMEDOUT;
            break;
        }
    }
    if (rc == 0) {
        s = stream_new(e, count);
        if (s == NULL) {
            fo_machine_stream_close(&e->machine, flow);
            rc = -ENOMEM;
        } else {
            s->flow = flow;
            s->id = e->machine.flows[flow].id;
            s->granule = largest_granule(&e->machine, targets, count);
            fo_engine_ref(e);
            *out = s;
        }
    }
    fo_engine_kick(e);
    fo_engine_leave(e);
    return rc;
}

uint32_t fo_stream_id(const fo_stream *s) { return s->id; }
uint32_t fo_stream_granule(const fo_stream *s) { return s->granule; }
uint64_t fo_stream_position(const fo_stream *s) { return atomic_load_explicit(&s->position, memory_order_relaxed); }

static int check_place(const fo_stream *s, const uint64_t *offsets, uint64_t length) {
    if (s->slot != FO_NIL) {
        return -EBUSY;
    }
    if (length != UINT64_MAX && length % s->granule != 0) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < s->count; i++) {
        if (offsets[i] % s->granule != 0 || offsets[i] > INT64_MAX ||
            (length != UINT64_MAX && length > INT64_MAX - offsets[i])) {
            return -EINVAL;
        }
    }
    return s->sealed ? -EINVAL : 0;
}

int fo_stream_place(fo_stream *s, const uint64_t *offsets, uint64_t length) {
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    rc = check_place(s, offsets, length);
    if (rc == 0) {
        rc = reserve_sums(s, length);
    }
    if (rc == 0) {
        fo_machine_place(&s->engine->machine, s->flow, offsets);
        s->placed = length;
        atomic_store_explicit(&s->position, 0, memory_order_relaxed);
        restart_sums(s);
    }
    fo_stream_leave(s);
    return rc;
}

/* ---- seal, sync, abort, close ---- */

static int seal(fo_stream *s) {
    int rc;
    if (s->sealed) {
        return 0;
    }
    rc = fo_stream_state(s);
    if (rc == -EPIPE) { /* no leg is left: nothing to publish, but sealing is still allowed */
        fo_stream_drop_slot(s);
        rc = 0;
    }
    if (rc == 0) {
        fo_stream_pad_slot(s);
        rc = s->engine->machine.flows[s->flow].aborted ? -ECANCELED : 0; /* while we padded */
    }
    if (rc == 0) {
        s->sealed = true;
        fo_machine_seal(&s->engine->machine, s->flow);
        fo_engine_kick(s->engine);
    }
    return rc;
}

int fo_stream_seal(fo_stream *s, uint64_t timeout_ns) {
    int rc = fo_stream_enter(s);
    (void)timeout_ns; /* as fo_stream_pad */
    if (rc != 0) {
        return rc;
    }
    rc = seal(s);
    fo_stream_leave(s);
    return rc;
}

int fo_stream_sync(fo_stream *s, uint64_t timeout_ns) {
    fo_engine *e = s->engine;
    uint64_t deadline;
    int rc = fo_stream_enter(s);
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    rc = seal(s);
    while (rc == 0 && !fo_machine_flow_settled(&e->machine, s->flow)) {
        rc = fo_engine_wait_state(e, &deadline);
    }
    if (rc == 0 && e->machine.flows[s->flow].aborted) {
        rc = -ECANCELED;
    }
    fo_stream_leave(s);
    return rc;
}

int fo_stream_legs(fo_stream *s, fo_leg *out, uint32_t max) {
    fo_engine *e = s->engine;
    if (atomic_load(&e->dead)) {
        return -EOWNERDEAD;
    }
    (void)pthread_mutex_lock(&e->mutex); /* also while closing: what happened can still be asked */
    for (uint32_t i = 0; i < s->count && i < max; i++) {
        fo_machine_leg(&e->machine, s->flow, i, &out[i]);
    }
    (void)pthread_mutex_unlock(&e->mutex);
    return (int)s->count;
}

int fo_stream_eject(fo_stream *s, uint16_t target) {
    int rc = fo_engine_enter(s->engine); /* policy may decide while a writer is inside */
    if (rc != 0) {
        return rc;
    }
    rc = fo_machine_eject(&s->engine->machine, s->flow, target);
    fo_engine_kick(s->engine);
    fo_engine_leave(s->engine);
    return rc;
}

int fo_stream_keep(fo_stream *s, uint32_t legs) {
    int rc = fo_engine_enter(s->engine);
    if (rc == 0) {
        fo_machine_keep(&s->engine->machine, s->flow, legs);
        fo_engine_leave(s->engine);
    }
    return rc;
}

static void abort_locked(fo_stream *s) {
    fo_machine_abort(&s->engine->machine, s->flow);
    if (!s->busy) {
        fo_stream_drop_slot(s); /* else the writer gives it back when it comes out, or whoever has leased it */
    }
    fo_engine_kick(s->engine);
}

int fo_stream_abort(fo_stream *s) {
    int rc = fo_engine_enter(s->engine);
    if (rc != 0) {
        return rc == -ESHUTDOWN ? 0 : rc; /* closing the engine has aborted it */
    }
    abort_locked(s);
    fo_engine_leave(s->engine);
    return 0;
}

int fo_stream_drained(fo_stream *s, uint64_t timeout_ns) {
    fo_engine *e = s->engine;
    uint64_t deadline;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    while (rc == 0 && !fo_machine_flow_drained(&e->machine, s->flow)) {
        rc = fo_engine_wait_state(e, &deadline);
    }
    fo_engine_leave(e);
    return rc;
}

void fo_stream_end(fo_stream *s) {
    fo_engine *e = s->engine;
    fo_stream_drop_slot(s);
    fo_machine_stream_close(&e->machine, s->flow);
    fo_engine_kick(e);
    fo_engine_unlock_unref(e);
    free(s->sums);
    free(s);
}

void fo_stream_close(fo_stream *s) {
    fo_engine *e;
    if (s == NULL) {
        return;
    }
    e = s->engine;
    if (atomic_load(&e->dead)) {
        return; /* a forked child owns nothing of it */
    }
    (void)pthread_mutex_lock(&e->mutex);
    if (s->busy) { /* the caller inside is sent home first */
        fo_machine_abort(&e->machine, s->flow);
        fo_engine_kick(e);
        while (s->busy) {
            e->state_waiting++;
            (void)pthread_cond_wait(&e->state_cond, &e->mutex);
            e->state_waiting--;
        }
    }
    if (s->leased) {
        s->closed = true;
        fo_machine_abort(&e->machine, s->flow);
        fo_engine_kick(e);
        (void)pthread_mutex_unlock(&e->mutex);
        return;
    }
    fo_stream_end(s);
}
