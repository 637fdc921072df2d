/*
 * fo_step.h: the engine's logic as one pure state machine.
 *
 * What it is for.  It decides everything: which slot a stream may fill, which operation goes to which target and when,
 * what a result means, who has failed, who is let go.  The product's engine thread, the simulator and the tests drive the
 * very same code, so one sequence of inputs is one run, bit for bit.
 *
 * What it promises.  No thread, no clock, no system call, no lock, no allocation after fo_machine_init.  Inputs are the
 * fo_machine_* calls and the completions given to fo_step; outputs are submissions, events and the notify flags.
 *
 * What it does not know: file descriptors, memory addresses, backends.  A slot is a number.
 *
 * Operation:
 *
 *            enqueue           submit                  complete, all bytes
 *     IDLE ----------> QUEUED ---------> INFLIGHT ---------------------------> IDLE   (ok)
 *                        |                |  |  |  partial, or transient errno
 *                        |                |  |  +-------> WAITING --retry time--> INFLIGHT
 *                        |                |  |               |
 *       leg failed,      |                |  | error         | budget gone, leg failed
 *       aborted, target  v                |  v               v
 *       failed:  IDLE (NOT_SUBMITTED)     |  IDLE (ERROR, SHORT)
 *                                         |
 *                                         +--hard deadline of the target--> ORPHAN --completion--> IDLE  (LATE)
 *
 * Slot:     FREE -> FILLING -> LIVE -> FREE,   FREE <-> CONTROL
 *           LIVE -> STRANDED (only ejected legs hold it, and orphans) -> FREE
 *           LIVE, STRANDED -> QUARANTINED (only orphans hold it) -> FREE
 * Target:   NONE -> OPENING -> ACTIVE -> FAILED (flush) | DETACHED (hang) -> CLOSING -> NONE
 * Leg:      ACTIVE -> FAILED | EJECTED | SYNCED (all three sticky)
 *
 * Invariants (fo_machine_check asserts them all; the code asserts the cheap ones where they could break):
 *   1. Every slot is in exactly one state, and the counts of the states add up to slot_count.
 *   2. A slot is FREE only when no operation holds it: slot.refs is the number of its operations that are not IDLE.
 *   3. A slot is QUARANTINED exactly when it is held and all that hold it are orphans, and STRANDED exactly when all that hold
 *      it are orphans and operations of ejected legs, at least one of these.
 *   4. accepted >= submitted >= completed >= synced on every leg.
 *   5. No operation is QUEUED or WAITING for a leg that is not ACTIVE, nor INFLIGHT on a target that was let go.
 *   6. A lane has at most `depth` stream writes INFLIGHT or WAITING.
 *   7. Pending events plus the events that live things can still cause fit the ring, so no event is ever dropped.
 *   8. Streams hold max(2, quota) slots at most, the shared lag is never overdrawn by a new grant, and a stream that
 *      holds fewer than two is never refused while the quarantine, and what is lent to requests, fit its reserve.
 *   9. A completion is matched by target, kind, generation and index.  One that matches nothing changes nothing.
 *  10. At most one flush per target is in flight, and none after one has failed.
 *  11. Slowness ejects only legs of targets that may be ejected, none that its stream keeps, and never the last leg.
 */
#ifndef FO_STEP_H
#define FO_STEP_H

#include <stdbool.h>

#include "fanout.h"

#define FO_NIL UINT32_MAX
#define FO_SLOTS_PER_STREAM 2u /* one filling, one in flight: the least that keeps a stream moving */
#define FO_MAX_DEPTH 64u
#define FO_MAX_RESUMES 8u
#define FO_MAX_RETRIES 2000u /* 100 ms apart: above any sensible deadline; a bound all the same */
#define FO_RETRY_MIN_NS 1000000ull
#define FO_RETRY_MAX_NS 100000000ull
#define FO_EVENT_MARGIN 1024u /* unread events before streams are told -ENOBUFS */
#define FO_EVENTS_PER_OP 3u   /* slow, fault, late */
#define FO_EVENTS_PER_LEG 3u  /* laggard, ejected, drained */
#define FO_EVENTS_PER_TARGET 10u
#define FO_STRIKES 3u         /* looks in a row that have to find a target holding up its peers */
#define FO_AHEAD_MIN (64ull << 20) /* growing files: first step of allocation, then doubling */
#define FO_AHEAD_MAX (1024ull << 20)

