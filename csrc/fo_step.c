/*
 * fo_step.c: the step itself.  Completions come in, deadlines are looked at, what may be submitted goes out.
 */
#include "fo_step_parts.h"

#include <errno.h>
#include <string.h>

/* ---- tokens ---- */

static uint64_t token_of(const fo_machine *m, uint32_t op) {
    const fo_op *o = &m->ops[op];
    return (uint64_t)o->target << 56 | (uint64_t)o->kind << 48 | (uint64_t)o->generation << 32 | op;
}

uint32_t fo_token_index(uint64_t token) { return (uint32_t)token; }

/* ---- what a result means ---- */

static bool transient(int err) { return err == EINTR || err == EAGAIN || err == ENOMEM || err == EBUSY; }

static bool may_retry(const fo_machine *m, const fo_op *o) {
    const fo_target *t = &m->targets[o->target];
    const fo_lane_leg *leg = NULL;
    if (o->owner == FO_OWNER_LEG) {
        leg = &m->flows[o->stream].legs[o->leg];
    }
    return (leg == NULL || leg->state == FO_LEG_ACTIVE) &&
           (t->state == FO_TARGET_ACTIVE || o->kind == FO_OP_READ); /* else a flush has failed there: only reads go on */
}

static void wait_until(fo_machine *m, uint32_t op, uint64_t when) {
    fo_op *o = &m->ops[op];
    fo_target *t = &m->targets[o->target];
    o->retry_ns = when;
    t->retry_ns = when < t->retry_ns ? when : t->retry_ns;
    fo_op_move(m, op, FO_OP_WAITING);
}

static void retry(fo_machine *m, uint32_t op, int err) {
    fo_op *o = &m->ops[op];
    const fo_target *t = &m->targets[o->target];
    uint32_t tries = o->attempts - o->resumes;
    uint64_t pause = tries < 8 ? FO_RETRY_MIN_NS << (tries - 1) : FO_RETRY_MAX_NS;
    uint64_t when = m->now + (pause < FO_RETRY_MAX_NS ? pause : FO_RETRY_MAX_NS);
    o->err = err;
    if (!may_retry(m, o) || tries > FO_MAX_RETRIES || when - o->first_ns >= t->hard_ns) {
        fo_op_fail(m, op, FO_OUTCOME_ERROR, err);
        return;
    }
    m->retries++;
    wait_until(m, op, when);
}

/* Some of the bytes.  Go on from the last boundary of the granule: a write that starts between two boundaries would be
 * refused, and one that ends there may have torn the unit. */
static void resume(fo_machine *m, uint32_t op, uint64_t bytes) {
    fo_op *o = &m->ops[op];
    uint64_t granule = m->targets[o->target].granule;
    uint64_t reached = o->done + bytes;
    uint64_t aligned = reached / granule * granule;
    bool at_end = o->kind == FO_OP_READ && reached != aligned; /* the file ends here */
    o->err = 0;
    if (at_end || o->resumes == FO_MAX_RESUMES || !may_retry(m, o)) {
        o->done = reached;
        fo_op_fail(m, op, FO_OUTCOME_SHORT, 0);
        return;
    }
    o->done = aligned;
    o->resumes++;
    m->retries++;
    wait_until(m, op, m->now);
}

static void transferred(fo_machine *m, uint32_t op, int64_t result) {
    fo_op *o = &m->ops[op];
    uint64_t left = o->length - o->done;
    if (result == (int64_t)left) {
        fo_op_succeed(m, op);
    } else if (result > (int64_t)left) {
        fo_op_fail(m, op, FO_OUTCOME_ERROR, EIO); /* a backend that claims more than it was given */
    } else if (result > 0) {
        resume(m, op, (uint64_t)result);
    } else if (o->kind == FO_OP_READ) {
        fo_op_fail(m, op, FO_OUTCOME_SHORT, 0);
    } else {
        fo_op_fail(m, op, FO_OUTCOME_ERROR, EIO); /* zero bytes, without a reason: seen from real devices */
    }
}

static void late(fo_machine *m, uint32_t op, int64_t result) {
    fo_op *o = &m->ops[op];
    uint16_t target = o->target;
    uint8_t kind = o->kind;
    bool data = kind == FO_OP_WRITE || kind == FO_OP_READ;
    bool good = data ? result == (int64_t)(o->length - o->done) : result >= 0;
    fo_outcome outcome;
    if (data && result > 0) {
        o->done += (uint64_t)result;
    }
    outcome = fo_op_outcome(m, o, good ? FO_OUTCOME_LATE_OK : FO_OUTCOME_LATE_ERROR,
                            result < 0 ? (int)-result : 0);
    m->late++;
    fo_event_op(m, FO_EVENT_LATE, o, &outcome);
    fo_op_move(m, op, FO_OP_IDLE);
    if (fo_op_leg(m, o) != NULL) {
        fo_leg_progress(m, o->stream, o->leg);
    }
    m->idle_changed = true;
    if (kind == FO_OP_CLOSE) {
        fo_target_gone(m, target);
    } else {
        fo_target_settle(m, target);
    }
}

