/*
 * fo_check.c: every invariant of the state machine, recomputed from scratch.  Called by tests after each step.
 */
#include "fo_step_parts.h"

static bool held_by_leg(const fo_op *o) { return o->owner == FO_OWNER_LEG && o->state != FO_OP_IDLE; }

static void check_slots(const fo_machine *m) {
    uint32_t in_state[FO_SLOT_STATES] = {0};
    uint32_t total = 0, lagging = 0;
    for (uint32_t slot = 0; slot < m->cfg.slot_count; slot++) {
        const fo_slot *s = &m->slots[slot];
        uint32_t refs = 0, orphans = 0, strays = 0;
        for (uint32_t leg = 0; leg < FO_MAX_LEGS; leg++) {
            const fo_op *o = &m->ops[fo_op_of_slot(slot, leg)];
            refs += o->state != FO_OP_IDLE ? 1 : 0;
            orphans += o->state == FO_OP_ORPHAN ? 1 : 0;
            strays += o->stray && o->state != FO_OP_IDLE ? 1 : 0;
            FO_ASSERT(!o->stray || o->state == FO_OP_IDLE || o->state == FO_OP_INFLIGHT);
        }
        in_state[s->state]++;
        lagging += s->state == FO_SLOT_LIVE && refs < s->width ? 1 : 0;
        FO_ASSERT(s->refs == refs && s->orphans == orphans && s->strays == strays);        /* 2 */
        FO_ASSERT(refs <= s->width || s->state == FO_SLOT_CONTROL);
        FO_ASSERT((s->state != FO_SLOT_FREE && s->state != FO_SLOT_FILLING) || refs == 0); /* 2 */
        if (s->state == FO_SLOT_LIVE) {
            FO_ASSERT(refs > orphans + strays); /* 3 */
        } else if (s->state == FO_SLOT_STRANDED) {
            FO_ASSERT(refs == orphans + strays && strays != 0); /* 3 */
        } else if (s->state == FO_SLOT_QUARANTINED) {
            FO_ASSERT(refs == orphans && (refs != 0 || m->tickets[slot].busy)); /* 3 */
        }
    }
    for (uint32_t i = 0; i < FO_SLOT_STATES; i++) {
        FO_ASSERT(in_state[i] == m->in_state[i]); /* 1 */
        total += in_state[i];
    }
    FO_ASSERT(total == m->cfg.slot_count && lagging == m->lagging); /* 1 */
    FO_ASSERT(m->in_state[FO_SLOT_CONTROL] <= m->cfg.control_slots + m->cfg.quarantine_slots);
}

static uint32_t list_length(const fo_machine *m, const fo_list *list, uint8_t state) {
    uint32_t n = 0, prev = FO_NIL;
    for (uint32_t op = list->head; op != FO_NIL; op = m->ops[op].next) {
        FO_ASSERT(m->ops[op].state == state && m->ops[op].prev == prev);
        prev = op;
        n++;
    }
    FO_ASSERT(list->tail == prev && n == list->count);
    return n;
}

static void check_targets(const fo_machine *m) {
    for (uint32_t i = 0; i < FO_MAX_TARGETS; i++) {
        const fo_target *t = &m->targets[i];
        uint32_t busy = 0, orphans = 0;
        if (t->state == FO_TARGET_NONE) {
            continue;
        }
        for (uint32_t op = 0; op < m->op_count; op++) {
            const fo_op *o = &m->ops[op];
            if (o->target == i) {
                busy += held_by_leg(o) && (o->state == FO_OP_WAITING || o->state == FO_OP_INFLIGHT) ? 1 : 0;
                orphans += o->state == FO_OP_ORPHAN ? 1 : 0;
            }
        }
        FO_ASSERT(t->busy == busy && t->orphans == orphans);
        FO_ASSERT(busy <= t->depth); /* 6 */
        list_length(m, &t->queued, FO_OP_QUEUED);
        list_length(m, &t->control, FO_OP_QUEUED);
        list_length(m, &t->flushers, FO_OP_QUEUED);
        list_length(m, &t->waiting, FO_OP_WAITING);
        FO_ASSERT(list_length(m, &t->inflight, FO_OP_INFLIGHT) == 0 || t->state != FO_TARGET_DETACHED); /* 5 */
        for (uint32_t op = t->inflight.head; op != FO_NIL && m->ops[op].next != FO_NIL; op = m->ops[op].next) {
            FO_ASSERT(m->ops[op].submitted_ns <= m->ops[m->ops[op].next].submitted_ns);
        }
    }
}

