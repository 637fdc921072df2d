/*
 * fo_life.c: how an engine begins and ends.
 *
 * It ends on time.  What is in flight is waited for as long as the caller says, then it is left: to the kernel on the ring, to
 * workers that hold their own references on the threads backend.  Nothing that is still in flight ever sees memory that was
 * given back.
 */
#include "fo_engine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define LEAVE_NS 100000000ull /* leaving an idle ring, or a worker that waits, takes a few milliseconds */
#define LEAVE_PAUSE_MIN_NS 50000 /* doubled until it is at least the other one */
#define LEAVE_PAUSE_MAX_NS 5000000

/* ---- open ---- */

void fo_config_init(fo_config *cfg) {
    memset(cfg, 0, sizeof *cfg);
    cfg->slot_size = 1u << 20;
    cfg->slot_count = 64;
    cfg->max_streams = 8;
    cfg->control_slots = 4;
    cfg->quarantine_slots = 16;
    cfg->backend = FO_BACKEND_AUTO;
    cfg->soft_ns = 30ull * 1000000000ull;
    cfg->hard_ns = 120ull * 1000000000ull;
    cfg->patience_ns = 2ull * 1000000000ull;
}

void fo_engine_add_reason(fo_engine *e, const char *sentence) {
    size_t used = strlen(e->reason);
    (void)snprintf(e->reason + used, sizeof e->reason - used, "%s%s", used != 0 ? "; " : "", sentence);
}

void fo_engine_ref(fo_engine *e) { e->refs++; }

static void engine_free(fo_engine *e) {
    fo_fork_unregister(e); /* before the numbers that it would close in a child can be another's */
    if (e->wake_fd >= 0) {
        (void)close(e->wake_fd);
    }
    if (e->event_fd >= 0) {
        (void)close(e->event_fd);
    }
    (void)pthread_cond_destroy(&e->slots_cond);
    (void)pthread_cond_destroy(&e->state_cond);
    (void)pthread_mutex_destroy(&e->mutex);
    (void)pthread_mutex_destroy(&e->look_mutex);
    fo_arena_close(&e->arena);
    fo_machine_free(&e->machine);
    free(e->jobs);
    free(e->inbox);
    free(e);
}

void fo_engine_unlock_unref(fo_engine *e) {
    bool last = --e->refs == 0;
    (void)pthread_mutex_unlock(&e->mutex);
    if (last) {
        engine_free(e);
    }
}

static fo_engine *engine_new(void) {
    fo_engine *e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
    pthread_condattr_t attr;
    if (e == NULL) {
        return NULL;
    }
    memset(e, 0, sizeof *e);
    e->refs = 1;
    e->wake_fd = e->event_fd = -1;
    (void)pthread_mutex_init(&e->mutex, NULL);
    (void)pthread_mutex_init(&e->look_mutex, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&e->slots_cond, &attr);
    (void)pthread_cond_init(&e->state_cond, &attr);
    (void)pthread_condattr_destroy(&attr);
    atomic_init(&e->dead, false);
    for (size_t i = 0; i < sizeof e->fork_fds / sizeof e->fork_fds[0]; i++) {
        atomic_init(&e->fork_fds[i], -1);
    }
    fo_fork_register(e);
    return e;
}

static int engine_memory(fo_engine *e, const fo_config *cfg, char reason[160]) {
    int rc = fo_machine_init(&e->machine, cfg, reason);
    if (rc != 0) {
        return rc;
    }
    /* A simulated engine lives for milliseconds, and touches few of its slots. */
    rc = fo_arena_open(&e->arena, (size_t)cfg->slot_count * cfg->slot_size, cfg->backend != FO_BACKEND_FAULTY);
    e->jobs = calloc(e->machine.op_count, sizeof *e->jobs);
    e->inbox = calloc(e->machine.op_count, sizeof *e->inbox);
    if (rc != 0 || e->jobs == NULL || e->inbox == NULL) {
        (void)snprintf(reason, 160, "no memory for %u slots of %u bytes", cfg->slot_count, cfg->slot_size);
        return -ENOMEM;
    }
    e->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (e->wake_fd < 0) {
        rc = -errno;
        (void)snprintf(reason, 160, "no descriptor to be woken by: %s", strerror(errno));
        return rc;
    }
    atomic_store(&e->fork_fds[FO_FORK_WAKE], e->wake_fd);
    e->hash = fo_hash_best();
    return 0;
}

