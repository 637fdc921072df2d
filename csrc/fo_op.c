/*
 * fo_op.c: one operation's way through its states.
 *
 * fo_op_move is the only place that changes an operation's state, so the counts of targets, legs and slots cannot drift
 * apart from it.
 */
#include "fo_step_parts.h"

#include <string.h>

static void append(fo_machine *m, fo_list *list, uint32_t op) {
    m->ops[op].next = FO_NIL;
    m->ops[op].prev = list->tail;
    if (list->tail != FO_NIL) {
        m->ops[list->tail].next = op;
    } else {
        list->head = op;
    }
    list->tail = op;
    list->count++;
}

static void unlink_op(fo_machine *m, fo_list *list, uint32_t op) {
    fo_op *o = &m->ops[op];
    if (o->prev != FO_NIL) {
        m->ops[o->prev].next = o->next;
    } else {
        list->head = o->next;
    }
    if (o->next != FO_NIL) {
        m->ops[o->next].prev = o->prev;
    } else {
        list->tail = o->prev;
    }
    FO_ASSERT(list->count != 0);
    list->count--;
}

static fo_list *list_of(fo_machine *m, const fo_op *op, uint8_t state) {
    fo_target *t = &m->targets[op->target];
    switch (state) {
    case FO_OP_QUEUED:
        if (op->owner == FO_OWNER_LEG) {
            return &t->queued;
        }
        return op->owner == FO_OWNER_TICKET && op->kind == FO_OP_FLUSH ? &t->flushers : &t->control;
    case FO_OP_WAITING:
        return &t->waiting;
    case FO_OP_INFLIGHT:
        return &t->inflight;
    default:
        return NULL;
    }
}

fo_lane_leg *fo_op_leg(fo_machine *m, const fo_op *op) {
    fo_flow *f;
    if (op->owner != FO_OWNER_LEG) {
        return NULL;
    }
    f = &m->flows[op->stream];
    return f->id == op->stream_id ? &f->legs[op->leg] : NULL;
}

static uint32_t *leg_count(fo_lane_leg *leg, uint8_t state) {
    switch (state) {
    case FO_OP_QUEUED:
        return &leg->queued;
    case FO_OP_WAITING:
        return &leg->waiting;
    case FO_OP_INFLIGHT:
        return &leg->inflight;
    case FO_OP_ORPHAN:
        return &leg->orphans;
    default:
        return NULL;
    }
}

static void count_leg(fo_machine *m, const fo_op *op, uint8_t from, uint8_t to) {
    fo_lane_leg *leg = fo_op_leg(m, op);
    uint32_t *count;
    if (leg == NULL) {
        FO_ASSERT(op->owner != FO_OWNER_LEG || from == FO_OP_ORPHAN); /* a record outlives all but orphans */
        return;
    }
    if ((count = leg_count(leg, from)) != NULL) {
        FO_ASSERT(*count != 0);
        --*count;
    }
    if ((count = leg_count(leg, to)) != NULL) {
        ++*count;
    }
}

static bool on_lane(const fo_op *op, uint8_t state) {
    return op->owner == FO_OWNER_LEG && (state == FO_OP_WAITING || state == FO_OP_INFLIGHT);
}

void fo_op_move(fo_machine *m, uint32_t op, fo_op_state state) {
    fo_op *o = &m->ops[op];
    fo_target *t = &m->targets[o->target];
    uint8_t from = o->state;
    fo_list *list = list_of(m, o, from);
    if (list != NULL) {
        unlink_op(m, list, op);
    }
    list = list_of(m, o, (uint8_t)state);
    if (list != NULL) {
        append(m, list, op);
    }
    t->busy -= on_lane(o, from) ? 1u : 0u;
    t->busy += on_lane(o, (uint8_t)state) ? 1u : 0u;
    t->orphans -= from == FO_OP_ORPHAN ? 1u : 0u;
    t->orphans += state == FO_OP_ORPHAN ? 1u : 0u;
    count_leg(m, o, from, (uint8_t)state);
    o->state = (uint8_t)state;
    m->idle_changed = m->idle_changed || (state == FO_OP_IDLE && t->inflight.count == 0);
    if (o->slot == FO_NIL) {
        return;
    }
    if (from == FO_OP_IDLE) {
        m->live_ops++;
        fo_slot_hold(m, o->slot);
    } else if (state == FO_OP_IDLE) {
        m->live_ops--;
        fo_slot_drop(m, o->slot, from == FO_OP_ORPHAN, o->stray);
    } else if (state == FO_OP_ORPHAN) {
        fo_slot_orphan(m, o->slot, o->stray);
        o->stray = false; /* an orphan is held by nobody, whatever became of its leg */
    }
}

