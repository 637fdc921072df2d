/*
 * fo_lane.c: targets, and requests that are not part of a stream.
 *
 * Two things close a target, and both are sticky: a failed flush (FAILED: nothing is written any more, reads go on) and the
 * hard deadline (DETACHED: nothing at all is submitted, what is in flight becomes orphans).  Only a new open, after the last
 * completion, makes it usable again.
 */
#include "fo_step_parts.h"

#include <errno.h>
#include <string.h>

static void list_clear(fo_list *list) {
    list->head = list->tail = FO_NIL;
    list->count = 0;
}

/* Here and nowhere else the list is changed: a step goes over it. */
static void list_open(fo_machine *m, uint16_t target) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < m->open_count; i++) {
        if (m->targets[m->open[i]].state != FO_TARGET_NONE) {
            m->open[kept++] = m->open[i];
        }
    }
    m->open[kept] = target;
    m->open_count = kept + 1;
}

int fo_machine_target_new(fo_machine *m, uint16_t *id) {
    for (uint32_t i = 0; i < FO_MAX_TARGETS; i++) {
        uint32_t candidate = (m->next_target + i) % FO_MAX_TARGETS; /* an id is not reused at once: events may be unread */
        fo_target *t = &m->targets[candidate];
        if (t->state != FO_TARGET_NONE) {
            continue;
        }
        list_open(m, (uint16_t)candidate);
        memset(t, 0, sizeof *t);
        t->state = FO_TARGET_OPENING;
        t->check_ns = t->retry_ns = t->watch_ns = FO_FOREVER;
        t->capacity = UINT64_MAX;
        t->granule = 1;
        t->soft_ns = m->cfg.soft_ns;
        t->hard_ns = m->cfg.hard_ns;
        t->patience_ns = m->cfg.patience_ns;
        list_clear(&t->queued);
        list_clear(&t->control);
        list_clear(&t->waiting);
        list_clear(&t->inflight);
        list_clear(&t->flushers);
        m->tickets[m->cfg.slot_count + candidate].busy = false;
        m->next_target = candidate + 1;
        m->targets_open++;
        *id = (uint16_t)candidate;
        return 0;
    }
    return -EMFILE;
}

uint32_t fo_machine_life_ticket(const fo_machine *m, uint16_t target) { return m->cfg.slot_count + target; }

void fo_machine_life(fo_machine *m, uint16_t target, uint8_t kind, uint64_t offset, uint64_t length) {
    uint32_t ticket = fo_machine_life_ticket(m, target);
    fo_op_plan plan = {.offset = offset,
                       .length = length,
                       .slot = FO_NIL,
                       .stream = FO_NIL,
                       .target = target,
                       .kind = kind,
                       .owner = FO_OWNER_TICKET,
                       .helper = true};
    FO_ASSERT(kind != FO_OP_FLUSH);
    m->tickets[ticket].busy = true;
    m->tickets[ticket].done = false;
    if (kind == FO_OP_CLOSE) {
        m->targets[target].state = FO_TARGET_CLOSING;
    }
    fo_op_start(m, fo_op_life(m, target), &plan);
    m->want_step = true;
}

void fo_machine_target_ready(fo_machine *m, uint16_t target, const fo_geometry *g, const fo_open *opt) {
    fo_target *t = &m->targets[target];
    t->state = FO_TARGET_ACTIVE;
    t->block = g->is_block != 0;
    t->readonly = (opt->flags & FO_OPEN_READONLY) != 0;
    /* A file that was opened as it is has its size from somebody who laid it out. */
    t->grow = !t->block && opt->size == 0 && (opt->flags & (FO_OPEN_CREATE | FO_OPEN_REPLACE)) != 0;
    t->granule = g->granule;
    t->depth = g->depth;
    t->capacity = t->block ? g->size : UINT64_MAX;
    t->allocated = g->allocated;
    t->ahead_step = FO_AHEAD_MIN;
    t->soft_ns = opt->soft_ns != 0 ? opt->soft_ns : m->cfg.soft_ns;
    t->hard_ns = opt->hard_ns != 0 ? opt->hard_ns : m->cfg.hard_ns;
    t->patience_ns = opt->patience_ns != 0 ? opt->patience_ns : m->cfg.patience_ns;
    t->eject_slow = opt->on_slow == FO_SLOW_EJECT;
}

void fo_target_gone(fo_machine *m, uint16_t target) {
    m->targets[target].state = FO_TARGET_NONE;
    m->targets_open--;
    m->gone[target] = m->unsettled = true;
    m->state_changed = true;
}

