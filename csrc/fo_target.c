/*
 * fo_target.c: opening, finishing and closing targets: sequences of blocking operations, one after the other, each in the
 * target's helper, each with its own place in the outcome.
 *
 *   open:    open, lock, discover  ->  allocate (when a size is given)  ->  warm-up read
 *   finish:  drain  ->  truncate  ->  flush  ->  parent directory (when created)  ->  close
 *   close:   drain  ->  close
 *
 * Truncating before the flush, not after it: the new size has to be as durable as the data.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>

#define DEPTH_DEFAULT 8u

static void clear_outcome(fo_outcome *out, uint8_t phase) {
    memset(out, 0, sizeof *out);
    out->phase = phase;
}

static int status_of(const fo_outcome *outcome) {
    if (outcome->code == FO_OUTCOME_OK) {
        return 0;
    }
    FO_ASSERT(outcome->err != 0); /* nothing here is done in parts */
    return -outcome->err;
}

static void not_submitted(fo_outcome *why, int err) {
    why->code = FO_OUTCOME_NOT_SUBMITTED;
    why->err = err;
    why->cls = (uint8_t)fo_classify(err);
}

static void timed_out(fo_outcome *why, uint8_t phase) {
    clear_outcome(why, phase);
    why->code = FO_OUTCOME_TIMED_OUT;
    why->err = ETIMEDOUT;
    why->cls = (uint8_t)fo_classify(ETIMEDOUT);
}

/* To open, to finish or to close it, one caller at a time: two would run its steps into each other.  The engine's own end is one. */
static void hold(fo_block *b) {
    b->taken = true;
    fo_block_ref(b);
}

static void let_others(fo_block *b) {
    b->taken = false;
    fo_block_unref(b);
}

/* Runs one lifecycle operation to its end.  -ETIMEDOUT: it may be running still, and nobody waits for its ticket any more. */
static int run_life(fo_engine *e, uint16_t id, uint8_t kind, uint64_t offset, uint64_t length, uint64_t *deadline,
                    fo_outcome *why) {
    uint32_t ticket = fo_machine_life_ticket(&e->machine, id);
    fo_ticket *t = &e->machine.tickets[ticket];
    int rc = 0;
    fo_machine_life(&e->machine, id, kind, offset, length);
    fo_engine_kick(e);
    while (!t->done && rc == 0) {
        rc = fo_engine_wait_state(e, deadline);
    }
    if (!t->done) {
        t->busy = false;
        timed_out(why, kind);
        return -ETIMEDOUT;
    }
    *why = t->outcome;
    fo_machine_collect(&e->machine, ticket);
    return status_of(why);
}

/* ---- open ---- */

static int check_options(const char *path, fo_open *o) {
    const uint32_t known = FO_OPEN_CREATE | FO_OPEN_REPLACE | FO_OPEN_READONLY | FO_OPEN_LOCK | FO_OPEN_BUFFERED |
                           FO_OPEN_NOFOLLOW | FO_OPEN_NAMED;
    bool writes = (o->flags & (FO_OPEN_CREATE | FO_OPEN_REPLACE | FO_OPEN_LOCK)) != 0;
    o->depth = o->depth == 0 ? DEPTH_DEFAULT : o->depth;
    if (path == NULL || path[0] == '\0' || (o->flags & ~known) != 0 || o->depth > FO_MAX_DEPTH ||
        ((o->flags & FO_OPEN_READONLY) && (writes || o->size != 0)) ||
        ((o->flags & FO_OPEN_CREATE) && (o->flags & FO_OPEN_REPLACE)) || (o->granule & (o->granule - 1)) != 0 ||
        o->on_slow > FO_SLOW_EJECT) {
        return -EINVAL;
    }
    return 0;
}

static int open_steps(fo_engine *e, fo_block *b, uint64_t *deadline, fo_outcome *why) {
    uint16_t id = b->target;
    int rc = run_life(e, id, FO_OP_OPEN, 0, 0, deadline, why);
    if (rc == 0 && b->opt.size != 0 && !b->geometry.is_block) {
        rc = run_life(e, id, FO_OP_ALLOCATE, 0, b->opt.size, deadline, why);
        if (rc == 0 && b->geometry.allocated < b->opt.size) {
            b->geometry.allocated = b->opt.size;
        }
    }
    if (rc == 0) {
        rc = run_life(e, id, FO_OP_READ, 0, b->geometry.granule, deadline, why);
    }
    if (rc == 0 && e->closing) { /* meanwhile */
        not_submitted(why, ESHUTDOWN);
        rc = -ESHUTDOWN;
    }
    return rc;
}

