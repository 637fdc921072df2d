/*
 * fo_pool.c: threads for calls that block.
 *
 * Every target has a helper (one thread) for open, allocate, flush, truncate and close, and under the threads backend a lane
 * of up to `depth` threads for its data.  Threads start when there is work and none is idle.  One that is stuck in the kernel
 * holds its block and nothing else; the engine goes on, and closes, without it.
 */
#include "fo_engine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#define WORKER_STACK ((size_t)512 << 10) /* system calls only; sanitizers want some */

static void pool_init(fo_pool *p, fo_block *b, uint32_t max) {
    (void)pthread_cond_init(&p->cond, NULL);
    p->block = b;
    p->head = p->tail = FO_NIL;
    p->max = max;
}

fo_block *fo_block_new(fo_engine *e, uint16_t target, const char *path, const fo_open *opt) {
    fo_block *b = calloc(1, sizeof *b);
    if (b == NULL || (b->path = strdup(path)) == NULL) {
        free(b);
        return NULL;
    }
    b->engine = e;
    b->refs = 1;
    b->target = target;
    atomic_init(&b->fd, -1);
    atomic_init(&b->dir_fd, -1);
    b->opt = *opt;
    pool_init(&b->helper, b, 1);
    pool_init(&b->lane, b, opt->depth);
    fo_engine_ref(e);
    return b;
}

/* Unlocks the engine's mutex.  The last reference closes what is still open: of a target that was let go, this is where its
 * lock goes, and the kernel keeps the description until the last write in flight has ended.  A close can block: nothing of the
 * engine is held meanwhile but its memory, in which a forked child looks for what it has to close. */
static void block_unlock_unref(fo_block *b) {
    fo_engine *e = b->engine;
    bool last;
    FO_ASSERT(b->refs != 0);
    last = --b->refs == 0;
    (void)pthread_mutex_unlock(&e->mutex);
    if (!last) {
        return;
    }
    fo_device_close(b);
    (void)pthread_mutex_lock(&e->mutex);
    fo_engine_unlock_unref(e);
    (void)pthread_cond_destroy(&b->helper.cond);
    (void)pthread_cond_destroy(&b->lane.cond);
    free(b->path);
    free(b);
}

static void work(fo_pool *p) {
    fo_block *b = p->block;
    fo_engine *e = b->engine;
    while (true) {
        fo_submission s;
        int64_t result;
        while (p->head == FO_NIL && !p->stop) {
            p->idle++;
            (void)pthread_cond_wait(&p->cond, &e->mutex);
            p->idle--;
        }
        if (p->head == FO_NIL) {
            return;
        }
        s = e->jobs[p->head].submission;
        p->head = e->jobs[p->head].next;
        p->jobs--;
        (void)pthread_mutex_unlock(&e->mutex);
        result = fo_device_run(b, &s, fo_engine_memory(e, &s));
        (void)pthread_mutex_lock(&e->mutex);
        fo_engine_post(e, s.token, result);
    }
}

static void *worker_main(void *arg) {
    fo_pool *p = arg;
    fo_block *b = p->block;
    fo_engine *e = b->engine;
    (void)pthread_mutex_lock(&e->mutex);
    work(p);
    p->workers--;
    fo_engine_ref(e);
    block_unlock_unref(b);
    (void)pthread_mutex_lock(&e->mutex);
    if (--e->workers == 0) {
        (void)pthread_cond_broadcast(&e->state_cond); /* who closes the engine waits until this thread holds nothing of it */
    }
    fo_engine_unlock_unref(e);
    return NULL;
}

static int spawn(fo_pool *p) {
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;
    int rc;
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_attr_setstacksize(&attr, WORKER_STACK);
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are the caller's, never ours */
    rc = pthread_create(&thread, &attr, worker_main, p);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    (void)pthread_attr_destroy(&attr);
    if (rc == 0) {
        p->workers++;
        p->block->engine->workers++;
        p->block->refs++;
    }
    return rc == 0 ? 0 : -ENOMEM;
}

int fo_pool_push(fo_pool *p, const fo_submission *s) {
    fo_engine *e = p->block->engine;
    uint32_t op = fo_token_index(s->token);
    if (p->idle <= p->jobs && p->workers < p->max) { /* who is idle has been told of those, but may not have woken up yet */
        int rc = spawn(p);
        if (rc != 0 && p->workers == 0) {
            return rc;
        }
    }
    e->jobs[op].submission = *s;
    e->jobs[op].next = FO_NIL;
    if (p->head == FO_NIL) {
        p->head = op;
    } else {
        e->jobs[p->tail].next = op;
    }
    p->tail = op;
    p->jobs++;
    (void)pthread_cond_signal(&p->cond);
    return 0;
}

void fo_pool_cancel(fo_pool *p) {
    fo_engine *e = p->block->engine;
    /* A close is alone there, and has to be done: nobody else takes the descriptor away. */
    while (p->head != FO_NIL && e->jobs[p->head].submission.kind != FO_OP_CLOSE) {
        fo_engine_post(e, e->jobs[p->head].submission.token, -ECANCELED);
        p->head = e->jobs[p->head].next;
        p->jobs--;
    }
}

void fo_block_ref(fo_block *b) { b->refs++; }

void fo_block_unref(fo_block *b) {
    fo_engine *e = b->engine;
    fo_engine_ref(e); /* the caller keeps the mutex */
    block_unlock_unref(b);
    (void)pthread_mutex_lock(&e->mutex);
    FO_ASSERT(e->refs > 1);
    e->refs--;
}

void fo_block_retire(fo_block *b) {
    b->helper.stop = b->lane.stop = true;
    (void)pthread_cond_broadcast(&b->helper.cond);
    (void)pthread_cond_broadcast(&b->lane.cond);
    fo_block_unref(b);
}
