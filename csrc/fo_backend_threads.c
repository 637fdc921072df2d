/*
 * fo_backend_threads.c: data operations as blocking calls in each target's lane of worker threads.
 *
 * For systems where io_uring is forbidden (default container profiles) or not to be trusted.  Same rules, one difference that
 * nobody can mend: a thread in a direct write on a hung device cannot be killed, so a process with such a thread cannot end.
 */
#include "fo_engine.h"

#include <errno.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

static int threads_start(fo_engine *e, char reason[160]) {
    (void)e;
    (void)reason;
    return 0;
}

static void threads_submit(fo_engine *e, const fo_submission *s, uint32_t count) {
    (void)pthread_mutex_lock(&e->mutex);
    for (uint32_t i = 0; i < count; i++) {
        int rc = fo_pool_push(&e->blocks[s[i].target]->lane, &s[i]);
        if (rc != 0) {
            fo_engine_post(e, s[i].token, rc);
        }
    }
    (void)pthread_mutex_unlock(&e->mutex);
}

static void threads_wait(fo_engine *e, uint64_t deadline_ns) {
    struct pollfd p = {.fd = e->wake_fd, .events = POLLIN};
    struct timespec ts, *timeout = NULL;
    uint64_t count;
    if (deadline_ns != FO_FOREVER) {
        uint64_t now = fo_engine_clock(e);
        uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
        ts.tv_sec = (time_t)(left / 1000000000ull);
        ts.tv_nsec = (long)(left % 1000000000ull);
        timeout = &ts;
    }
    if (ppoll(&p, 1, timeout, NULL) > 0) {
        (void)!read(e->wake_fd, &count, sizeof count); /* only empties the counter */
    }
}

/* Workers post into the engine's inbox by themselves. */
static uint32_t threads_reap(fo_engine *e, fo_completion *out, uint32_t max) {
    (void)e;
    (void)out;
    (void)max;
    return 0;
}

static void threads_forget(fo_engine *e, uint16_t target) {
    (void)e;
    (void)target;
}

static void threads_stop(fo_engine *e) { (void)e; }

const fo_backend fo_backend_threads = {
    .kind = FO_BACKEND_THREADS,
    .name = "threads",
    .start = threads_start,
    .submit = threads_submit,
    .wait = threads_wait,
    .reap = threads_reap,
    .forget = threads_forget,
    .stop = threads_stop,
};
