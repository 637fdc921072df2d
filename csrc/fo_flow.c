/*
 * fo_flow.c: streams, their legs, and what a flush vouches for.
 *
 * A flush vouches for the writes that had completed before it was issued (fo_flush_issue marks them leg by leg) and may
 * overlap others.  Legs that are sealed and idle share one flush per target; the ones that come while it is in flight share
 * the next.  A leg's fault is sticky and its own: neither its siblings on other targets nor other streams on the same
 * target are touched by a failed write.
 */
#include "fo_step_parts.h"

#include <errno.h>
#include <string.h>

static bool leg_idle(const fo_lane_leg *l) { return l->queued == 0 && l->waiting == 0 && l->inflight == 0; }

static bool flow_idle(const fo_flow *f) {
    for (uint32_t i = 0; i < f->count; i++) {
        if (!leg_idle(&f->legs[i])) {
            return false;
        }
    }
    return true;
}

/* ---- faults ---- */

static void note(fo_lane_leg *l, const fo_outcome *outcome) {
    fo_outcome *first = &l->first;
    const bool stopped = first->code == FO_OUTCOME_NOT_SUBMITTED && first->err == ECANCELED;
    if (first->code == FO_OUTCOME_OK) {
        *first = *outcome;
    } else if (stopped && outcome->code != FO_OUTCOME_NOT_SUBMITTED) {
        /* What was in flight when the stream was aborted has failed: who looks for the guilty must find it here. */
        const uint32_t more = first->more + 1;
        *first = *outcome;
        first->more = more;
    } else if (first->code == FO_OUTCOME_NOT_SUBMITTED && outcome->code == FO_OUTCOME_NOT_SUBMITTED &&
               first->offset + first->length == outcome->offset) {
        first->length += outcome->length;
    } else {
        first->more++;
    }
}

/* Nothing more of this leg is handed to the kernel. */
static void drop_queue(fo_machine *m, uint32_t flow, uint32_t leg, int err) {
    fo_target *t = &m->targets[m->flows[flow].legs[leg].target];
    uint32_t next;
    for (uint32_t op = t->waiting.head; op != FO_NIL; op = next) {
        const fo_op *o = &m->ops[op];
        next = o->next;
        if (o->owner == FO_OWNER_LEG && o->stream == flow) { /* no stream has two legs on one target */
            fo_op_fail(m, op, o->err != 0 ? FO_OUTCOME_ERROR : FO_OUTCOME_SHORT, o->err);
        }
    }
    for (uint32_t op = t->queued.head; op != FO_NIL; op = next) {
        next = m->ops[op].next;
        if (m->ops[op].stream == flow) {
            fo_op_fail(m, op, FO_OUTCOME_NOT_SUBMITTED, err);
        }
    }
}

void fo_leg_fault(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *outcome) {
    fo_lane_leg *l = &m->flows[flow].legs[leg];
    note(l, outcome);
    m->state_changed = true;
    if (l->state != FO_LEG_ACTIVE) {
        return;
    }
    l->state = FO_LEG_FAILED;
    drop_queue(m, flow, leg, outcome->err);
    fo_leg_progress(m, flow, leg);
}

/* A decision, not a fault of the target. */
static void stop_leg(fo_machine *m, uint32_t flow, uint32_t leg, fo_leg_state state) {
    fo_lane_leg *l = &m->flows[flow].legs[leg];
    if (l->state != FO_LEG_ACTIVE) {
        return;
    }
    l->state = (uint8_t)state;
    drop_queue(m, flow, leg, ECANCELED);
    if (l->first.code == FO_OUTCOME_OK) {
        l->first.code = FO_OUTCOME_NOT_SUBMITTED;
        l->first.err = ECANCELED;
        l->first.phase = FO_OP_WRITE;
    }
    m->state_changed = true;
    m->sweep = true;
}

/* What is in flight goes on, but its stream no longer waits for it. */
static void strand(fo_machine *m, uint32_t flow, uint32_t leg) {
    const fo_target *t = &m->targets[m->flows[flow].legs[leg].target];
    for (uint32_t op = t->inflight.head; op != FO_NIL; op = m->ops[op].next) {
        fo_op *o = &m->ops[op];
        if (o->owner == FO_OWNER_LEG && o->stream == flow) {
            o->stray = true;
            fo_slot_stray(m, o->slot);
        }
    }
}