typedef enum fo_op_state {
    FO_OP_IDLE = 0,
    FO_OP_QUEUED,
    FO_OP_WAITING,
    FO_OP_INFLIGHT,
    FO_OP_ORPHAN,
} fo_op_state;

typedef enum fo_slot_state {
    FO_SLOT_FREE = 0,
    FO_SLOT_FILLING,
    FO_SLOT_LIVE,
    FO_SLOT_CONTROL,
    FO_SLOT_QUARANTINED,
    FO_SLOT_STRANDED,
    FO_SLOT_STATES,
} fo_slot_state;

/* Who is told when an operation ends. */
typedef enum fo_owner {
    FO_OWNER_NONE = 0,
    FO_OWNER_LEG,    /* a stream's leg */
    FO_OWNER_TICKET, /* a caller waits for it */
    FO_OWNER_FLUSH,  /* the target's own flush */
    FO_OWNER_AHEAD,  /* the target's own allocation */
} fo_owner;

typedef struct fo_op {
    uint64_t offset, length;
    uint64_t done; /* confirmed by the kernel, rounded down to the granule between resumes */
    uint64_t queued_ns, first_ns, submitted_ns, retry_ns;
    uint64_t flush_ticket; /* a FLUSH request: the flush that answers it */
    uint32_t next, prev;
    uint32_t slot; /* FO_NIL: none */
    uint32_t stream, stream_id;
    uint32_t attempts;
    int32_t err; /* the last transient errno */
    uint16_t generation, target;
    uint8_t kind, state, owner, leg;
    uint8_t resumes;
    bool slow, helper; /* slow: this attempt is past the soft deadline */
    bool told;         /* that some attempt was: once, so that the ring has room for it (invariant 7) */
    bool stray; /* its leg was ejected while it was in flight */
} fo_op;

typedef struct fo_list {
    uint32_t head, tail, count;
} fo_list;

typedef struct fo_slot {
    uint32_t next, stream;
    uint8_t state, refs, orphans, strays;
    uint8_t width; /* legs that it was published to */
    uint16_t holder; /* CONTROL: the target whose request it serves */
} fo_slot;

/* What a waiting caller gets.  Tickets 0..slots-1 belong to control slots, the rest to one lifecycle operation per target. */
typedef struct fo_ticket {
    fo_outcome outcome;
    bool busy, done;
} fo_ticket;

typedef struct fo_target {
    uint8_t state;
    bool block, grow, readonly, close_wanted;
    bool leaving; /* a caller is finishing or closing it: no stream may begin on it */
    uint32_t depth, granule;
    uint64_t soft_ns, hard_ns;
    uint64_t capacity; /* block devices: bytes; else UINT64_MAX */
    fo_list queued;    /* stream writes, in order of publication */
    fo_list control;   /* requests: before the writes, and outside of the depth */
    fo_list waiting;   /* to be submitted again */
    fo_list inflight;  /* in the kernel, oldest first */
    fo_list flushers;  /* FLUSH requests that wait for flush_ticket */
    uint32_t busy;     /* stream writes INFLIGHT or WAITING */
    uint32_t orphans;
    uint64_t check_ns, retry_ns; /* not before these there is a deadline or a retry to look at */
    /* How fast it is: writes of streams only.  Bytes and busy time fade alike, so their quotient is a rate. */
    uint64_t pace_ns, pace_bytes, pace_time, latency_ns;
    /* Whether it holds up its peers (fo_slow.c). */
    uint64_t patience_ns, watch_ns, judged_ns;
    uint32_t strikes;
    bool eject_slow, watch_wanted;
    int32_t fault;               /* errno that closed the target */
    uint64_t flush_asked, flush_issued, flushes_good;
    uint64_t allocated, ahead_step, ahead_end;
} fo_target;

