/*
 * fo_engine.c: the engine thread, waiting and waking, events.  Opening and closing are in fo_life.c.
 *
 * The engine thread is a loop round fo_step: take in what completed, step, hand out what may be submitted, wait until something
 * completes, somebody wakes it, or the next deadline.  It holds the mutex for the step alone, and never calls anything that
 * can block on a device.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define ABSENCE_NS 1000000000ull /* the engine thread later than that has not run; one that waits for a processor is less late */

/* ---- time ---- */

static uint64_t monotonic_ns(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

uint64_t fo_engine_clock(const fo_engine *e) {
    return e->backend->kind == FO_BACKEND_FAULTY ? fo_faulty_clock(e) : monotonic_ns();
}

uint64_t fo_engine_after(const fo_engine *e, uint64_t timeout_ns) {
    uint64_t now = fo_engine_clock(e);
    return timeout_ns > FO_FOREVER - now ? FO_FOREVER : now + timeout_ns;
}

/* ---- waiting and waking ---- */

void fo_engine_wake(fo_engine *e) {
    uint64_t one = 1;
    if (e->sleeping) {
        e->sleeping = false; /* once is enough: it looks at everything when it comes back */
        e->wakeups++;
        (void)!write(e->wake_fd, &one, sizeof one); /* cannot fail: the counter is far from full */
    }
}

void fo_engine_post(fo_engine *e, uint64_t token, int64_t result) {
    if (e->stopping) {
        return; /* the books are closed */
    }
    FO_ASSERT(e->inbox_count < e->machine.op_count); /* at most one per operation */
    e->inbox[e->inbox_count++] = (fo_completion){token, result};
    fo_engine_wake(e);
}

void fo_engine_fire(fo_engine *e) {
    uint64_t one = 1;
    for (uint32_t i = 0; i < e->watch_count; i++) {
        (void)!write(e->watches[i], &one, sizeof one);
    }
    e->watch_count = 0;
}

void fo_engine_notify(fo_engine *e) {
    fo_machine *m = &e->machine;
    uint64_t one = 1;
    if (m->slots_changed && e->slots_waiting != 0) {
        (void)pthread_cond_broadcast(&e->slots_cond);
    }
    if ((m->state_changed || m->idle_changed) && e->state_waiting != 0) {
        (void)pthread_cond_broadcast(&e->state_cond);
    }
    if (m->state_changed && e->event_fd >= 0 && !e->event_set) {
        e->event_set = true;
        (void)!write(e->event_fd, &one, sizeof one);
    }
    if (e->watch_count != 0 && (m->slots_changed || m->state_changed || m->idle_changed)) {
        fo_engine_fire(e);
    }
    m->slots_changed = m->state_changed = m->idle_changed = false;
}

void fo_engine_kick(fo_engine *e) {
    if (e->stopping) {
        return; /* nobody is left to act on it */
    }
    if (e->backend->kind == FO_BACKEND_FAULTY) {
        fo_faulty_kick(e);
        return;
    }
    if (e->machine.want_step) {
        fo_engine_wake(e);
    }
    fo_engine_notify(e);
}

/* In parts, so that it is known when this thread has not run: a part that ends too late was none. */
static int wait_until(fo_engine *e, pthread_cond_t *cond, uint64_t *deadline_ns) {
    uint64_t began = monotonic_ns(), until = began + ABSENCE_NS, now;
    struct timespec ts;
    until = until < *deadline_ns ? until : *deadline_ns;
    if (began >= until) {
        return -ETIMEDOUT;
    }
    ts.tv_sec = (time_t)(until / 1000000000ull);
    ts.tv_nsec = (long)(until % 1000000000ull);
    (void)pthread_cond_timedwait(cond, &e->mutex, &ts);
    now = monotonic_ns();
    if (now > until + ABSENCE_NS) {
        *deadline_ns += now - began;
    }
    return 0;
}

static int wait_on(fo_engine *e, pthread_cond_t *cond, uint32_t *waiting, uint64_t *deadline_ns) {
    int rc = 0;
    if (e->stopping) {
        return -ETIMEDOUT;
    }
    if (e->backend->kind == FO_BACKEND_FAULTY) {
        return fo_faulty_advance(e, deadline_ns != NULL ? *deadline_ns : FO_FOREVER);
    }
    ++*waiting;
    if (deadline_ns == NULL || *deadline_ns > INT64_MAX) { /* for centuries */
        (void)pthread_cond_wait(cond, &e->mutex);
    } else {
        rc = wait_until(e, cond, deadline_ns);
    }
    --*waiting;
    return rc;
}

int fo_engine_wait_slots(fo_engine *e, uint64_t *deadline_ns) {
    return wait_on(e, &e->slots_cond, &e->slots_waiting, deadline_ns);
}

int fo_engine_wait_state(fo_engine *e, uint64_t *deadline_ns) {
    return wait_on(e, &e->state_cond, &e->state_waiting, deadline_ns);
}

/* A caller that waits inside holds a reference: closing the engine meanwhile sends it home, it does not pull the floor away. */
int fo_engine_enter(fo_engine *e) {
    if (atomic_load(&e->dead)) {
        return -EOWNERDEAD;
    }
    (void)pthread_mutex_lock(&e->mutex);
    if (e->closing) {
        (void)pthread_mutex_unlock(&e->mutex);
        return -ESHUTDOWN;
    }
    fo_engine_ref(e);
    return 0;
}

void fo_engine_leave(fo_engine *e) { fo_engine_unlock_unref(e); }

/* ---- the turn ---- */

unsigned char *fo_engine_memory(const fo_engine *e, const fo_submission *s) {
    return s->slot == FO_NIL ? NULL : e->arena.base + (size_t)s->slot * e->machine.cfg.slot_size + s->skip;
}

/* What a step decided about targets: workers of one that was let go start nothing more, one that is gone is forgotten. */
void fo_engine_settle(fo_engine *e) {
    fo_machine *m = &e->machine;
    if (!m->unsettled) {
        return;
    }
    m->unsettled = false;
    for (uint32_t i = 0; i < FO_MAX_TARGETS; i++) {
        fo_block *b = e->blocks[i];
        if (b != NULL && m->let_go[i]) {
            fo_pool_cancel(&b->helper);
            fo_pool_cancel(&b->lane);
        }
        if (b != NULL && m->gone[i]) {
            e->blocks[i] = NULL;
            fo_block_retire(b);
        }
        m->let_go[i] = m->gone[i] = false;
    }
}

uint32_t fo_engine_turn(fo_engine *e, const fo_completion *done, uint32_t count, fo_submission *out) {
    uint32_t made;
    fo_step(&e->machine, fo_engine_clock(e), done, count, out, FO_BATCH, &made);
    fo_engine_settle(e);
    return made;
}

/* Hands the submissions out; those for workers under the mutex, those for the ring after it. */
static void dispatch(fo_engine *e, fo_submission *s, uint32_t count) {
    uint32_t data = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (s[i].kind == FO_OP_CLOSE) {
            e->backend->forget(e, s[i].target);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!s[i].helper) {
            s[data++] = s[i];
            continue;
        }
        (void)pthread_mutex_lock(&e->mutex);
        {
            int rc = fo_pool_push(&e->blocks[s[i].target]->helper, &s[i]);
            if (rc != 0) {
                fo_engine_post(e, s[i].token, rc);
            }
        }
        (void)pthread_mutex_unlock(&e->mutex);
    }
    if (data != 0) {
        e->backend->submit(e, s, data);
    }
}