void fo_machine_target_forget(fo_machine *m, uint16_t target) {
    FO_ASSERT(m->ops[fo_op_life(m, target)].state == FO_OP_IDLE);
    fo_target_gone(m, target);
}

void fo_machine_target_abandon(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    uint32_t life = fo_op_life(m, target);
    t->close_wanted = true;
    m->tickets[fo_machine_life_ticket(m, target)].busy = false;
    if (t->state == FO_TARGET_OPENING) {
        t->state = FO_TARGET_DETACHED;
        t->fault = ETIMEDOUT;
        if (m->ops[life].state == FO_OP_INFLIGHT) {
            fo_op_move(m, life, FO_OP_ORPHAN);
        } else if (m->ops[life].state != FO_OP_IDLE) {
            fo_op_move(m, life, FO_OP_IDLE);
        }
    }
    fo_target_settle(m, target);
}

void fo_target_settle(fo_machine *m, uint16_t target) {
    const fo_target *t = &m->targets[target];
    bool usable = t->state == FO_TARGET_ACTIVE || t->state == FO_TARGET_FAILED;
    bool over = t->state == FO_TARGET_DETACHED ? t->orphans == 0
                                               : usable && fo_machine_target_idle(m, target) &&
                                                     !fo_machine_target_used(m, target);
    if (t->close_wanted && over) {
        fo_machine_life(m, target, FO_OP_CLOSE, 0, 0);
        m->tickets[fo_machine_life_ticket(m, target)].busy = false; /* nobody waits for it */
    }
}

bool fo_machine_target_used(const fo_machine *m, uint16_t target) {
    for (uint32_t flow = 0; flow < m->flow_count; flow++) {
        const fo_flow *f = &m->flows[flow];
        for (uint32_t leg = 0; f->id != 0 && !f->closed && leg < f->count; leg++) {
            if (f->legs[leg].target == target) {
                return true;
            }
        }
    }
    return false;
}

bool fo_machine_target_idle(const fo_machine *m, uint16_t target) {
    const fo_target *t = &m->targets[target];
    return t->queued.count == 0 && t->control.count == 0 && t->waiting.count == 0 && t->inflight.count == 0 &&
           t->flushers.count == 0;
}

/* ---- requests ---- */

void fo_ticket_end(fo_machine *m, uint32_t op, const fo_outcome *outcome) {
    uint32_t ticket = fo_op_ticket(m, op);
    uint16_t target = m->ops[op].target;
    uint8_t kind = m->ops[op].kind;
    m->tickets[ticket].outcome = *outcome;
    m->tickets[ticket].done = true;
    m->idle_changed = true;
    if (m->ops[op].state != FO_OP_ORPHAN) {
        fo_op_move(m, op, FO_OP_IDLE);
    }
    if (kind == FO_OP_CLOSE && m->ops[op].state == FO_OP_IDLE) {
        fo_target_gone(m, target); /* whatever close() said: the descriptor is gone */
    }
}

static void refuse(fo_machine *m, uint32_t slot, const fo_request *r, int err) {
    fo_outcome *out = &m->tickets[slot].outcome;
    memset(out, 0, sizeof *out);
    out->offset = r->offset;
    out->length = r->length;
    out->code = FO_OUTCOME_NOT_SUBMITTED;
    out->err = err;
    out->cls = (uint8_t)fo_classify(err);
    out->phase = r->kind;
    m->tickets[slot].done = true;
}

static int check_request(const fo_machine *m, const fo_request *r) {
    const fo_target *t;
    bool data = r->kind == FO_OP_WRITE || r->kind == FO_OP_READ;
    if (r->target >= FO_MAX_TARGETS) {
        return EBADF;
    }
    t = &m->targets[r->target];
    if (t->state == FO_TARGET_FAILED || t->state == FO_TARGET_DETACHED) {
        return t->state == FO_TARGET_FAILED && r->kind == FO_OP_READ ? 0 : t->fault;
    }
    if (t->state != FO_TARGET_ACTIVE || t->close_wanted) {
        return EBADF;
    }
    if (t->readonly && r->kind != FO_OP_READ) {
        return EBADF;
    }
    if (data && (r->offset % t->granule != 0 || r->length % t->granule != 0 || r->offset > INT64_MAX)) {
        return EINVAL; /* to the kernel an offset of -1 is wherever the file stands */
    }
    return 0;
}

