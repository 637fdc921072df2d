/*
 * fo_backend_faulty.c: scripted faults on a simulated clock, over real files.
 *
 * Nothing runs by itself.  Whoever waits drives the step and moves the clock to the next thing that happens, so a deadline of
 * two minutes costs microseconds and one seed is one run.  Operations are carried out with ordinary calls at the simulated
 * moment of their completion: a write that is released late really lands late, with whatever is in its slot then.
 *
 * A journal, if one is asked for, says what the medium has seen and in which order.  It is what a power loss is made from: the
 * files keep every write, so whoever simulates the loss takes back those that no flush has covered.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define LATENCY_MIN_NS 20000ull /* simulated; small, so that tests read well, and scattered, so that order varies */
#define LATENCY_SPREAD_NS 180000ull

typedef struct pending {
    fo_submission submission;
    uint64_t due_ns, order;
    fo_fault fault; /* action 0: none */
    bool busy;
} pending;

typedef struct faulty {
    uint64_t now, random;
    uint64_t order;    /* counts what is handed out and what is carried out, in one sequence */
    pending *pendings; /* by operation index */
    uint32_t *busy;    /* indices of those that are busy, in no order */
    uint32_t busy_count;
    uint64_t power; /* operations until it fails; UINT64_MAX: it does not, 0: it has failed */
    int journal;    /* descriptor, -1: none is kept */
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
    if (f == NULL || (f->pendings = calloc(e->machine.op_count, sizeof *f->pendings)) == NULL ||
        (f->busy = calloc(e->machine.op_count, sizeof *f->busy)) == NULL) {
        free(f != NULL ? f->pendings : NULL);
        free(f);
        (void)snprintf(reason, 160, "no memory for the simulation");
        return -ENOMEM;
    }
    f->now = 1000000000ull; /* not 0: a time of 0 in a test means that somebody forgot to fill it in */
    f->random = e->machine.cfg.seed * 2 + 1;
    f->power = UINT64_MAX;
    f->journal = -1;
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
    f->busy[f->busy_count++] = fo_token_index(s->token);
    p->order = f->order++;
    p->due_ns = f->now + LATENCY_MIN_NS + next_random(f) % LATENCY_SPREAD_NS;
    if (p->fault.action == FO_FAULT_NEVER) {
        p->due_ns = FO_FOREVER;
    } else if (p->fault.action == FO_FAULT_DELAY) {
        p->due_ns = f->now + (uint64_t)p->fault.value;
    }
}

/* ---- the journal ---- */

static void note(fo_engine *e, const pending *p, int64_t medium, int64_t result) {
    faulty *f = e->backend_state;
    const fo_submission *s = &p->submission;
    fo_carried c = {
        .issued = p->order,
        .done = f->order++,
        .ino = e->blocks[s->target]->geometry.ino,
        .offset = s->offset,
        .length = s->length,
        .medium = medium,
        .result = result,
        .target = s->target,
        .kind = s->kind,
        .action = p->fault.action,
    };
    struct iovec parts[2] = {{&c, sizeof c}, {NULL, 0}};
    if (f->journal < 0) {
        return;
    }
    if (s->kind == FO_OP_WRITE && (medium > 0 || medium == -EINPROGRESS)) {
        c.data = medium > 0 ? (uint64_t)medium : s->length;
        parts[1] = (struct iovec){fo_engine_memory(e, s), c.data};
    }
    /* A journal with a hole would prove what is not so. */
    FO_ASSERT(writev(f->journal, parts, 2) == (ssize_t)(sizeof c + c.data));
}

/* What was in flight may have reached the medium or not, whole or in part.  The last record says that it is over. */
static void power_fails(fo_engine *e) {
    faulty *f = e->backend_state;
    fo_carried last = {.medium = -EIO, .result = -EIO, .kind = FO_OP_NONE};
    for (uint32_t i = 0; i < f->busy_count; i++) {
        const pending *p = &f->pendings[f->busy[i]];
        if (p->submission.kind == FO_OP_WRITE) {
            note(e, p, -EINPROGRESS, -EIO);
        }
    }
    last.issued = last.done = f->order++;
    FO_ASSERT(f->journal < 0 || write(f->journal, &last, sizeof last) == (ssize_t)sizeof last);
}

/* ---- carrying out ---- */

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

