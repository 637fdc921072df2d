/*
 * fo_request.c: requests that are not part of a stream, through the control slots.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>

static void not_submitted(fo_request *r, int err) {
    memset(&r->outcome, 0, sizeof r->outcome);
    r->outcome.code = FO_OUTCOME_NOT_SUBMITTED;
    r->outcome.offset = r->offset;
    r->outcome.length = r->length;
    r->outcome.phase = r->kind;
    r->outcome.err = err;
    r->outcome.cls = (uint8_t)fo_classify(err);
}

static bool well_formed(const fo_engine *e, const fo_request *r) {
    switch (r->kind) {
    case FO_OP_WRITE:
        return r->length <= e->machine.cfg.slot_size && (r->data != NULL || r->length == 0);
    case FO_OP_READ:
        return r->length <= e->machine.cfg.slot_size;
    case FO_OP_FLUSH:
    case FO_OP_ALLOCATE:
    case FO_OP_TRUNCATE:
    case FO_OP_DIRSYNC:
        return true;
    default:
        return false;
    }
}

static unsigned char *slot_memory(const fo_engine *e, uint32_t slot) {
    return e->arena.base + (size_t)slot * e->machine.cfg.slot_size;
}

/* Starts request r on a control slot, or ends it at once.  True: it is under way, on *slot. */
static bool start(fo_engine *e, fo_request *r, uint32_t *slot) {
    if (!well_formed(e, r)) {
        not_submitted(r, EINVAL);
        return false;
    }
    if (r->length == 0 && (r->kind == FO_OP_WRITE || r->kind == FO_OP_READ)) {
        memset(&r->outcome, 0, sizeof r->outcome); /* nothing to do is done */
        r->outcome.offset = r->offset;
        r->outcome.phase = r->kind;
        return false;
    }
    *slot = fo_machine_take_control(&e->machine, r->target);
    if (*slot == FO_NIL) {
        return false;
    }
    if (r->kind == FO_OP_WRITE) {
        (void)pthread_mutex_unlock(&e->mutex); /* the slot is ours; a copy can take its time */
        memcpy(slot_memory(e, *slot), r->data, r->length);
        (void)pthread_mutex_lock(&e->mutex);
    }
    fo_machine_request(&e->machine, *slot, r);
    return true;
}

static void finish(fo_engine *e, fo_request *r, uint32_t slot) {
    if (e->machine.tickets[slot].done) {
        r->outcome = e->machine.tickets[slot].outcome;
    } else { /* the engine is being closed under us */
        not_submitted(r, ETIMEDOUT);
        r->outcome.code = FO_OUTCOME_TIMED_OUT;
    }
    if (r->kind == FO_OP_READ && r->outcome.done != 0 && r->outcome.code <= FO_OUTCOME_ERROR) {
        (void)pthread_mutex_unlock(&e->mutex);
        if (r->data != NULL) {
            memcpy(r->data, slot_memory(e, slot), r->outcome.done);
        } else {
            r->sum = e->hash->once64(slot_memory(e, slot), r->outcome.done);
        }
        (void)pthread_mutex_lock(&e->mutex);
    }
    fo_machine_collect(&e->machine, slot);
}

/* One wave: as many as get control slots, at least one (waits for it).  Returns how many requests it took, 0: no slot
 * in time. */
static uint32_t wave(fo_engine *e, fo_request *reqs, uint32_t count, uint64_t *deadline) {
    uint32_t slots[256]; /* control_slots is at most 256 */
    uint32_t n = 0;
    while (n < count && n < 256) {
        uint32_t slot = FO_NIL;
        bool begun, room;
        if (e->closing) {
            break;
        }
        room = fo_machine_event_room(&e->machine, 1, 0); /* for its events: nobody but who reads some can make it */
        begun = room && start(e, &reqs[n], &slot);
        if (!begun && reqs[n].outcome.code == UINT8_MAX) {
            if (n != 0 || !room || fo_engine_wait_slots(e, deadline) != 0) {
                break;
            }
            continue;
        }
        slots[n++] = begun ? slot : FO_NIL;
    }
    fo_engine_kick(e);
    for (uint32_t i = 0; i < n; i++) {
        if (slots[i] == FO_NIL) {
            continue;
        }
        while (!e->machine.tickets[slots[i]].done && fo_engine_wait_state(e, NULL) == 0) {
            /* ends at the target's hard deadline at the latest */
        }
        finish(e, &reqs[i], slots[i]);
    }
    fo_engine_notify(e);
    return n;
}

int fo_run(fo_engine *e, fo_request *reqs, uint32_t count, uint64_t timeout_ns) {
    uint64_t deadline;
    uint32_t done = 0;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    for (uint32_t i = 0; i < count; i++) {
        reqs[i].outcome.code = UINT8_MAX; /* not looked at yet */
    }
    while (done < count) {
        uint32_t n = wave(e, reqs + done, count - done, &deadline);
        if (n == 0) {
            rc = e->closing                                      ? -ESHUTDOWN
                 : fo_machine_event_room(&e->machine, 1, 0) ? -ETIMEDOUT
                                                                 : -ENOBUFS;
            break;
        }
        done += n;
    }
    for (; done < count; done++) {
        not_submitted(&reqs[done], -rc);
    }
    fo_engine_leave(e);
    return rc;
}