void fo_leg_eject(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *why) {
    fo_lane_leg *l = &m->flows[flow].legs[leg];
    if (l->state != FO_LEG_ACTIVE) {
        return;
    }
    if (why != NULL) {
        l->first = *why; /* before its queue is dropped: that is the consequence */
    }
    stop_leg(m, flow, leg, FO_LEG_EJECTED);
    strand(m, flow, leg);
    fo_event_leg(m, FO_EVENT_EJECTED, flow, leg);
    m->slots_changed = true; /* also when no leg is left: a writer that waits has to hear of it */
    fo_leg_progress(m, flow, leg);
}

static void shut_leg(fo_machine *m, uint32_t flow, uint32_t leg, const fo_target *t) {
    fo_lane_leg *l = &m->flows[flow].legs[leg];
    fo_outcome outcome;
    memset(&outcome, 0, sizeof outcome);
    outcome.err = t->fault;
    outcome.cls = (uint8_t)fo_classify(t->fault);
    outcome.code = FO_OUTCOME_NOT_SUBMITTED;
    outcome.phase = FO_OP_WRITE;
    if (l->completed > l->synced) { /* written, and now nobody can say whether it is there */
        outcome.code = t->state == FO_TARGET_FAILED ? FO_OUTCOME_ERROR : FO_OUTCOME_DETACHED;
        outcome.phase = FO_OP_FLUSH;
        outcome.offset = l->base;
        outcome.length = l->completed - l->synced;
    }
    fo_leg_fault(m, flow, leg, &outcome);
}

void fo_legs_shut(fo_machine *m, uint16_t target) {
    for (uint32_t flow = 0; flow < m->flow_count; flow++) {
        fo_flow *f = &m->flows[flow];
        for (uint32_t leg = 0; f->id != 0 && leg < f->count; leg++) {
            if (f->legs[leg].target == target && f->legs[leg].state == FO_LEG_ACTIVE) {
                shut_leg(m, flow, leg, &m->targets[target]);
            }
        }
    }
}

/* ---- progress ---- */

static void leg_synced(fo_machine *m, fo_lane_leg *l) {
    FO_ASSERT(l->synced == l->completed && l->completed == l->accepted); /* invariant 4, and nothing was left out */
    l->state = FO_LEG_SYNCED;
    m->state_changed = true;
    m->sweep = true;
}

void fo_leg_progress(fo_machine *m, uint32_t flow, uint32_t leg) {
    fo_flow *f = &m->flows[flow];
    fo_lane_leg *l = &f->legs[leg];
    fo_target *t = &m->targets[l->target];
    if (!leg_idle(l)) {
        return;
    }
    m->idle_changed = true;
    m->sweep = true;
    if (f->sealed && l->state == FO_LEG_ACTIVE) {
        if (l->completed == l->synced) {
            leg_synced(m, l);
        } else {
            FO_ASSERT(l->flush_ticket == 0); /* sealed and idle: nothing of it moves again */
            l->flush_ticket = t->flush_issued + 1;
            t->flush_asked = l->flush_ticket;
            m->want_step = true;
        }
    }
    if (f->aborted && l->orphans == 0 && !l->drain_told) {
        l->drain_told = true;
        fo_event_leg(m, FO_EVENT_DRAINED, flow, leg);
    }
}

void fo_flow_sweep(fo_machine *m) {
    if (!m->sweep) {
        return;
    }
    m->sweep = false;
    for (uint32_t i = 0; i < m->flow_count; i++) {
        fo_flow *f = &m->flows[i];
        if (f->id == 0) {
            continue;
        }
        if (f->admitted && f->held == 0 && (f->sealed || f->aborted)) {
            f->admitted = false;
            m->admitted--;
            m->slots_changed = true;
        }
        if (f->closed && flow_idle(f)) {
            FO_ASSERT(f->held == 0);
            m->live_legs -= f->count;
            m->flows_open--;
            f->id = 0;
            m->slots_changed = true;
            m->idle_changed = true;
        }
    }
}

/* ---- flushes ---- */