void fo_op_start(fo_machine *m, uint32_t op, const fo_op_plan *plan) {
    fo_op *o = &m->ops[op];
    uint16_t generation = o->generation;
    FO_ASSERT(o->state == FO_OP_IDLE);
    memset(o, 0, sizeof *o);
    o->generation = generation;
    o->offset = plan->offset;
    o->length = plan->length;
    o->slot = plan->slot;
    o->stream = plan->stream;
    o->stream_id = plan->stream != FO_NIL ? m->flows[plan->stream].id : 0;
    o->target = plan->target;
    o->kind = plan->kind;
    o->owner = plan->owner;
    o->leg = plan->leg;
    o->helper = plan->helper;
    o->queued_ns = m->now;
    fo_op_move(m, op, FO_OP_QUEUED);
}

fo_outcome fo_op_outcome(const fo_machine *m, const fo_op *op, fo_outcome_code code, int err) {
    fo_outcome out;
    memset(&out, 0, sizeof out);
    out.offset = op->offset;
    out.length = op->length;
    out.done = op->done;
    out.latency_ns = op->attempts != 0 ? m->now - op->first_ns : 0;
    out.err = err;
    out.code = (uint8_t)code;
    out.cls = (uint8_t)fo_classify(err);
    if (code == FO_OUTCOME_SHORT && op->kind == FO_OP_WRITE) {
        out.cls = FO_CLASS_DEVICE;
    }
    out.phase = op->kind;
    out.attempts = op->attempts;
    return out;
}

void fo_op_succeed(fo_machine *m, uint32_t op) {
    fo_op *o = &m->ops[op];
    uint16_t target = o->target;
    fo_lane_leg *leg;
    fo_outcome outcome;
    o->done = o->length;
    switch (o->owner) {
    case FO_OWNER_LEG:
        leg = fo_op_leg(m, o);
        FO_ASSERT(leg != NULL);
        leg->completed += o->length;
        fo_pace_done(m, &m->targets[target], o);
        fo_op_move(m, op, FO_OP_IDLE);
        fo_leg_progress(m, o->stream, o->leg);
        break;
    case FO_OWNER_TICKET:
        outcome = fo_op_outcome(m, o, FO_OUTCOME_OK, 0);
        fo_ticket_end(m, op, &outcome);
        break;
    case FO_OWNER_FLUSH:
        fo_op_move(m, op, FO_OP_IDLE);
        fo_flush_good(m, target);
        break;
    default:
        m->targets[target].allocated = o->offset + o->length;
        fo_op_move(m, op, FO_OP_IDLE);
        break;
    }
}

void fo_op_fail(fo_machine *m, uint32_t op, fo_outcome_code code, int err) {
    fo_op *o = &m->ops[op];
    uint16_t target = o->target;
    fo_outcome outcome = fo_op_outcome(m, o, code, err);
    fo_lane_leg *leg;
    if (o->owner == FO_OWNER_AHEAD) {
        /* Allocating ahead is a kindness, not a duty: if there is no room, the write itself will say so. */
        m->targets[target].grow = false;
        fo_op_move(m, op, FO_OP_IDLE);
        return;
    }
    if (o->owner != FO_OWNER_TICKET || o->state != FO_OP_QUEUED) {
        fo_event_op(m, FO_EVENT_FAULT, o, &outcome); /* a request that was never tried is told to its caller alone */
    }
    switch (o->owner) {
    case FO_OWNER_LEG:
        leg = fo_op_leg(m, o);
        FO_ASSERT(leg != NULL);
        leg->completed += o->state == FO_OP_QUEUED ? 0 : o->done;
        fo_op_move(m, op, FO_OP_IDLE);
        fo_leg_fault(m, o->stream, o->leg, &outcome);
        fo_leg_progress(m, o->stream, o->leg);
        break;
    case FO_OWNER_TICKET:
        fo_ticket_end(m, op, &outcome);
        break;
    default:
        fo_op_move(m, op, FO_OP_IDLE);
        if (code == FO_OUTCOME_ERROR) { /* else it was not submitted before its target was let go */
            fo_target_fail(m, target, err);
        }
        break;
    }
}