/* What the backend reaped, and what workers posted. */
static uint32_t turn_all(fo_engine *e, const fo_completion *done, uint32_t reaped, fo_submission *out) {
    uint32_t made = 0, more = 0;
    if (e->inbox_count != 0) {
        fo_step(&e->machine, fo_engine_clock(e), e->inbox, e->inbox_count, out, FO_BATCH, &made);
        e->inbox_count = 0;
    }
    if (reaped != 0 || made == 0) {
        fo_step(&e->machine, fo_engine_clock(e), done, reaped, out + made, FO_BATCH - made, &more);
    }
    fo_engine_settle(e); /* may post again: jobs that were cancelled */
    fo_engine_notify(e);
    return made + more;
}

/* A process can be stopped (from a terminal, by a debugger), and a container frozen, for hours.  Then no device is to blame. */
static void notice_absence(fo_engine *e, uint64_t expected) {
    uint64_t now = fo_engine_clock(e);
    if (now > expected && now - expected > ABSENCE_NS) {
        fo_machine_resume(&e->machine, now);
    }
}

static void serve(fo_engine *e) {
    fo_completion done[FO_BATCH];
    fo_submission out[FO_BATCH];
    uint64_t expected = FO_FOREVER; /* the next turn, at the latest */
    while (true) {
        uint32_t reaped = e->backend->reap(e, done, FO_BATCH);
        uint32_t made;
        uint64_t deadline;
        (void)pthread_mutex_lock(&e->mutex);
        e->sleeping = false;
        notice_absence(e, expected);
        made = turn_all(e, done, reaped, out);
        if (e->stopping) {
            (void)pthread_mutex_unlock(&e->mutex);
            return;
        }
        deadline = e->machine.want_step || e->inbox_count != 0 ? 0 : fo_machine_deadline(&e->machine);
        expected = deadline > e->machine.now ? deadline : e->machine.now;
        e->sleeping = true;
        (void)pthread_mutex_unlock(&e->mutex);
        dispatch(e, out, made);
        e->backend->wait(e, deadline);
    }
}

