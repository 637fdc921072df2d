/*
 * fo_slot.c: who may have a slot.
 *
 * All slots are alike; what differs is the promise.  Of slot_count,
 *
 *     2 * max_streams    are promised to streams, two each, so that a stalled client can hold up nobody but itself;
 *     control_slots      are promised to requests, so that a read never waits for a writer; one target never has them all;
 *     quarantine_slots   are set aside to be lost to targets that hang (quarantined) or were ejected (stranded), and lent, one each, to
 *                        targets without a request when the others' requests have all control slots;
 *     the rest           is lag, shared evenly among the admitted streams: what lets one target run behind another.
 *
 * When more is lost than was set aside, the lag pays first.  Only when that is gone too can a promise become a wait.
 */
#include "fo_step_parts.h"

/* Some target is through with it, and others hold it still. */
static uint32_t lagging(const fo_slot *s) { return s->state == FO_SLOT_LIVE && s->refs < s->width ? 1 : 0; }

static void set_state(fo_machine *m, uint32_t slot, fo_slot_state state) {
    m->in_state[m->slots[slot].state]--;
    m->slots[slot].state = (uint8_t)state;
    m->in_state[state]++;
}

static uint32_t pop_free(fo_machine *m, fo_slot_state state) {
    uint32_t slot = m->free_head;
    FO_ASSERT(slot != FO_NIL && m->slots[slot].refs == 0); /* invariant 2 */
    m->free_head = m->slots[slot].next;
    set_state(m, slot, state);
    return slot;
}

/* Last in, first out: the slot that was used last is the one that is still in the cache. */
static void push_free(fo_machine *m, uint32_t slot) {
    FO_ASSERT(m->slots[slot].refs == 0 && m->slots[slot].orphans == 0 && m->slots[slot].strays == 0); /* invariant 2 */
    set_state(m, slot, FO_SLOT_FREE);
    m->slots[slot].width = 0;
    m->slots[slot].stream = FO_NIL;
    m->slots[slot].next = m->free_head;
    m->free_head = slot;
    m->slots_changed = true;
}

static void unhold(fo_machine *m, uint32_t slot) {
    fo_flow *f = &m->flows[m->slots[slot].stream];
    FO_ASSERT(f->id != 0 && f->held != 0);
    if (f->held > FO_SLOTS_PER_STREAM) {
        m->lag_used--;
    }
    f->held--;
}

/* What the quarantine's reserve has to make good. */
static uint32_t lost(const fo_machine *m) {
    uint32_t control = m->in_state[FO_SLOT_CONTROL];
    uint32_t lent = control > m->cfg.control_slots ? control - m->cfg.control_slots : 0;
    return m->in_state[FO_SLOT_QUARANTINED] + m->in_state[FO_SLOT_STRANDED] + lent;
}

bool fo_machine_may_take(const fo_machine *m, uint32_t flow) {
    const fo_flow *f = &m->flows[flow];
    uint32_t beyond = lost(m) > m->cfg.quarantine_slots ? lost(m) - m->cfg.quarantine_slots : 0;
    uint32_t lag = m->lag_limit > beyond ? m->lag_limit - beyond : 0;
    FO_ASSERT(f->admitted);
    if (m->in_state[FO_SLOT_FREE] == 0) {
        return false;
    }
    if (f->held < FO_SLOTS_PER_STREAM) {
        return true;
    }
    return m->lag_used < lag && f->held - FO_SLOTS_PER_STREAM < (lag + m->admitted - 1) / m->admitted;
}

uint32_t fo_machine_take(fo_machine *m, uint32_t flow) {
    uint32_t slot;
    if (!fo_machine_may_take(m, flow)) {
        fo_slow_starved(m, flow);
        return FO_NIL;
    }
    m->flows[flow].starved = false;
    slot = pop_free(m, FO_SLOT_FILLING);
    m->slots[slot].stream = flow;
    if (++m->flows[flow].held > FO_SLOTS_PER_STREAM) {
        m->lag_used++;
    }
    return slot;
}

void fo_machine_give_back(fo_machine *m, uint32_t slot) {
    FO_ASSERT(m->slots[slot].state == FO_SLOT_FILLING);
    unhold(m, slot);
    push_free(m, slot);
    fo_flow_sweep(m);
}