/* What becomes of the bytes; `result` is what is said of it. */
static int64_t do_faulty(fo_engine *e, const pending *p, int64_t *result) {
    fo_submission s = p->submission;
    fo_block *b = e->blocks[s.target];
    unsigned char *memory = fo_engine_memory(e, &s);
    int64_t medium;
    switch (p->fault.action) {
    case FO_FAULT_ERRNO:
        return *result = -p->fault.value;
    case FO_FAULT_ERRNO_AFTER:
        medium = fo_device_run(b, &s, memory);
        *result = medium < 0 ? medium : -p->fault.value;
        return medium;
    case FO_FAULT_SHORT:
        if ((uint64_t)p->fault.value >= s.length) {
            break;
        }
        if (s.kind == FO_OP_READ && memory != NULL) {
            /* Less is told than is read: what is told must be there, also where it is no multiple of the sector. */
            medium = fo_device_run(b, &s, memory);
            *result = medium < p->fault.value ? medium : p->fault.value;
            return medium;
        }
        s.length = (uint64_t)p->fault.value;
        *result = (int64_t)s.length;
        if (s.length != 0 && s.kind == FO_OP_WRITE) {
            /* A part that is no multiple of the sector cannot be written directly: write what was asked for before it. */
            s.length = s.length / b->geometry.granule * b->geometry.granule;
            medium = s.length != 0 ? fo_device_run(b, &s, memory) : 0;
            *result = medium < 0 ? medium : *result;
            return medium;
        }
        return *result;
    case FO_FAULT_SWALLOW:
        *result = s.kind == FO_OP_WRITE || s.kind == FO_OP_READ ? (int64_t)s.length : 0;
        return 0;
    case FO_FAULT_FLIP:
        FO_ASSERT(((faulty *)e->backend_state)->journal < 0); /* it says what was asked for, which is not what was done */
        return *result = write_flipped(b, &s, memory, (uint64_t)p->fault.value);
    case FO_FAULT_SHIFT:
        FO_ASSERT(((faulty *)e->backend_state)->journal < 0);
        s.offset += (uint64_t)p->fault.value;
        break;
    default:
        break;
    }
    return *result = fo_device_run(b, &s, memory);
}

static int64_t carry_out(fo_engine *e, const pending *p) {
    faulty *f = e->backend_state;
    int64_t medium, result;
    if (f->power == 0 && p->submission.kind != FO_OP_CLOSE) {
        return -EIO;
    }
    medium = do_faulty(e, p, &result);
    if (f->power != 0) {
        note(e, p, medium, result);
        if (f->power != UINT64_MAX && --f->power == 0) {
            power_fails(e);
        }
    }
    return result;
}

/* ---- the clock ---- */

static pending *earliest(fo_engine *e) {
    faulty *f = e->backend_state;
    pending *best = NULL;
    for (uint32_t i = 0; i < f->busy_count; i++) {
        pending *p = &f->pendings[f->busy[i]];
        if (p->due_ns != FO_FOREVER &&
            (best == NULL || p->due_ns < best->due_ns || (p->due_ns == best->due_ns && p->order < best->order))) {
            best = p;
        }
    }
    return best;
}

static void forget_pending(faulty *f, pending *p) {
    uint32_t i = 0;
    while (&f->pendings[f->busy[i]] != p) {
        i++;
    }
    f->busy[i] = f->busy[--f->busy_count];
    p->busy = false;
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
    forget_pending(f, p);
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
        for (uint32_t i = 0; i < f->busy_count; i++) {
            pending *p = &f->pendings[f->busy[i]];
            if (p->due_ns == FO_FOREVER && (target == UINT16_MAX || p->submission.target == target)) {
                p->due_ns = f->now;
                p->fault.action = FO_FAULT_DELAY;
            }
        }
        while (fo_faulty_advance(e, f->now) == 0) {
        }
        fo_engine_leave(e);
    }
    return rc;
}

int fo_faults_journal(fo_engine *e, int fd) {
    int rc = enter_faulty(e);
    if (rc == 0) {
        ((faulty *)e->backend_state)->journal = fd;
        fo_engine_leave(e);
    }
    return rc;
}

int fo_faults_power(fo_engine *e, uint64_t ops) {
    int rc = enter_faulty(e);
    if (rc == 0) {
        faulty *f = e->backend_state;
        bool fails = ops == 0 && f->power != 0;
        rc = f->power == 0 ? -ENODEV : 0;
        f->power = f->power == 0 ? 0 : ops;
        if (fails) {
            power_fails(e);
        }
        fo_engine_leave(e);
    }
    return rc;
}

/* ---- the table ---- */

static void faulty_stop(fo_engine *e) {
    faulty *f = e->backend_state;
    free(f->pendings);
    free(f->busy);
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