void fo_flush_issue(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    t->flush_issued++;
    for (uint32_t flow = 0; flow < m->flow_count; flow++) {
        fo_flow *f = &m->flows[flow];
        for (uint32_t leg = 0; f->id != 0 && leg < f->count; leg++) {
            if (f->legs[leg].target == target) {
                f->legs[leg].mark = f->legs[leg].completed;
            }
        }
    }
}

/* A stream that was opened after the flush was issued has mark 0, and nothing of it is vouched for. */
void fo_flush_good(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    uint32_t next;
    t->flushes_good++;
    for (uint32_t flow = 0; flow < m->flow_count; flow++) {
        fo_flow *f = &m->flows[flow];
        for (uint32_t leg = 0; f->id != 0 && leg < f->count; leg++) {
            fo_lane_leg *l = &f->legs[leg];
            if (l->target != target) {
                continue;
            }
            l->synced = l->mark > l->synced ? l->mark : l->synced;
            if (l->state == FO_LEG_ACTIVE && l->flush_ticket != 0 && l->flush_ticket <= t->flush_issued) {
                leg_synced(m, l);
            }
        }
    }
    for (uint32_t op = t->flushers.head; op != FO_NIL; op = next) {
        next = m->ops[op].next;
        if (m->ops[op].flush_ticket <= t->flush_issued) {
            fo_op_succeed(m, op);
        }
    }
}

/* ---- inputs ---- */

static int check_targets(const fo_machine *m, const uint16_t *targets, uint32_t count) {
    if (count == 0 || count > FO_MAX_LEGS) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < count; i++) {
        const fo_target *t = &m->targets[targets[i] % FO_MAX_TARGETS];
        if (targets[i] >= FO_MAX_TARGETS || t->state != FO_TARGET_ACTIVE || t->readonly || t->close_wanted ||
            t->leaving) {
            return -EINVAL;
        }
        for (uint32_t j = 0; j < i; j++) {
            if (targets[j] == targets[i]) {
                return -EINVAL;
            }
        }
    }
    return 0;
}

int fo_machine_stream_open(fo_machine *m, const uint16_t *targets, uint32_t count, uint32_t *flow) {
    int rc = check_targets(m, targets, count);
    if (rc != 0) {
        return rc;
    }
    if (m->admitted >= m->cfg.max_streams || m->flows_open == m->flow_count ||
        m->in_state[FO_SLOT_FREE] < FO_SLOTS_PER_STREAM) {
        return -EAGAIN;
    }
    if (!fo_machine_event_room(m, 0, count)) {
        return -ENOBUFS;
    }
    for (*flow = 0; m->flows[*flow].id != 0; ++*flow) {
    }
    fo_flow *f = &m->flows[*flow];
    memset(f, 0, sizeof *f);
    m->next_id = m->next_id == UINT32_MAX ? 1 : m->next_id + 1;
    f->id = m->next_id;
    f->count = count;
    f->admitted = true;
    m->admitted++;
    m->flows_open++;
    m->live_legs += count;
    for (uint32_t i = 0; i < count; i++) {
        f->legs[i].target = targets[i];
        fo_target_ahead(m, targets[i]);
    }
    return 0;
}

void fo_machine_place(fo_machine *m, uint32_t flow, const uint64_t *offsets) {
    fo_flow *f = &m->flows[flow];
    for (uint32_t i = 0; i < f->count; i++) {
        f->legs[i].base = offsets[i];
    }
}

static void publish_leg(fo_machine *m, uint32_t flow, uint32_t leg, uint32_t slot, uint64_t position,
                        uint64_t length) {
    fo_lane_leg *l = &m->flows[flow].legs[leg];
    fo_target *t = &m->targets[l->target];
    fo_op_plan plan = {.offset = l->base + position,
                       .length = length,
                       .slot = slot,
                       .stream = flow,
                       .target = l->target,
                       .kind = FO_OP_WRITE,
                       .owner = FO_OWNER_LEG,
                       .leg = (uint8_t)leg};
    l->accepted += length;
    fo_op_start(m, fo_op_of_slot(slot, leg), &plan);
    m->want_step = m->want_step || t->busy < t->depth;
    if (plan.offset + length > t->ahead_end) {
        t->ahead_end = plan.offset + length;
        fo_target_ahead(m, l->target);
    }
}