static bool has_control(const fo_machine *m, uint16_t target) {
    for (uint32_t slot = 0; slot < m->cfg.slot_count; slot++) {
        if (m->slots[slot].state == FO_SLOT_CONTROL && m->slots[slot].holder == target) {
            return true;
        }
    }
    return false;
}

/* Requests that hang would keep all the others waiting until the hard deadline of their targets.  So the last one is for a target that
 * has none yet, and so is what hung targets may cost anyway: these requests may be on their way there. */
static bool may_take_control(const fo_machine *m, uint16_t target) {
    uint32_t taken = m->in_state[FO_SLOT_CONTROL];
    if (m->in_state[FO_SLOT_FREE] == 0) {
        return false;
    }
    if (taken + 1 < m->cfg.control_slots) {
        return true;
    }
    return !has_control(m, target) && (taken < m->cfg.control_slots || lost(m) < m->cfg.quarantine_slots);
}

uint32_t fo_machine_take_control(fo_machine *m, uint16_t target) {
    uint32_t slot;
    if (!may_take_control(m, target)) {
        return FO_NIL;
    }
    slot = pop_free(m, FO_SLOT_CONTROL);
    m->slots[slot].holder = target;
    m->requests_to_come++;
    m->tickets[slot].busy = true;
    m->tickets[slot].done = false;
    return slot;
}

void fo_machine_collect(fo_machine *m, uint32_t ticket) {
    FO_ASSERT(m->tickets[ticket].busy);
    m->tickets[ticket].busy = false;
    if (ticket < m->cfg.slot_count && m->slots[ticket].refs == 0) {
        push_free(m, ticket);
    }
}

void fo_slot_hold(fo_machine *m, uint32_t slot) {
    m->slots[slot].refs++;
    m->slots[slot].width++;
    if (m->slots[slot].state == FO_SLOT_FILLING) {
        set_state(m, slot, FO_SLOT_LIVE);
    }
}

/* Nobody of its stream waits for this slot any more when only orphans and strays hold it (invariant 3). */
static void let_go_of(fo_machine *m, uint32_t slot) {
    fo_slot *s = &m->slots[slot];
    fo_slot_state state = s->strays != 0 ? FO_SLOT_STRANDED : FO_SLOT_QUARANTINED;
    FO_ASSERT(s->refs != 0);
    if (s->refs != s->orphans + s->strays || s->state == state) {
        return;
    }
    if (s->state == FO_SLOT_LIVE) {
        unhold(m, slot);
    }
    set_state(m, slot, state);
    m->slots_changed = true; /* its stream may take another one in its place */
}

void fo_slot_orphan(fo_machine *m, uint32_t slot, bool stray) {
    fo_slot *s = &m->slots[slot];
    uint32_t before = lagging(s);
    s->orphans++;
    if (stray) {
        s->strays--;
    }
    let_go_of(m, slot);
    m->lagging += lagging(s) - before;
}

void fo_slot_stray(fo_machine *m, uint32_t slot) {
    uint32_t before = lagging(&m->slots[slot]);
    m->slots[slot].strays++;
    let_go_of(m, slot);
    m->lagging += lagging(&m->slots[slot]) - before;
}

void fo_slot_drop(fo_machine *m, uint32_t slot, bool orphan, bool stray) {
    fo_slot *s = &m->slots[slot];
    uint32_t before = lagging(s);
    FO_ASSERT(s->refs != 0 && (!orphan || s->orphans != 0) && (!stray || s->strays != 0));
    s->refs--;
    if (orphan) {
        s->orphans--;
    }
    if (stray) {
        s->strays--;
    }
    if (s->refs != 0) {
        let_go_of(m, slot);
    } else if (s->state == FO_SLOT_LIVE) {
        unhold(m, slot);
        push_free(m, slot);
    } else if (!m->tickets[slot].busy) {
        push_free(m, slot);
    }
    /* Else a caller has yet to read its ticket (and, after a read, the bytes): fo_machine_collect frees the slot. */
    m->lagging += lagging(s) - before;
}