typedef struct fo_lane_leg {
    fo_outcome first;
    uint64_t base; /* offset on the target of position 0 of the current place */
    uint64_t accepted, submitted, completed, synced;
    uint64_t mark; /* completed when the flush now in flight was issued */
    uint64_t flush_ticket;
    uint32_t queued, waiting, inflight, orphans;
    uint16_t target;
    uint8_t state;
    bool drain_told, accused;
} fo_lane_leg;

typedef struct fo_flow {
    uint32_t id; /* 0: this record is free */
    uint32_t count, held;
    uint32_t keep; /* legs that are not ejected for being slow */
    bool sealed, aborted, closed, admitted;
    bool starved; /* wants a slot and has not got it */
    fo_lane_leg legs[FO_MAX_LEGS];
} fo_flow;

typedef struct fo_submission {
    uint64_t token;
    uint64_t offset, length;
    uint32_t slot, skip; /* memory: byte `skip` of the slot */
    uint16_t target;
    uint8_t kind;
    bool helper; /* may block: never on the engine thread, never on the ring */
    bool ahead;  /* ALLOCATE: writes go on beside it */
} fo_submission;

typedef struct fo_completion {
    uint64_t token;
    int64_t result; /* bytes, or negative errno */
} fo_completion;

typedef struct fo_machine {
    fo_config cfg;
    uint64_t now;
    fo_op *ops;
    fo_slot *slots;
    fo_ticket *tickets;
    fo_flow *flows;
    fo_target targets[FO_MAX_TARGETS];
    uint16_t open[FO_MAX_TARGETS]; /* targets in the order in which they came; some may be NONE again */
    uint32_t open_count;
    uint32_t op_count, flow_count;
    uint32_t free_head, in_state[FO_SLOT_STATES];
    uint32_t lag_limit, lag_used;
    uint32_t lagging; /* LIVE slots that a target is through with */
    uint32_t admitted, flows_open, targets_open, live_ops, live_legs;
    uint32_t requests_to_come; /* control slots that were taken for one */
    uint32_t next_id, next_target;
    /* events */
    fo_event *events;
    uint32_t event_cap, event_head, event_count;
    uint64_t event_seq;
    /* notify flags: set by inputs and steps, cleared by whoever acts on them */
    bool slots_changed, state_changed, idle_changed, want_step;
    bool sweep; /* a stream's record may have become free */
    bool let_go[FO_MAX_TARGETS], gone[FO_MAX_TARGETS]; /* targets: detached since; back to NONE since */
    bool unsettled; /* one of these is set */
    uint64_t steps, submissions, completions, retries, late, strays;
} fo_machine;

/* ---- life ------------------------------------------------------------------------------------------------------ */

/* -EINVAL with a reason (one sentence), -ENOMEM. */
int fo_machine_init(fo_machine *m, const fo_config *cfg, char reason[160]);
void fo_machine_free(fo_machine *m);
uint64_t fo_machine_bytes(const fo_machine *m);
/* Asserts every invariant.  Slow: for tests. */
void fo_machine_check(const fo_machine *m);

/* ---- the step -------------------------------------------------------------------------------------------------- */

/* Takes in completions, looks at deadlines, hands out what may be submitted now (at most max; call again while *made == max). */
void fo_step(fo_machine *m, uint64_t now, const fo_completion *done, uint32_t count, fo_submission *out, uint32_t max,
             uint32_t *made);
/* This process did not run for a while, and nobody could look: what is in flight may have ended long ago.  For it time begins anew. */
void fo_machine_resume(fo_machine *m, uint64_t now);
/* When the next step is due without any input; FO_FOREVER: never. */
uint64_t fo_machine_deadline(const fo_machine *m);
/* Index of the operation that a token names. */
uint32_t fo_token_index(uint64_t token);

/* ---- slots ----------------------------------------------------------------------------------------------------- */