void fo_machine_publish(fo_machine *m, uint32_t flow, uint32_t slot, uint64_t position, uint64_t length) {
    fo_flow *f = &m->flows[flow];
    FO_ASSERT(m->slots[slot].state == FO_SLOT_FILLING && m->slots[slot].stream == flow && !f->sealed);
    for (uint32_t leg = 0; leg < f->count; leg++) {
        if (f->legs[leg].state == FO_LEG_ACTIVE) {
            publish_leg(m, flow, leg, slot, position, length);
        }
    }
    if (m->slots[slot].refs == 0) { /* no leg is left */
        fo_machine_give_back(m, slot);
    }
}

void fo_machine_seal(fo_machine *m, uint32_t flow) {
    fo_flow *f = &m->flows[flow];
    if (f->sealed || f->aborted) {
        return;
    }
    f->sealed = true;
    f->starved = false;
    m->sweep = true;
    for (uint32_t leg = 0; leg < f->count; leg++) {
        fo_leg_progress(m, flow, leg);
    }
    fo_flow_sweep(m);
}

void fo_machine_abort(fo_machine *m, uint32_t flow) {
    fo_flow *f = &m->flows[flow];
    if (f->aborted) {
        return;
    }
    f->aborted = true;
    for (uint32_t leg = 0; leg < f->count; leg++) {
        stop_leg(m, flow, leg, FO_LEG_FAILED);
        fo_leg_progress(m, flow, leg);
    }
    m->state_changed = true;
    m->slots_changed = true; /* a writer that waits for a slot has to hear of it */
    m->sweep = true;
    fo_flow_sweep(m);
}

int fo_machine_eject(fo_machine *m, uint32_t flow, uint16_t target) {
    fo_flow *f = &m->flows[flow];
    for (uint32_t leg = 0; leg < f->count; leg++) {
        if (f->legs[leg].target == target) {
            fo_leg_eject(m, flow, leg, NULL);
            fo_flow_sweep(m);
            return 0;
        }
    }
    return -EINVAL;
}

void fo_machine_keep(fo_machine *m, uint32_t flow, uint32_t legs) { m->flows[flow].keep = legs; }

void fo_machine_stream_close(fo_machine *m, uint32_t flow) {
    if (!fo_machine_flow_settled(m, flow) || !m->flows[flow].sealed) {
        fo_machine_abort(m, flow);
    }
    m->flows[flow].closed = true;
    m->sweep = true;
    for (uint32_t leg = 0; leg < m->flows[flow].count; leg++) { /* one that only waited for this closes itself now */
        m->want_step = m->want_step || m->targets[m->flows[flow].legs[leg].target].close_wanted;
    }
    fo_flow_sweep(m);
}

/* ---- looking ---- */

uint32_t fo_machine_failed_mask(const fo_machine *m, uint32_t flow) {
    const fo_flow *f = &m->flows[flow];
    uint32_t mask = 0;
    for (uint32_t i = 0; i < f->count; i++) {
        if (f->legs[i].state == FO_LEG_FAILED || f->legs[i].state == FO_LEG_EJECTED) {
            mask |= 1u << i;
        }
    }
    return mask;
}

bool fo_machine_flow_alive(const fo_machine *m, uint32_t flow) {
    const fo_flow *f = &m->flows[flow];
    return fo_machine_failed_mask(m, flow) != (1u << f->count) - 1;
}

bool fo_machine_flow_settled(const fo_machine *m, uint32_t flow) {
    const fo_flow *f = &m->flows[flow];
    for (uint32_t i = 0; i < f->count; i++) {
        if (f->legs[i].state == FO_LEG_ACTIVE) {
            return false;
        }
    }
    return true;
}

bool fo_machine_flow_drained(const fo_machine *m, uint32_t flow) { return flow_idle(&m->flows[flow]); }

void fo_machine_leg(const fo_machine *m, uint32_t flow, uint32_t leg, fo_leg *out) {
    const fo_lane_leg *l = &m->flows[flow].legs[leg];
    memset(out, 0, sizeof *out);
    out->target = l->target;
    out->state = l->state;
    out->inflight = l->inflight + l->orphans;
    out->drained = leg_idle(l) && l->orphans == 0;
    out->accepted = l->accepted;
    out->submitted = l->submitted;
    out->completed = l->completed;
    out->synced = l->synced;
    out->first = l->first;
}