static int start_thread(fo_engine *e) {
    sigset_t all, old;
    int rc;
    e->running = false;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&e->thread, NULL, fo_engine_main, e);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        (void)snprintf(e->reason, sizeof e->reason, "no thread for the engine: %s", strerror(rc));
        return -rc;
    }
    (void)pthread_mutex_lock(&e->mutex);
    while (!e->running) {
        (void)pthread_cond_wait(&e->state_cond, &e->mutex);
    }
    rc = e->start_rc;
    e->refs += rc == 0 ? 1 : 0; /* the thread's own */
    (void)pthread_mutex_unlock(&e->mutex);
    if (rc != 0) {
        (void)pthread_join(e->thread, NULL);
    }
    return rc;
}

static int start_backend(fo_engine *e, uint32_t wanted, char reason[160]) {
    int rc;
    if (wanted == FO_BACKEND_FAULTY) {
        e->backend = &fo_backend_faulty;
        return e->backend->start(e, reason);
    }
    if (wanted == FO_BACKEND_THREADS) {
        e->backend = &fo_backend_threads;
        fo_engine_add_reason(e, "threads: asked for");
        rc = start_thread(e);
    } else {
        e->backend = &fo_backend_uring;
        rc = start_thread(e);
        if (rc != 0 && wanted == FO_BACKEND_AUTO) {
            e->backend = &fo_backend_threads;
            rc = start_thread(e);
        } else if (rc != 0 && rc != -EAGAIN) {
            rc = -EOPNOTSUPP;
        }
    }
    if (rc != 0) {
        (void)memcpy(reason, e->reason, sizeof e->reason);
    }
    return rc;
}

int fo_engine_open(const fo_config *cfg, char reason[160], fo_engine **out) {
    char unused[160];
    fo_engine *e = engine_new();
    int rc;
    *out = NULL;
    reason = reason != NULL ? reason : unused;
    reason[0] = '\0';
    if (e == NULL) {
        (void)snprintf(reason, 160, "no memory for the engine");
        return -ENOMEM;
    }
    e->backend = &fo_backend_threads; /* its clock is the monotonic one, until there is another */
    if (cfg->backend > FO_BACKEND_FAULTY) {
        (void)snprintf(reason, 160, "backend %u is unknown", cfg->backend);
        rc = -EINVAL;
    } else {
        rc = engine_memory(e, cfg, reason);
    }
    if (rc == 0) {
        rc = start_backend(e, cfg->backend, reason);
    }
    if (rc != 0) {
        engine_free(e);
        return rc;
    }
    *out = e;
    return 0;
}

/* ---- close ---- */

static bool quiet(const fo_machine *m) {
    for (uint16_t i = 0; i < FO_MAX_TARGETS; i++) {
        const fo_target *t = &m->targets[i];
        if (t->state != FO_TARGET_NONE && (!fo_machine_target_idle(m, i) || t->orphans != 0)) {
            return false;
        }
    }
    return true;
}

static void abort_all(fo_machine *m) {
    for (uint32_t i = 0; i < m->flow_count; i++) {
        if (m->flows[i].id != 0) {
            fo_machine_abort(m, i);
        }
    }
}

/* Asks every target that nobody is closing to close, and lets go of those that cannot. */
static void close_all(fo_engine *e) {
    fo_machine *m = &e->machine;
    for (uint16_t i = 0; i < FO_MAX_TARGETS; i++) {
        const fo_target *t = &m->targets[i];
        if (e->blocks[i] != NULL && e->blocks[i]->taken) {
            continue; /* whoever is opening, finishing or closing it goes on to do so */
        }
        if (t->state == FO_TARGET_DETACHED) {
            fo_machine_target_abandon(m, i);
        } else if ((t->state == FO_TARGET_ACTIVE || t->state == FO_TARGET_FAILED) && fo_machine_target_idle(m, i)) {
            fo_machine_life(m, i, FO_OP_CLOSE, 0, 0);
        }
    }
    fo_engine_settle(e);
    fo_engine_kick(e);
}