/* They stay in the list: a caller who waits for one is not told that it has closed. */
void fo_engine_retire(fo_engine *e) {
    for (uint32_t i = 0; i < FO_MAX_TARGETS; i++) {
        if (e->blocks[i] != NULL) {
            fo_block_retire(e->blocks[i]);
        }
    }
}

static void end_serving(fo_engine *e) {
    (void)pthread_mutex_lock(&e->mutex);
    e->serving = false;
    if (e->left) {
        fo_engine_retire(e);
    }
    (void)pthread_mutex_unlock(&e->mutex);
}

void *fo_engine_main(void *arg) {
    fo_engine *e = arg;
    char reason[160] = "";
    int rc = e->backend->start(e, reason);
    (void)pthread_mutex_lock(&e->mutex);
    e->start_rc = rc;
    e->running = true;
    e->serving = rc == 0;
    if (rc != 0) {
        (void)memcpy(e->reason, reason, sizeof e->reason);
    }
    (void)pthread_cond_broadcast(&e->state_cond);
    (void)pthread_mutex_unlock(&e->mutex);
    if (rc == 0) {
        serve(e);
        end_serving(e);
        e->backend->stop(e);
        (void)pthread_mutex_lock(&e->mutex);
        fo_engine_unlock_unref(e);
    }
    return NULL;
}

/* ---- looking ---- */

int fo_engine_dead(const fo_engine *e) { return atomic_load(&e->dead) ? 1 : 0; }

void fo_engine_look(fo_engine *e) {
    char reason[160] = "";
    uint32_t huge;
    if (atomic_load(&e->dead)) {
        return;
    }
    (void)pthread_mutex_lock(&e->look_mutex);
    if (!e->looked) {
        e->looked = true;
        huge = fo_arena_huge_pages(&e->arena, reason, sizeof reason);
        (void)pthread_mutex_lock(&e->mutex);
        e->huge_pages = huge;
        if (huge == 0) {
            fo_engine_add_reason(e, reason);
        }
        (void)pthread_mutex_unlock(&e->mutex);
    }
    (void)pthread_mutex_unlock(&e->look_mutex);
}