void fo_machine_request(fo_machine *m, uint32_t slot, const fo_request *r) {
    int err = check_request(m, r);
    uint32_t op = fo_op_of_slot(slot, 0);
    fo_op_plan plan = {.offset = r->offset,
                       .length = r->length,
                       .slot = slot,
                       .stream = FO_NIL,
                       .target = r->target,
                       .kind = r->kind,
                       .owner = FO_OWNER_TICKET,
                       .helper = r->kind != FO_OP_WRITE && r->kind != FO_OP_READ};
    m->requests_to_come--;
    if (err != 0) {
        refuse(m, slot, r, err);
        return;
    }
    fo_op_start(m, op, &plan);
    if (r->kind == FO_OP_FLUSH) {
        fo_target *t = &m->targets[r->target];
        m->ops[op].flush_ticket = t->flush_issued + 1; /* not the one in flight: it was issued too early */
        t->flush_asked = t->flush_issued + 1;
    }
    m->want_step = true;
}

/* ---- what closes a target ---- */

static void end_list(fo_machine *m, fo_list *list, fo_outcome_code code, int err) {
    while (list->head != FO_NIL) {
        fo_op_fail(m, list->head, code, err);
    }
}

void fo_target_fail(fo_machine *m, uint16_t target, int err) {
    fo_target *t = &m->targets[target];
    FO_ASSERT(t->state == FO_TARGET_ACTIVE); /* else no flush would have been in flight (invariant 10) */
    t->state = FO_TARGET_FAILED;
    t->fault = err;
    fo_legs_shut(m, target);
    end_list(m, &t->flushers, FO_OUTCOME_ERROR, err);
    m->state_changed = true;
}

/* The oldest operation reached the hard deadline.  Order matters: first the operation that hung, so that it is the first
 * fault of its leg; then the others in flight; then what was waiting. */
void fo_target_let_go(fo_machine *m, uint16_t target, uint32_t oldest) {
    fo_target *t = &m->targets[target];
    fo_outcome outcome = fo_op_outcome(m, &m->ops[oldest], FO_OUTCOME_TIMED_OUT, ETIMEDOUT);
    uint32_t op = oldest;
    t->state = FO_TARGET_DETACHED;
    t->fault = ETIMEDOUT;
    t->check_ns = t->watch_ns = FO_FOREVER;
    t->watch_wanted = false;
    m->let_go[target] = m->unsettled = true;
    fo_event_op(m, FO_EVENT_DETACHED, &m->ops[oldest], &outcome);
    while (op != FO_NIL) {
        fo_op *o = &m->ops[op];
        if (op != oldest) {
            outcome = fo_op_outcome(m, o, FO_OUTCOME_DETACHED, ETIMEDOUT);
            if (o->owner != FO_OWNER_AHEAD) {
                fo_event_op(m, FO_EVENT_FAULT, o, &outcome);
            }
        }
        fo_op_move(m, op, FO_OP_ORPHAN);
        if (o->owner == FO_OWNER_LEG) {
            fo_leg_fault(m, o->stream, o->leg, &outcome);
            fo_leg_progress(m, o->stream, o->leg);
        } else if (o->owner == FO_OWNER_TICKET) {
            fo_ticket_end(m, op, &outcome);
        }
        op = t->inflight.head;
    }
    fo_legs_shut(m, target);
    end_list(m, &t->waiting, FO_OUTCOME_ERROR, ETIMEDOUT);
    end_list(m, &t->control, FO_OUTCOME_NOT_SUBMITTED, ETIMEDOUT);
    end_list(m, &t->flushers, FO_OUTCOME_DETACHED, ETIMEDOUT);
    FO_ASSERT(t->queued.count == 0 && t->inflight.count == 0); /* invariant 5 */
    t->retry_ns = FO_FOREVER;
    m->state_changed = true;
}

/* Files that grow are extended in the helper, ahead of the writes: a write inside allocated space does not block on the
 * inode, one that extends the file does (4 to 10 times the CPU, and it leaves the asynchronous path). */
void fo_target_ahead(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    uint32_t op = fo_op_ahead(m, target);
    fo_op_plan plan = {.slot = FO_NIL,
                       .stream = FO_NIL,
                       .target = target,
                       .kind = FO_OP_ALLOCATE,
                       .owner = FO_OWNER_AHEAD,
                       .helper = true};
    FO_ASSERT(t->state == FO_TARGET_ACTIVE); /* a stream is opened there, or a leg that is active writes there */
    if (!t->grow || m->ops[op].state != FO_OP_IDLE || t->ahead_end + t->ahead_step / 2 < t->allocated) {
        return;
    }
    plan.offset = t->allocated > t->ahead_end ? t->allocated : t->ahead_end;
    plan.length = t->ahead_step;
    t->ahead_step = t->ahead_step * 2 < FO_AHEAD_MAX ? t->ahead_step * 2 : FO_AHEAD_MAX;
    fo_op_start(m, op, &plan);
    m->want_step = true;
}