bool fo_machine_may_take(const fo_machine *m, uint32_t flow);
/* FO_NIL: none now.  That a stream starves is evidence against its laggards, so a step may be wanted. */
uint32_t fo_machine_take(fo_machine *m, uint32_t flow);
void fo_machine_give_back(fo_machine *m, uint32_t slot);
/* For a request to that target.  FO_NIL: none now. */
uint32_t fo_machine_take_control(fo_machine *m, uint16_t target);

/* ---- targets --------------------------------------------------------------------------------------------------- */

/* -EMFILE: FO_MAX_TARGETS are open. */
int fo_machine_target_new(fo_machine *m, uint16_t *id);
/* Starts the target's one lifecycle operation; the ticket is fo_machine_life_ticket. */
void fo_machine_life(fo_machine *m, uint16_t target, uint8_t kind, uint64_t offset, uint64_t length);
uint32_t fo_machine_life_ticket(const fo_machine *m, uint16_t target);
void fo_machine_target_ready(fo_machine *m, uint16_t target, const fo_geometry *geometry, const fo_open *opt);
/* Nobody waits for this target any more: it takes nothing new, and closes itself after the last completion, when no stream
 * uses it. */
void fo_machine_target_abandon(fo_machine *m, uint16_t target);
/* A target that could not be opened: back to NONE without any operation. */
void fo_machine_target_forget(fo_machine *m, uint16_t target);
bool fo_machine_target_used(const fo_machine *m, uint16_t target);
/* Bytes per second that it takes while writes of streams are in flight. */
uint64_t fo_machine_target_rate(const fo_machine *m, uint16_t target);
/* Looks that found it holding up its peers, less those that time has taken back. */
uint32_t fo_machine_target_strikes(const fo_machine *m, uint16_t target, uint64_t now);
bool fo_machine_target_idle(const fo_machine *m, uint16_t target);

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* Starts one request on a control slot; the ticket is the slot's number. */
void fo_machine_request(fo_machine *m, uint32_t slot, const fo_request *request);
/* The caller has read the ticket. */
void fo_machine_collect(fo_machine *m, uint32_t ticket);

/* ---- streams --------------------------------------------------------------------------------------------------- */

/* -EAGAIN: not admitted now; -EINVAL: see fo_stream_open; -ENOBUFS. */
int fo_machine_stream_open(fo_machine *m, const uint16_t *targets, uint32_t count, uint32_t *flow);
void fo_machine_place(fo_machine *m, uint32_t flow, const uint64_t *offsets);
/* Bytes [position, position+length) of the place, in this slot, go to every active leg. */
void fo_machine_publish(fo_machine *m, uint32_t flow, uint32_t slot, uint64_t position, uint64_t length);
void fo_machine_seal(fo_machine *m, uint32_t flow);
void fo_machine_abort(fo_machine *m, uint32_t flow);
int fo_machine_eject(fo_machine *m, uint32_t flow, uint16_t target);
void fo_machine_keep(fo_machine *m, uint32_t flow, uint32_t legs);
/* No handle any more: the record goes when nothing is in flight on an attached target. */
void fo_machine_stream_close(fo_machine *m, uint32_t flow);
uint32_t fo_machine_failed_mask(const fo_machine *m, uint32_t flow);
bool fo_machine_flow_alive(const fo_machine *m, uint32_t flow); /* a leg is active */
bool fo_machine_flow_settled(const fo_machine *m, uint32_t flow); /* every leg is synced or failed */
bool fo_machine_flow_drained(const fo_machine *m, uint32_t flow); /* nothing in flight on an attached target */
void fo_machine_leg(const fo_machine *m, uint32_t flow, uint32_t leg, fo_leg *out);

/* ---- events ---------------------------------------------------------------------------------------------------- */

/* True when `more` further operations can be admitted without any risk to an event. */
bool fo_machine_event_room(const fo_machine *m, uint32_t more_ops, uint32_t more_legs);
uint32_t fo_machine_events(fo_machine *m, fo_event *out, uint32_t max);

#endif
