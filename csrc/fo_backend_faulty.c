/*
 * fo_backend_faulty.c: scripted faults on a simulated clock, over real files.
 *
 * Nothing runs by itself.  Whoever waits drives the step and moves the clock to the next thing that happens, so a deadline of
 * two minutes costs microseconds and one seed is one run.  Operations are carried out with ordinary calls at the simulated
 * moment of their completion: a write that is released late really lands late, with whatever is in its slot then.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>

#define LATENCY_MIN_NS 20000ull /* simulated; small, so that tests read well, and scattered, so that order varies */
#define LATENCY_SPREAD_NS 180000ull

typedef struct pending {
    fo_submission submission;
    uint64_t due_ns, order;
    fo_fault fault; /* action 0: none */
    bool busy;
} pending;

typedef struct faulty {
    uint64_t now, random, order;
    pending *pendings; /* by operation index */
    fo_fault *script;
    uint64_t *matched; /* per line of the script: operations that it matched so far */
    uint32_t script_count;
} faulty;

/* xorshift64*: any small generator will do; it has to be the same everywhere. */
static uint64_t next_random(faulty *f) {
    f->random ^= f->random >> 12;
    f->random ^= f->random << 25;
    f->random ^= f->random >> 27;
    return f->random * 0x2545f4914f6cdd1dull;
}

static int faulty_start(fo_engine *e, char reason[160]) {
    faulty *f = calloc(1, sizeof *f);
    if (f == NULL || (f->pendings = calloc(e->machine.op_count, sizeof *f->pendings)) == NULL) {
        free(f);
        (void)snprintf(reason, 160, "no memory for the simulation");
        return -ENOMEM;
    }
    f->now = 1000000000ull; /* not 0: a time of 0 in a test means that somebody forgot to fill it in */
    f->random = e->machine.cfg.seed * 2 + 1;
    (void)next_random(f);
    e->backend_state = f;
    return 0;
}

uint64_t fo_faulty_clock(const fo_engine *e) {
    const faulty *f = e->backend_state;
    return f != NULL ? f->now : 0; /* after the end there is no time */
}

/* ---- the script ---- */

static fo_fault match(faulty *f, const fo_submission *s) {
    fo_fault hit = {0};
    for (uint32_t i = 0; i < f->script_count; i++) {
        const fo_fault *line = &f->script[i];
        if ((line->target != UINT16_MAX && line->target != s->target) || (line->kind != 0 && line->kind != s->kind)) {
            continue;
        }
        f->matched[i]++;
        if (hit.action == 0 && f->matched[i] >= line->nth && f->matched[i] - line->nth < line->count) {
            hit = *line;
        }
    }
    return hit;
}

static void schedule(fo_engine *e, const fo_submission *s) {
    faulty *f = e->backend_state;
    pending *p = &f->pendings[fo_token_index(s->token)];
    FO_ASSERT(!p->busy);
    p->submission = *s;
    p->fault = match(f, s);
    p->busy = true;
    p->order = f->order++;
    p->due_ns = f->now + LATENCY_MIN_NS + next_random(f) % LATENCY_SPREAD_NS;
    if (p->fault.action == FO_FAULT_NEVER) {
        p->due_ns = FO_FOREVER;
    } else if (p->fault.action == FO_FAULT_DELAY) {
        p->due_ns = f->now + (uint64_t)p->fault.value;
    }
}

/* As if the medium had done it: the slot stays what it is. */
static int64_t write_flipped(fo_block *b, const fo_submission *s, const unsigned char *memory, uint64_t index) {
    unsigned char *copy = s->length != 0 && memory != NULL ? aligned_alloc(4096, (s->length + 4095) / 4096 * 4096) : NULL;
    int64_t result;
    if (copy == NULL) {
        return -ENOMEM;
    }
    memcpy(copy, memory, s->length);
    copy[index % s->length] ^= 1;
    result = fo_device_run(b, s, copy);
    free(copy);
    return result;
}

static int64_t carry_out(fo_engine *e, const pending *p) {
    fo_submission s = p->submission;
    fo_block *b = e->blocks[s.target];
    unsigned char *memory = fo_engine_memory(e, &s);
    int64_t result;
    switch (p->fault.action) {
    case FO_FAULT_ERRNO:
        return -p->fault.value;
    case FO_FAULT_ERRNO_AFTER:
        result = fo_device_run(b, &s, memory);
        return result < 0 ? result : -p->fault.value;
    case FO_FAULT_SHORT:
        if ((uint64_t)p->fault.value >= s.length) {
            break;
        }
        s.length = (uint64_t)p->fault.value;
        if (s.length != 0 && (s.kind == FO_OP_WRITE || s.kind == FO_OP_READ) && memory != NULL) {
            /* A part that is no multiple of the sector cannot be written directly: write what was asked for before it. */
            uint64_t whole = s.length / b->geometry.granule * b->geometry.granule;
            fo_submission part = s;
            part.length = whole;
            result = whole != 0 ? fo_device_run(b, &part, memory) : 0;
            return result < 0 ? result : (int64_t)s.length;
        }
        return (int64_t)s.length;
    case FO_FAULT_SWALLOW:
        return s.kind == FO_OP_WRITE || s.kind == FO_OP_READ ? (int64_t)s.length : 0;
    case FO_FAULT_FLIP:
        return write_flipped(b, &s, memory, (uint64_t)p->fault.value);
    case FO_FAULT_SHIFT:
        s.offset += (uint64_t)p->fault.value;
        break;
    default:
        break;
    }
    return fo_device_run(b, &s, memory);
}