void fo_engine_info(fo_engine *e, fo_info *out) {
    const fo_machine *m = &e->machine;
    memset(out, 0, sizeof *out);
    if (atomic_load(&e->dead)) {
        out->dead = 1;
        (void)snprintf(out->reason, sizeof out->reason, "this is a forked child: the engine belongs to its parent");
        return;
    }
    (void)pthread_mutex_lock(&e->mutex);
    out->backend = e->backend->kind;
    out->huge_pages = e->huge_pages;
    out->registered = e->registered;
    out->hash_isa = e->hash->isa;
    out->slot_size = m->cfg.slot_size;
    out->slot_count = m->cfg.slot_count;
    out->slots_free = m->in_state[FO_SLOT_FREE];
    out->slots_filling = m->in_state[FO_SLOT_FILLING];
    out->slots_live = m->in_state[FO_SLOT_LIVE] - m->lagging;
    out->slots_lagging = m->lagging + m->in_state[FO_SLOT_STRANDED];
    out->slots_control = m->in_state[FO_SLOT_CONTROL];
    out->slots_quarantined = m->in_state[FO_SLOT_QUARANTINED];
    out->streams = m->flows_open;
    out->targets = m->targets_open;
    out->memory_bytes = e->arena.mapped + fo_machine_bytes(m) + sizeof *e +
                        m->op_count * (sizeof *e->jobs + sizeof *e->inbox);
    out->steps = m->steps;
    out->submissions = m->submissions;
    out->completions = m->completions;
    out->wakeups = e->wakeups;
    out->retries = m->retries;
    out->late = m->late;
    out->events_pending = m->event_count;
    out->ring_flags = e->ring_flags;
    (void)memcpy(out->reason, e->reason, sizeof out->reason);
    (void)pthread_mutex_unlock(&e->mutex);
}

int fo_events(fo_engine *e, fo_event *out, uint32_t max, uint64_t timeout_ns) {
    uint64_t count, deadline;
    uint32_t n;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    deadline = timeout_ns != 0 ? fo_engine_after(e, timeout_ns) : 0;
    while (e->machine.event_count == 0 && timeout_ns != 0 && !e->closing && fo_engine_wait_state(e, &deadline) == 0) {
    }
    n = fo_machine_events(&e->machine, out, max);
    if (e->machine.event_count == 0 && e->event_set) {
        e->event_set = false;
        (void)!read(e->event_fd, &count, sizeof count);
    }
    fo_engine_leave(e);
    return (int)n;
}

int fo_event_fd(fo_engine *e) {
    int fd, rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    if (e->backend->kind == FO_BACKEND_FAULTY) {
        fd = -EOPNOTSUPP;
    } else {
        if (e->event_fd < 0) {
            e->event_fd = eventfd(e->machine.event_count != 0, EFD_CLOEXEC | EFD_NONBLOCK);
            e->event_set = e->machine.event_count != 0;
            atomic_store(&e->fork_fds[FO_FORK_EVENT], e->event_fd);
        }
        fd = e->event_fd >= 0 ? e->event_fd : -EMFILE;
    }
    fo_engine_leave(e);
    return fd;
}

int fo_watch(fo_engine *e, int fd) {
    uint32_t i = 0;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    while (i < e->watch_count && e->watches[i] != fd) {
        i++;
    }
    if (i == FO_MAX_WATCHES) {
        rc = -ENOBUFS;
    } else if (i == e->watch_count) {
        e->watches[e->watch_count++] = fd;
    }
    fo_engine_leave(e);
    return rc;
}

void fo_unwatch(fo_engine *e, int fd) {
    if (atomic_load(&e->dead)) {
        return;
    }
    (void)pthread_mutex_lock(&e->mutex); /* also while closing: the descriptor must not be written to any more */
    if (fd < 0) {
        fo_engine_fire(e);
    }
    for (uint32_t i = 0; i < e->watch_count; i++) {
        if (e->watches[i] == fd) {
            e->watches[i] = e->watches[--e->watch_count];
        }
    }
    (void)pthread_mutex_unlock(&e->mutex);
}

uint64_t fo_now(fo_engine *e) {
    uint64_t now;
    if (atomic_load(&e->dead)) {
        return 0;
    }
    (void)pthread_mutex_lock(&e->mutex);
    now = fo_engine_clock(e);
    (void)pthread_mutex_unlock(&e->mutex);
    return now;
}

const char *fo_backend_name(uint32_t backend) {
    static const char *const names[] = {"auto", "io_uring", "threads", "faulty"};
    return backend <= FO_BACKEND_FAULTY ? names[backend] : "unknown";
}
