/*
 * fo_step_parts.h: what the files of the state machine share with each other and with nobody else.
 *
 *   fo_step.c   the step: completions, deadlines, submission
 *   fo_op.c     one operation's way through its states, with every count that depends on them
 *   fo_slot.c   who may have a slot
 *   fo_flow.c   streams, legs, flushes
 *   fo_lane.c   targets and requests
 *   fo_slow.c   how fast targets are, and who holds up whom
 *   fo_event.c  the event ring
 *   fo_check.c  the invariants
 */
#ifndef FO_STEP_PARTS_H
#define FO_STEP_PARTS_H

#include "fo_assert.h"
#include "fo_step.h"

/* ---- operations (fo_op.c) ---- */

static inline uint32_t fo_op_of_slot(uint32_t slot, uint32_t leg) { return slot * FO_MAX_LEGS + leg; }

/* The three operations that every target has of its own, whatever happens to the slots. */
static inline uint32_t fo_op_life(const fo_machine *m, uint32_t target) {
    return m->cfg.slot_count * FO_MAX_LEGS + target * 3;
}
static inline uint32_t fo_op_flush(const fo_machine *m, uint32_t target) { return fo_op_life(m, target) + 1; }
static inline uint32_t fo_op_ahead(const fo_machine *m, uint32_t target) { return fo_op_life(m, target) + 2; }

/* The ticket of an operation that somebody waits for. */
static inline uint32_t fo_op_ticket(const fo_machine *m, uint32_t op) {
    return m->ops[op].slot != FO_NIL ? m->ops[op].slot : m->cfg.slot_count + m->ops[op].target;
}

/* Takes an idle operation into use: QUEUED. */
typedef struct fo_op_plan {
    uint64_t offset, length;
    uint32_t slot, stream;
    uint16_t target;
    uint8_t kind, owner, leg;
    bool helper;
} fo_op_plan;
void fo_op_start(fo_machine *m, uint32_t op, const fo_op_plan *plan);
/* Moves it to another state and keeps lists and counts of target, leg and slot in step. */
void fo_op_move(fo_machine *m, uint32_t op, fo_op_state state);
fo_outcome fo_op_outcome(const fo_machine *m, const fo_op *op, fo_outcome_code code, int err);
/* The operation ends: everybody who owns it is told, a fault becomes an event. */
void fo_op_succeed(fo_machine *m, uint32_t op);
void fo_op_fail(fo_machine *m, uint32_t op, fo_outcome_code code, int err);
/* The leg that owns the operation, or NULL when its stream is gone or it has another owner. */
fo_lane_leg *fo_op_leg(fo_machine *m, const fo_op *op);

/* ---- slots (fo_slot.c) ---- */

void fo_slot_hold(fo_machine *m, uint32_t slot);
void fo_slot_orphan(fo_machine *m, uint32_t slot, bool stray);
void fo_slot_stray(fo_machine *m, uint32_t slot);
void fo_slot_drop(fo_machine *m, uint32_t slot, bool orphan, bool stray);

/* ---- streams and flushes (fo_flow.c) ---- */

/* Notes a fault on a leg; the first one makes it FAILED and drops its queue. */
void fo_leg_fault(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *outcome);
/* The leg leaves its stream, which gives the slots that are then held by it alone back to its quota. */
void fo_leg_eject(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *why);
/* Something about the leg changed: asks for its flush, tells that it has drained. */
void fo_leg_progress(fo_machine *m, uint32_t flow, uint32_t leg);
/* Gives back admissions and records of streams that need them no longer. */
void fo_flow_sweep(fo_machine *m);
/* Every active leg on the target fails: it was closed (FAILED) or let go (DETACHED). */
void fo_legs_shut(fo_machine *m, uint16_t target);
void fo_flush_issue(fo_machine *m, uint16_t target);
void fo_flush_good(fo_machine *m, uint16_t target);

/* ---- targets and requests (fo_lane.c) ---- */

void fo_ticket_end(fo_machine *m, uint32_t op, const fo_outcome *outcome);
void fo_target_fail(fo_machine *m, uint16_t target, int err);
void fo_target_let_go(fo_machine *m, uint16_t target, uint32_t oldest);
/* After a late completion: a target that nobody wants any more closes itself. */
void fo_target_settle(fo_machine *m, uint16_t target);
void fo_target_gone(fo_machine *m, uint16_t target);
void fo_target_ahead(fo_machine *m, uint16_t target);

/* ---- slow targets (fo_slow.c) ---- */

/* A write is about to be submitted to an idle lane; a write has completed. */
void fo_pace_start(fo_machine *m, fo_target *t);
void fo_pace_done(fo_machine *m, fo_target *t, const fo_op *op);
/* The flow wants a slot and cannot have it: from now on its laggards are looked at. */
void fo_slow_starved(fo_machine *m, uint32_t flow);
/* Looks at a target whose time has come; may eject. */
void fo_slow_judge(fo_machine *m, uint16_t target);

/* ---- events (fo_event.c) ---- */

void fo_event_op(fo_machine *m, fo_event_kind kind, const fo_op *op, const fo_outcome *outcome);
void fo_event_leg(fo_machine *m, fo_event_kind kind, uint32_t flow, uint32_t leg);
void fo_event_laggard(fo_machine *m, uint32_t flow, uint32_t leg, const fo_outcome *why, uint32_t pace);

#endif