/* ---- the clock ---- */

static pending *earliest(fo_engine *e) {
    faulty *f = e->backend_state;
    pending *best = NULL;
    for (uint32_t i = 0; i < e->machine.op_count; i++) {
        pending *p = &f->pendings[i];
        if (p->busy && p->due_ns != FO_FOREVER &&
            (best == NULL || p->due_ns < best->due_ns || (p->due_ns == best->due_ns && p->order < best->order))) {
            best = p;
        }
    }
    return best;
}

static void turn(fo_engine *e, const fo_completion *done, uint32_t count) {
    fo_submission out[FO_BATCH];
    do {
        uint32_t made = fo_engine_turn(e, done, count, out);
        for (uint32_t i = 0; i < made; i++) {
            schedule(e, &out[i]);
        }
        count = 0;
    } while (e->machine.want_step);
    fo_engine_notify(e);
}

void fo_faulty_kick(fo_engine *e) { turn(e, NULL, 0); }

int fo_faulty_advance(fo_engine *e, uint64_t deadline_ns) {
    faulty *f = e->backend_state;
    uint64_t step_ns = fo_machine_deadline(&e->machine);
    pending *p = earliest(e);
    uint64_t next_ns = p != NULL && p->due_ns < step_ns ? p->due_ns : step_ns;
    fo_completion c;
    if (next_ns > deadline_ns || next_ns == FO_FOREVER) {
        if (deadline_ns != FO_FOREVER && deadline_ns > f->now) {
            f->now = deadline_ns;
            turn(e, NULL, 0);
        }
        return -ETIMEDOUT; /* also when nothing will ever happen: a simulation does not hang */
    }
    f->now = next_ns > f->now ? next_ns : f->now;
    if (p == NULL || p->due_ns != next_ns) {
        turn(e, NULL, 0);
        return 0;
    }
    p->busy = false;
    c.token = p->submission.token;
    c.result = carry_out(e, p);
    turn(e, &c, 1);
    return 0;
}

/* ---- fanout.h ---- */

static int enter_faulty(fo_engine *e) {
    int rc = fo_engine_enter(e);
    if (rc == 0 && e->backend->kind != FO_BACKEND_FAULTY) {
        fo_engine_leave(e);
        rc = -EOPNOTSUPP;
    }
    return rc;
}

int fo_faults_set(fo_engine *e, const fo_fault *faults, uint32_t count) {
    fo_fault *script = calloc(count + 1, sizeof *script);
    uint64_t *matched = calloc(count + 1, sizeof *matched);
    int rc = script == NULL || matched == NULL ? -ENOMEM : enter_faulty(e);
    if (rc == 0) {
        faulty *f = e->backend_state;
        free(f->script);
        free(f->matched);
        if (count != 0) {
            memcpy(script, faults, count * sizeof *script);
        }
        f->script = script;
        f->matched = matched;
        f->script_count = count;
        fo_engine_leave(e);
        return 0;
    }
    free(script);
    free(matched);
    return rc;
}

int fo_faults_advance(fo_engine *e, uint64_t ns) {
    int rc = enter_faulty(e);
    if (rc == 0) {
        uint64_t until = fo_engine_after(e, ns);
        fo_faulty_kick(e);
        while (fo_faulty_advance(e, until) == 0) {
        }
        fo_engine_leave(e);
    }
    return rc;
}

int fo_faults_release(fo_engine *e, uint16_t target) {
    int rc = enter_faulty(e);
    if (rc == 0) {
        faulty *f = e->backend_state;
        for (uint32_t i = 0; i < e->machine.op_count; i++) {
            pending *p = &f->pendings[i];
            if (p->busy && p->due_ns == FO_FOREVER && p->submission.target == target) {
                p->due_ns = f->now;
                p->fault.action = 0;
            }
        }
        while (fo_faulty_advance(e, f->now) == 0) {
        }
        fo_engine_leave(e);
    }
    return rc;
}

/* ---- the table ---- */

static void faulty_stop(fo_engine *e) {
    faulty *f = e->backend_state;
    free(f->pendings);
    free(f->script);
    free(f->matched);
    free(f);
    e->backend_state = NULL;
}

/* There is no engine thread, so the rest is never called. */
const fo_backend fo_backend_faulty = {
    .kind = FO_BACKEND_FAULTY,
    .name = "faulty",
    .start = faulty_start,
    .stop = faulty_stop,
};