/* After a failure in the middle the descriptor may be open: closed in the helper too, and not waited for longer than asked. */
static void open_failed(fo_engine *e, fo_block *b, uint64_t *deadline) {
    uint16_t id = b->target;
    fo_outcome ignored; /* the first failure is the one to report */
    atomic_store(&b->given_up, true); /* it may wait for a lock */
    if (!fo_machine_target_idle(&e->machine, id)) { /* it is running still */
        fo_machine_target_abandon(&e->machine, id);
        fo_engine_kick(e);
    } else if (run_life(e, id, FO_OP_CLOSE, 0, 0, deadline, &ignored) == -ETIMEDOUT) {
        fo_machine_target_abandon(&e->machine, id);
    }
}

int fo_target_open(fo_engine *e, const char *path, const fo_open *opt, uint64_t timeout_ns, uint16_t *id,
                   fo_outcome *why) {
    fo_open o = *opt;
    fo_outcome unused;
    fo_block *b = NULL;
    uint64_t patience, deadline;
    int rc = check_options(path, &o);
    why = why != NULL ? why : &unused;
    clear_outcome(why, FO_OP_OPEN);
    if (rc == 0) {
        rc = fo_engine_enter(e);
    }
    if (rc != 0) {
        not_submitted(why, -rc);
        return rc;
    }
    /* An open that hangs is bounded like any other operation, however long the caller would wait. */
    patience = (o.hard_ns != 0 ? o.hard_ns : e->machine.cfg.hard_ns) / 2 + o.lock_wait_ns / 2;
    patience = patience > FO_FOREVER / 2 ? FO_FOREVER : patience * 2;
    deadline = fo_engine_after(e, timeout_ns < patience ? timeout_ns : patience);
    rc = fo_machine_event_room(&e->machine, FO_EVENTS_PER_TARGET, 0) ? fo_machine_target_new(&e->machine, id) : -ENOBUFS;
    if (rc == 0 && (b = e->blocks[*id] = fo_block_new(e, *id, path, &o)) == NULL) {
        fo_machine_target_forget(&e->machine, *id);
        rc = -ENOMEM;
    }
    if (rc != 0) {
        not_submitted(why, -rc);
    } else {
        hold(b);
        rc = open_steps(e, b, &deadline, why);
        if (rc == 0) {
            fo_machine_target_ready(&e->machine, *id, &b->geometry, &o);
        } else {
            open_failed(e, b, &deadline);
        }
        let_others(b);
    }
    fo_engine_leave(e);
    return rc;
}

int fo_target_geometry(fo_engine *e, uint16_t id, fo_geometry *out) {
    const fo_target *t;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    memset(out, 0, sizeof *out);
    if (id >= FO_MAX_TARGETS || e->blocks[id] == NULL) {
        rc = -EBADF;
    } else {
        t = &e->machine.targets[id];
        if (t->state != FO_TARGET_OPENING) { /* until then its helper is writing it */
            *out = e->blocks[id]->geometry;
            out->allocated = t->allocated;
        }
        out->state = t->state;
        out->inflight = t->inflight.count + t->orphans;
        out->queued = t->queued.count + t->control.count + t->waiting.count;
        out->quarantined = t->orphans;
        out->on_slow = t->eject_slow ? FO_SLOW_EJECT : FO_SLOW_WAIT;
        out->strikes = fo_machine_target_strikes(&e->machine, id, fo_engine_clock(e));
        out->latency_ns = t->latency_ns;
        out->rate = fo_machine_target_rate(&e->machine, id);
        out->flushes_good = t->flushes_good;
    }
    fo_engine_leave(e);
    return rc;
}

/* ---- close ---- */

static int take(fo_engine *e, uint16_t id, fo_block **out) {
    const fo_machine *m = &e->machine;
    fo_block *b = id < FO_MAX_TARGETS ? e->blocks[id] : NULL;
    if (b == NULL || m->targets[id].state == FO_TARGET_OPENING) {
        return -EBADF;
    }
    if (b->taken || fo_machine_target_used(m, id)) {
        return -EBUSY;
    }
    e->machine.targets[id].leaving = true; /* whatever comes of it: the target is closed in the end */
    hold(b);
    *out = b;
    return 0;
}

/* The id may be another's by now; the block is ours to compare with. */
static uint8_t state_of(const fo_engine *e, const fo_block *b) {
    return e->blocks[b->target] == b ? e->machine.targets[b->target].state : (uint8_t)FO_TARGET_NONE;
}

static bool usable(const fo_engine *e, const fo_block *b) {
    return state_of(e, b) == FO_TARGET_ACTIVE || state_of(e, b) == FO_TARGET_FAILED;
}

/* Waits until nothing is in flight: 0, or -ETIMEDOUT.  A target that is let go meanwhile counts as drained. */
static int drain(fo_engine *e, const fo_block *b, uint64_t *deadline) {
    int rc = 0;
    while (rc == 0 && usable(e, b) && !fo_machine_target_idle(&e->machine, b->target)) {
        rc = fo_engine_wait_state(e, deadline);
    }
    return rc;
}