static void complete(fo_machine *m, const fo_completion *c) {
    uint32_t op = fo_token_index(c->token);
    fo_op *o;
    if (op >= m->op_count || c->token != token_of(m, op) ||
        (m->ops[op].state != FO_OP_INFLIGHT && m->ops[op].state != FO_OP_ORPHAN)) {
        m->strays++; /* invariant 9 */
        return;
    }
    o = &m->ops[op];
    m->completions++;
    if (o->state == FO_OP_ORPHAN) {
        late(m, op, c->result);
    } else if (c->result >= 0 && (o->kind == FO_OP_WRITE || o->kind == FO_OP_READ)) {
        if (o->slot == FO_NIL) {
            fo_op_succeed(m, op); /* the warm-up read: any number of bytes will do */
        } else {
            transferred(m, op, c->result);
        }
    } else if (c->result >= 0) {
        fo_op_succeed(m, op);
    } else if (transient((int)-c->result) && o->slot != FO_NIL && !o->helper) {
        retry(m, op, (int)-c->result);
    } else {
        fo_op_fail(m, op, FO_OUTCOME_ERROR, (int)-c->result); /* a flush among them: never tried again (invariant 10) */
    }
}

/* ---- deadlines ---- */

static uint64_t add_ns(uint64_t a, uint64_t b) { return a > FO_FOREVER - b ? FO_FOREVER : a + b; }

static void tell_slow(fo_machine *m, fo_op *o) {
    fo_outcome outcome = fo_op_outcome(m, o, FO_OUTCOME_OK, 0);
    if (!o->told) {
        o->told = true;
        fo_event_op(m, FO_EVENT_SLOW, o, &outcome);
    }
}

static void check_deadlines(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    uint64_t next = FO_FOREVER;
    for (uint32_t op = t->inflight.head; op != FO_NIL; op = m->ops[op].next) {
        fo_op *o = &m->ops[op];
        uint64_t soft = add_ns(o->submitted_ns, t->soft_ns);
        uint64_t hard = add_ns(o->submitted_ns, t->hard_ns);
        if (m->now >= hard && hard != FO_FOREVER) {
            fo_target_let_go(m, target, op);
            return;
        }
        if (!o->slow && m->now >= soft && soft != FO_FOREVER) {
            o->slow = true;
            tell_slow(m, o);
            t->watch_ns = t->watch_ns == FO_FOREVER ? m->now : t->watch_ns; /* late: the only one? (fo_slow.c) */
        }
        soft = o->slow || soft > hard ? hard : soft;
        next = soft < next ? soft : next;
    }
    t->check_ns = next;
}

static void begin_anew(fo_machine *m, fo_target *t) {
    uint64_t check = add_ns(m->now, t->soft_ns < t->hard_ns ? t->soft_ns : t->hard_ns);
    for (uint32_t op = t->inflight.head; op != FO_NIL; op = m->ops[op].next) {
        m->ops[op].first_ns = m->ops[op].submitted_ns = m->now;
    }
    for (uint32_t op = t->waiting.head; op != FO_NIL; op = m->ops[op].next) {
        m->ops[op].first_ns = m->now; /* a budget of tries is one of time, too */
    }
    if (t->check_ns != FO_FOREVER) {
        t->check_ns = check;
    }
    t->pace_ns = m->now; /* it was not slow meanwhile */
}

void fo_machine_resume(fo_machine *m, uint64_t now) {
    m->now = now > m->now ? now : m->now;
    for (uint32_t i = 0; i < m->open_count; i++) {
        begin_anew(m, &m->targets[m->open[i]]);
    }
}

/* ---- submission ---- */

typedef struct sink {
    fo_submission *out;
    uint32_t max, made;
} sink;

/* Where it opens or closes, only its own lifecycle operation is queued; where it was let go, none (invariant 5). */
static bool refused(const fo_target *t, const fo_op *o) {
    FO_ASSERT(t->state == FO_TARGET_ACTIVE || t->state == FO_TARGET_FAILED || o->slot == FO_NIL);
    return t->state == FO_TARGET_FAILED && o->kind != FO_OP_READ;
}

static bool past_the_end(const fo_target *t, const fo_op *o) {
    return o->kind == FO_OP_WRITE && (o->length > t->capacity || o->offset > t->capacity - o->length);
}

