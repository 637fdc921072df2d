/*
 * fo_event.c: the ring of events.
 *
 * Its size is fixed at open and no event is ever dropped: an operation, a leg and a target are admitted only when the ring
 * has room for all that they, and everything admitted before them, can still cause.  A reader that does not read therefore
 * stops the writers (-ENOBUFS), never the record of what went wrong.
 */
#include "fo_step_parts.h"

#include <string.h>

/* A slot that is being filled becomes an operation for each leg, one that was taken for a request one, and nobody asks again then. */
static uint32_t still_possible(const fo_machine *m) {
    uint32_t to_come = m->in_state[FO_SLOT_FILLING] * FO_MAX_LEGS + m->requests_to_come;
    return (m->live_ops + to_come) * FO_EVENTS_PER_OP + m->live_legs * FO_EVENTS_PER_LEG +
           m->targets_open * FO_EVENTS_PER_TARGET;
}

bool fo_machine_event_room(const fo_machine *m, uint32_t more_ops, uint32_t more_legs) {
    uint64_t wanted = (uint64_t)m->event_count + still_possible(m) + more_ops * FO_EVENTS_PER_OP +
                      more_legs * FO_EVENTS_PER_LEG;
    return wanted <= m->event_cap;
}

/* Ranges that were never written, or that may still land, are told as one event when they touch.  Real errors are not:
 * each has its own offset and errno, and a test can count them. */
static bool merges(const fo_event *a, const fo_event *b) {
    return a->kind == FO_EVENT_FAULT && b->kind == FO_EVENT_FAULT && a->outcome == b->outcome &&
           (b->outcome == FO_OUTCOME_NOT_SUBMITTED || b->outcome == FO_OUTCOME_DETACHED) &&
           a->target == b->target && a->stream == b->stream && a->phase == b->phase && a->err == b->err &&
           b->stream != 0 && a->offset + a->length == b->offset;
}

static void push(fo_machine *m, fo_event *event) {
    event->version = FO_VERSION;
    event->time_ns = m->now;
    event->merged = 1;
    if (m->event_count != 0) {
        fo_event *last = &m->events[(m->event_head + m->event_count - 1) % m->event_cap];
        if (merges(last, event)) {
            last->length += event->length;
            last->done += event->done;
            last->merged++;
            return;
        }
    }
    FO_ASSERT(m->event_count < m->event_cap); /* invariant 7 */
    event->seq = ++m->event_seq;
    m->events[(m->event_head + m->event_count) % m->event_cap] = *event;
    m->event_count++;
    m->state_changed = true;
}

static void fill_target(const fo_machine *m, fo_event *event, uint16_t target) {
    const fo_target *t = &m->targets[target];
    event->target = target;
    event->inflight = t->inflight.count + t->orphans;
    event->lag = t->queued.count + t->busy;
}

void fo_event_op(fo_machine *m, fo_event_kind kind, const fo_op *op, const fo_outcome *outcome) {
    fo_event event;
    memset(&event, 0, sizeof event);
    fill_target(m, &event, op->target);
    event.kind = (uint8_t)kind;
    event.stream = op->owner == FO_OWNER_LEG ? op->stream_id : 0;
    event.offset = outcome->offset;
    event.length = outcome->length;
    event.done = outcome->done;
    event.latency_ns = outcome->latency_ns;
    event.queued_ns = (op->attempts != 0 ? op->first_ns : m->now) - op->queued_ns;
    event.err = outcome->err;
    event.phase = outcome->phase;
    event.outcome = outcome->code;
    event.cls = outcome->cls;
    event.attempts = outcome->attempts;
    push(m, &event);
}

void fo_event_leg(fo_machine *m, fo_event_kind kind, uint32_t flow, uint32_t leg) {
    const fo_flow *f = &m->flows[flow];
    const fo_lane_leg *l = &f->legs[leg];
    fo_event event;
    memset(&event, 0, sizeof event);
    fill_target(m, &event, l->target);
    event.kind = (uint8_t)kind;
    event.stream = f->id;
    event.length = l->accepted;
    event.done = l->completed;
    event.err = l->first.err;
    event.outcome = l->first.code;
    event.cls = l->first.cls;
    event.phase = l->first.phase;
    push(m, &event);
}

void fo_event_laggard(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *why, uint32_t pace) {
    const fo_flow *f = &m->flows[flow];
    uint16_t target = f->legs[leg].target;
    fo_event event;
    memset(&event, 0, sizeof event);
    fill_target(m, &event, target);
    event.kind = FO_EVENT_LAGGARD;
    event.stream = f->id;
    event.offset = why->offset;
    event.length = why->length;
    event.latency_ns = why->latency_ns;
    event.outcome = why->code;
    event.cls = why->cls;
    event.phase = why->phase;
    event.pace = (uint16_t)(pace < UINT16_MAX ? pace : UINT16_MAX);
    event.strikes = (uint8_t)m->targets[target].strikes;
    push(m, &event);
}

uint32_t fo_machine_events(fo_machine *m, fo_event *out, uint32_t max) {
    uint32_t n = 0;
    while (n < max && m->event_count != 0) {
        out[n++] = m->events[m->event_head];
        m->event_head = (m->event_head + 1) % m->event_cap;
        m->event_count--;
    }
    return n;
}