static int close_target(fo_engine *e, const fo_block *b, uint64_t *deadline, fo_outcome *why) {
    int rc = drain(e, b, deadline);
    clear_outcome(why, FO_OP_CLOSE);
    if (rc == 0 && usable(e, b)) {
        return run_life(e, b->target, FO_OP_CLOSE, 0, 0, deadline, why);
    }
    /* It closes itself after the last completion, whether anybody still waits or not. */
    if (state_of(e, b) != FO_TARGET_NONE) { /* not tested: gone before this caller has woken up, a race */
        fo_machine_target_abandon(&e->machine, b->target);
        fo_engine_kick(e);
    }
    while (rc == 0 && state_of(e, b) != FO_TARGET_NONE) {
        rc = fo_engine_wait_state(e, deadline);
    }
    if (rc != 0) {
        timed_out(why, FO_OP_CLOSE);
    }
    return rc;
}

int fo_target_close(fo_engine *e, uint16_t id, uint64_t timeout_ns) {
    uint64_t deadline;
    fo_block *b = NULL;
    fo_outcome why;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    rc = take(e, id, &b);
    if (rc == 0) {
        deadline = fo_engine_after(e, timeout_ns);
        rc = close_target(e, b, &deadline, &why);
        let_others(b);
    }
    fo_engine_leave(e);
    return rc;
}

void fo_target_forget(fo_engine *e, uint16_t id) {
    fo_block *b = NULL;
    if (fo_engine_enter(e) != 0) {
        return;
    }
    b = id < FO_MAX_TARGETS ? e->blocks[id] : NULL;
    if (b != NULL && !b->taken) {
        fo_machine_target_abandon(&e->machine, id);
        fo_engine_kick(e);
    }
    fo_engine_leave(e);
}

/* ---- finish ---- */

/* A flush of the target's own queue, so that it keeps the books that every flush keeps. */
static int flush_target(fo_engine *e, uint16_t id, uint64_t *deadline, fo_outcome *why) {
    fo_machine *m = &e->machine;
    fo_request request = {.target = id, .kind = FO_OP_FLUSH};
    uint32_t slot;
    while ((slot = fo_machine_take_control(m, id)) == FO_NIL) {
        if (fo_engine_wait_slots(e, deadline) != 0) {
            timed_out(why, FO_OP_FLUSH);
            return -ETIMEDOUT;
        }
    }
    fo_machine_request(m, slot, &request);
    fo_engine_kick(e);
    while (!m->tickets[slot].done && fo_engine_wait_state(e, NULL) == 0) {
        /* the hard deadline of the target ends this wait */
    }
    if (m->tickets[slot].done) {
        *why = m->tickets[slot].outcome;
    } else {
        timed_out(why, FO_OP_FLUSH); /* the engine is being closed under us */
    }
    fo_machine_collect(m, slot);
    fo_engine_notify(e);
    return status_of(why);
}

static int finish_steps(fo_engine *e, const fo_block *b, int64_t length, uint64_t *deadline, fo_outcome *why) {
    uint16_t id = b->target;
    int rc = drain(e, b, deadline);
    if (rc != 0) {
        timed_out(why, FO_OP_WRITE);
        return rc;
    }
    if (e->machine.targets[id].state == FO_TARGET_DETACHED) {
        timed_out(why, FO_OP_FLUSH);
        why->code = FO_OUTCOME_DETACHED;
        return -ETIMEDOUT;
    }
    if (length >= 0 && !b->geometry.is_block) {
        rc = run_life(e, id, FO_OP_TRUNCATE, 0, (uint64_t)length, deadline, why);
    }
    if (rc == 0) {
        rc = flush_target(e, id, deadline, why);
    }
    if (rc == 0 && (b->geometry.created || (b->opt.flags & FO_OPEN_NAMED))) {
        rc = run_life(e, id, FO_OP_DIRSYNC, 0, 0, deadline, why);
    }
    return rc;
}

int fo_target_finish(fo_engine *e, uint16_t id, int64_t length, uint64_t timeout_ns, fo_outcome *why) {
    fo_outcome unused, closing;
    fo_block *b = NULL;
    uint64_t deadline;
    int rc = fo_engine_enter(e);
    why = why != NULL ? why : &unused;
    clear_outcome(why, FO_OP_CLOSE);
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    rc = take(e, id, &b);
    if (rc == 0 && (e->machine.targets[id].state == FO_TARGET_CLOSING || e->machine.targets[id].close_wanted)) {
        let_others(b);
        rc = -EBADF; /* a close that was not waited for has the last word */
    }
    if (rc == 0) {
        int closed;
        rc = finish_steps(e, b, length, &deadline, why);
        closed = close_target(e, b, &deadline, &closing);
        if (rc == 0 && closed != 0) {
            *why = closing;
            rc = closed;
        }
        let_others(b);
    }
    fo_engine_leave(e);
    return rc;
}