static void submit(fo_machine *m, uint32_t op, sink *sink) {
    fo_op *o = &m->ops[op];
    fo_target *t = &m->targets[o->target];
    fo_lane_leg *leg = fo_op_leg(m, o);
    fo_submission *s;
    if (refused(t, o)) {
        fo_op_fail(m, op, o->attempts != 0 ? FO_OUTCOME_ERROR : FO_OUTCOME_NOT_SUBMITTED, t->fault);
        return;
    }
    if (past_the_end(t, o)) {
        fo_op_fail(m, op, FO_OUTCOME_ERROR, ENOSPC); /* as the kernel would say, but before a torn write can happen */
        return;
    }
    if (o->attempts++ == 0) {
        o->first_ns = m->now;
        if (leg != NULL) {
            leg->submitted += o->length;
        }
    }
    o->generation++;
    o->submitted_ns = m->now;
    o->slow = false;
    if (o->owner == FO_OWNER_FLUSH) {
        fo_flush_issue(m, o->target);
    } else if (leg != NULL && t->busy == 0) {
        fo_pace_start(m, t);
    }
    fo_op_move(m, op, FO_OP_INFLIGHT);
    if (t->state != FO_TARGET_OPENING) {
        uint64_t check = add_ns(m->now, t->soft_ns < t->hard_ns ? t->soft_ns : t->hard_ns);
        t->check_ns = check < t->check_ns ? check : t->check_ns;
    }
    s = &sink->out[sink->made++];
    s->token = token_of(m, op);
    s->offset = o->offset + o->done;
    s->length = o->length - o->done;
    s->slot = o->slot;
    s->skip = (uint32_t)o->done;
    s->target = o->target;
    s->kind = o->kind;
    s->helper = o->helper;
    s->ahead = o->owner == FO_OWNER_AHEAD;
    m->submissions++;
}

static void submit_waiting(fo_machine *m, fo_target *t, sink *sink) {
    uint64_t next_ns = FO_FOREVER;
    uint32_t next;
    if (m->now < t->retry_ns) {
        return;
    }
    for (uint32_t op = t->waiting.head; op != FO_NIL; op = next) {
        next = m->ops[op].next;
        if (m->ops[op].retry_ns <= m->now && sink->made < sink->max) {
            submit(m, op, sink);
        } else {
            next_ns = m->ops[op].retry_ns < next_ns ? m->ops[op].retry_ns : next_ns;
        }
    }
    t->retry_ns = next_ns;
}

static void start_flush(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    uint32_t op = fo_op_flush(m, target);
    fo_op_plan plan = {.slot = FO_NIL,
                       .stream = FO_NIL,
                       .target = target,
                       .kind = FO_OP_FLUSH,
                       .owner = FO_OWNER_FLUSH,
                       .helper = true};
    if (t->state == FO_TARGET_ACTIVE && t->flush_asked > t->flush_issued && m->ops[op].state == FO_OP_IDLE) {
        fo_op_start(m, op, &plan); /* invariant 10 */
    }
}

/* Requests before retries before new writes: a read never waits behind a full lane, and a lane keeps its order. */
static void serve(fo_machine *m, uint16_t target, sink *sink) {
    fo_target *t = &m->targets[target];
    start_flush(m, target);
    while (t->control.head != FO_NIL && sink->made < sink->max) {
        submit(m, t->control.head, sink);
    }
    submit_waiting(m, t, sink);
    while (t->queued.head != FO_NIL && t->busy < t->depth && sink->made < sink->max) {
        submit(m, t->queued.head, sink);
    }
    FO_ASSERT(t->busy <= t->depth || t->depth == 0); /* invariant 6 */
}

void fo_step(fo_machine *m, uint64_t now, const fo_completion *done, uint32_t count, fo_submission *out, uint32_t max,
             uint32_t *made) {
    sink sink = {out, max, 0};
    m->now = now > m->now ? now : m->now;
    m->steps++;
    m->want_step = false;
    for (uint32_t i = 0; i < count; i++) {
        complete(m, &done[i]);
    }
    for (uint32_t place = 0; place < m->open_count; place++) {
        uint16_t i = m->open[place];
        const fo_target *t = &m->targets[i];
        if (t->state == FO_TARGET_NONE) {
            continue;
        }
        if (m->now >= t->check_ns && t->state != FO_TARGET_OPENING) {
            check_deadlines(m, i);
        }
        if (t->close_wanted) {
            fo_target_settle(m, i);
        }
        if (t->watch_wanted || m->now >= t->watch_ns) {
            fo_slow_judge(m, i);
        }
        serve(m, i, &sink);
    }
    fo_flow_sweep(m);
    m->want_step = m->want_step || sink.made == max;
    *made = sink.made;
}