/* Registered memory is pinned until the kernel is done with it.  Writes that were given plain addresses may yet read them:
 * then the mapping stays for as long as the process lives.  A leak that happens once, on a hung device, is better than
 * another's bytes on it. */
static void keep_memory_if_unsafe(fo_engine *e, bool in_flight) {
    if (in_flight && e->backend->kind == FO_BACKEND_URING && !e->registered) {
        e->arena.mapping = NULL;
    }
}

/* A thread that used a ring waits, as it leaves the kernel, for the kernel's own workers, and one of those can sit behind a hung
 * file for as long as that hangs.  Then it is left to itself: it holds a reference, and goes when the kernel lets it.
 * The join that waits by itself knows only the time of day, which somebody may set back by an hour: hence the small pauses, of which
 * none is longer for it that the process was stopped. */
static bool end_thread(fo_engine *e, uint64_t deadline) {
    struct timespec pause = {0, LEAVE_PAUSE_MIN_NS};
    uint64_t now = fo_engine_clock(e), paused = 0;
    uint64_t patience = deadline > now + LEAVE_NS ? deadline - now : LEAVE_NS;
    while (pthread_tryjoin_np(e->thread, NULL) != 0) {
        if (paused >= patience) {
            (void)pthread_detach(e->thread);
            return false;
        }
        (void)nanosleep(&pause, NULL);
        paused += (uint64_t)pause.tv_nsec;
        pause.tv_nsec += pause.tv_nsec < LEAVE_PAUSE_MAX_NS ? pause.tv_nsec : 0;
    }
    return true;
}

/* Idle workers have been told to go, which takes them a moment: after the close no thread and no descriptor is left. */
static void see_workers_off(fo_engine *e) {
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)LEAVE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    while (e->workers != 0 && pthread_cond_timedwait(&e->state_cond, &e->mutex, &until) == 0) {
    }
}

int fo_engine_close(fo_engine *e, uint64_t timeout_ns) {
    uint64_t deadline;
    bool in_flight;
    int rc = fo_engine_enter(e);
    if (rc != 0) {
        return rc;
    }
    deadline = fo_engine_after(e, timeout_ns);
    e->closing = true;
    fo_engine_fire(e);
    abort_all(&e->machine);
    fo_engine_kick(e);
    (void)pthread_cond_broadcast(&e->slots_cond);
    (void)pthread_cond_broadcast(&e->state_cond);
    while (!quiet(&e->machine) && fo_engine_wait_state(e, &deadline) == 0) {
    }
    close_all(e);
    while (e->machine.targets_open != 0 && fo_engine_wait_state(e, &deadline) == 0) {
    }
    in_flight = e->machine.targets_open != 0;
    e->stopping = true;
    fo_engine_wake(e);
    (void)pthread_cond_broadcast(&e->slots_cond);
    (void)pthread_cond_broadcast(&e->state_cond);
    (void)pthread_mutex_unlock(&e->mutex);
    if (e->backend->kind == FO_BACKEND_FAULTY) {
        e->backend->stop(e);
    } else if (!end_thread(e, deadline)) {
        in_flight = true;
    }
    (void)pthread_mutex_lock(&e->mutex);
    if (e->serving) { /* it may yet hand a write to the kernel: a descriptor must not be another file's by then */
        e->left = true;
    } else {
        fo_engine_retire(e);
    }
    if (!in_flight) {
        see_workers_off(e);
    }
    keep_memory_if_unsafe(e, in_flight);
    e->refs--; /* the owner's; what is left is this call's */
    fo_engine_leave(e);
    return in_flight ? -ETIMEDOUT : 0;
}