static void check_leg(const fo_machine *m, uint32_t flow, uint32_t leg) {
    const fo_lane_leg *l = &m->flows[flow].legs[leg];
    const fo_target *t = &m->targets[l->target];
    uint32_t count[FO_OP_ORPHAN + 1] = {0};
    for (uint32_t slot = 0; slot < m->cfg.slot_count; slot++) {
        const fo_op *o = &m->ops[fo_op_of_slot(slot, leg)];
        if (held_by_leg(o) && o->stream_id == m->flows[flow].id) {
            FO_ASSERT(o->target == l->target && o->stream == flow);
            count[o->state]++;
        }
    }
    FO_ASSERT(count[FO_OP_QUEUED] == l->queued && count[FO_OP_WAITING] == l->waiting);
    FO_ASSERT(count[FO_OP_INFLIGHT] == l->inflight && count[FO_OP_ORPHAN] == l->orphans);
    FO_ASSERT(l->accepted >= l->submitted && l->submitted >= l->completed && l->completed >= l->synced); /* 4 */
    FO_ASSERT(l->state == FO_LEG_ACTIVE || (l->queued == 0 && l->waiting == 0));                        /* 5 */
    FO_ASSERT(l->state != FO_LEG_ACTIVE || t->state == FO_TARGET_ACTIVE);                               /* 5 */
    FO_ASSERT(l->state != FO_LEG_SYNCED || (l->synced == l->accepted && l->inflight == 0));
    if (l->first.code == FO_OUTCOME_SLOW) {
        FO_ASSERT(l->state == FO_LEG_EJECTED && l->accused && t->eject_slow); /* 11 */
    }
}

static void check_flows(const fo_machine *m) {
    uint32_t open = 0, admitted = 0, legs = 0, lag = 0;
    uint32_t control = m->in_state[FO_SLOT_CONTROL];
    uint32_t lent = control > m->cfg.control_slots ? control - m->cfg.control_slots : 0;
    for (uint32_t i = 0; i < m->flow_count; i++) {
        const fo_flow *f = &m->flows[i];
        uint32_t held = 0;
        if (f->id == 0) {
            continue;
        }
        for (uint32_t slot = 0; slot < m->cfg.slot_count; slot++) {
            uint8_t state = m->slots[slot].state;
            held += m->slots[slot].stream == i && (state == FO_SLOT_FILLING || state == FO_SLOT_LIVE) ? 1 : 0;
        }
        FO_ASSERT(held == f->held);
        lag += held > FO_SLOTS_PER_STREAM ? held - FO_SLOTS_PER_STREAM : 0;
        open++;
        admitted += f->admitted ? 1 : 0;
        legs += f->count;
        for (uint32_t leg = 0; leg < f->count; leg++) {
            check_leg(m, i, leg);
        }
    }
    FO_ASSERT(open == m->flows_open && admitted == m->admitted && legs == m->live_legs);
    FO_ASSERT(lag == m->lag_used && lag <= m->lag_limit); /* 8 */
    FO_ASSERT(admitted <= m->cfg.max_streams);
    if (m->in_state[FO_SLOT_QUARANTINED] + m->in_state[FO_SLOT_STRANDED] + lent <=
        m->cfg.quarantine_slots) { /* 8: the promise of two can be kept */
        uint32_t owed = 0;
        for (uint32_t i = 0; i < m->flow_count; i++) {
            const fo_flow *f = &m->flows[i];
            if (f->id != 0 && f->admitted && f->held < FO_SLOTS_PER_STREAM) {
                owed += FO_SLOTS_PER_STREAM - f->held;
            }
        }
        FO_ASSERT(m->in_state[FO_SLOT_FREE] >= owed);
    }
}

void fo_machine_check(const fo_machine *m) {
    check_slots(m);
    check_targets(m);
    check_flows(m);
    FO_ASSERT(fo_machine_event_room(m, 0, 0)); /* 7 */
}