uint64_t fo_machine_deadline(const fo_machine *m) {
    uint64_t next = FO_FOREVER;
    for (uint32_t i = 0; i < m->open_count; i++) {
        const fo_target *t = &m->targets[m->open[i]];
        if (t->state != FO_TARGET_NONE) {
            next = t->check_ns < next ? t->check_ns : next;
            next = t->watch_ns < next ? t->watch_ns : next;
            next = t->retry_ns < next ? t->retry_ns : next;
        }
    }
    return next;
}

/* ---- life ---- */

static bool power_of_two(uint32_t x) { return x != 0 && (x & (x - 1)) == 0; }

static int check_config(const fo_config *c, char reason[160]) {
    uint64_t promised = (uint64_t)c->max_streams * FO_SLOTS_PER_STREAM + c->control_slots + c->quarantine_slots;
    const char *why = NULL;
    if (!power_of_two(c->slot_size) || c->slot_size < 65536 || c->slot_size > (16u << 20)) {
        why = "slot_size must be a power of two from 64 KiB to 16 MiB";
    } else if (c->max_streams == 0 || c->max_streams > 256) {
        why = "max_streams must be 1 to 256";
    } else if (c->control_slots == 0 || c->control_slots > 256) {
        why = "control_slots must be 1 to 256";
    } else if (c->slot_count > 4096) {
        why = "slot_count must be at most 4096";
    } else if (promised > c->slot_count) {
        (void)snprintf(reason, 160, "slot_count %u is less than 2 * max_streams + control_slots + quarantine_slots = %llu",
                       c->slot_count, (unsigned long long)promised);
        return -EINVAL;
    } else if (c->soft_ns == 0 || c->hard_ns == 0 || c->patience_ns == 0) {
        why = "soft_ns, hard_ns and patience_ns must not be 0";
    }
    if (why != NULL) {
        (void)snprintf(reason, 160, "%s", why);
        return -EINVAL;
    }
    return 0;
}

static uint32_t event_capacity(const fo_machine *m) {
    return FO_EVENT_MARGIN + m->cfg.slot_count * FO_MAX_LEGS * FO_EVENTS_PER_OP +
           m->flow_count * FO_MAX_LEGS * FO_EVENTS_PER_LEG + FO_MAX_TARGETS * FO_EVENTS_PER_TARGET;
}

int fo_machine_init(fo_machine *m, const fo_config *cfg, char reason[160]) {
    int rc;
    memset(m, 0, sizeof *m);
    reason[0] = '\0';
    rc = check_config(cfg, reason);
    if (rc != 0) {
        return rc;
    }
    m->cfg = *cfg;
    m->op_count = cfg->slot_count * FO_MAX_LEGS + FO_MAX_TARGETS * 3;
    m->flow_count = cfg->max_streams * 4; /* sealed streams that wait for a flush hold a record, but no slot */
    m->lag_limit = cfg->slot_count - cfg->max_streams * FO_SLOTS_PER_STREAM - cfg->control_slots - cfg->quarantine_slots;
    m->event_cap = event_capacity(m);
    m->ops = calloc(m->op_count, sizeof *m->ops);
    m->slots = calloc(cfg->slot_count, sizeof *m->slots);
    m->tickets = calloc(cfg->slot_count + FO_MAX_TARGETS, sizeof *m->tickets);
    m->flows = calloc(m->flow_count, sizeof *m->flows);
    m->events = calloc(m->event_cap, sizeof *m->events);
    if (m->ops == NULL || m->slots == NULL || m->tickets == NULL || m->flows == NULL || m->events == NULL) {
        (void)snprintf(reason, 160, "no memory for the books of %u slots", cfg->slot_count);
        fo_machine_free(m);
        return -ENOMEM;
    }
    m->free_head = FO_NIL;
    for (uint32_t i = cfg->slot_count; i-- > 0;) {
        m->slots[i].stream = FO_NIL;
        m->slots[i].next = m->free_head;
        m->free_head = i;
    }
    m->in_state[FO_SLOT_FREE] = cfg->slot_count;
    return 0;
}

void fo_machine_free(fo_machine *m) {
    free(m->ops);
    free(m->slots);
    free(m->tickets);
    free(m->flows);
    free(m->events);
    memset(m, 0, sizeof *m);
}

uint64_t fo_machine_bytes(const fo_machine *m) {
    return sizeof *m + m->op_count * sizeof *m->ops + m->cfg.slot_count * sizeof *m->slots +
           (m->cfg.slot_count + FO_MAX_TARGETS) * sizeof *m->tickets + m->flow_count * sizeof *m->flows +
           m->event_cap * sizeof *m->events;
}
