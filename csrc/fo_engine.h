/*
 * fo_engine.h: what the files around the state machine share.
 *
 * One mutex guards everything here except what says otherwise.  Who is who:
 *
 *   callers        any thread, through fanout.h: they copy and hash without the mutex, and give inputs to the machine under it
 *   engine thread  fo_engine.c: completions -> fo_step -> submissions, and nothing that could block
 *   workers        fo_pool.c: blocking calls, one helper per target, plus the lanes of the threads backend
 *
 * Under the faulty backend there is no engine thread: whoever waits drives the step.
 *
 * Lifetimes.  A worker that is stuck in the kernel must hold up nobody, so it owns nothing but a counted reference to its
 * block (one open target), and a block holds one to the engine's memory.  The last to leave frees.
 */
#ifndef FO_ENGINE_H
#define FO_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "fo_arena.h"
#include "fo_assert.h"
#include "fo_hash.h"
#include "fo_step.h"

#define FO_MAX_WATCHES 16u
#define FO_BATCH 256u /* submissions and completions handled per turn */

typedef struct fo_block fo_block;

typedef struct fo_pool {
    pthread_cond_t cond;
    fo_block *block;
    uint32_t head, tail, jobs; /* that no worker has taken, by operation index; how many */
    uint32_t idle, workers, max;
    bool stop;
} fo_pool;

/* One open target: descriptors, what was discovered about them, and the workers that serve it. */
struct fo_block {
    fo_engine *engine;
    uint32_t refs;
    uint16_t target;
    bool taken; /* a caller is opening, finishing or closing it: one at a time */
    atomic_int fd, dir_fd;
    char *path;
    fo_open opt;
    fo_geometry geometry;
    int rw_flags;        /* of every data operation: RWF_DONTCACHE or 0 */
    atomic_bool given_up; /* nobody waits for its opening any more */
    atomic_bool changed; /* size or name changed: the next flush is a full fsync */
    fo_pool helper, lane;
};

typedef struct fo_job {
    fo_submission submission;
    uint32_t next;
} fo_job;

/* What carries out submissions.  Everything but wake-ups is called by the engine thread. */
typedef struct fo_backend {
    uint32_t kind;
    const char *name;
    /* Called before anything else; on failure reason says why it cannot run here. */
    int (*start)(fo_engine *e, char reason[160]);
    /* Without the mutex.  Never blocks on a device; what cannot be handed over completes with an errno. */
    void (*submit)(fo_engine *e, const fo_submission *s, uint32_t count);
    /* Without the mutex: until something completed, fo_engine_wake, or the deadline. */
    void (*wait)(fo_engine *e, uint64_t deadline_ns);
    uint32_t (*reap)(fo_engine *e, fo_completion *out, uint32_t max);
    /* The target's descriptor is about to be closed. */
    void (*forget)(fo_engine *e, uint16_t target);
    void (*stop)(fo_engine *e);
} fo_backend;

extern const fo_backend fo_backend_uring, fo_backend_threads, fo_backend_faulty;

struct fo_engine {
    pthread_mutex_t mutex;
    pthread_cond_t slots_cond; /* slots, admissions, control slots, records */
    pthread_cond_t state_cond; /* everything else that somebody may wait for */
    uint32_t slots_waiting, state_waiting;
    fo_machine machine;
    fo_arena arena;
    const fo_hash_unit *hash;
    const fo_backend *backend;
    void *backend_state;
    fo_block *blocks[FO_MAX_TARGETS];
    fo_job *jobs; /* one per operation: what workers are to do */
    fo_completion *inbox;
    uint32_t inbox_count;
    uint32_t refs;
    uint32_t workers; /* threads of all pools; each holds a reference */
    bool closing;   /* no new work */
    bool stopping;  /* the engine thread has to end */
    bool running;   /* the engine thread has started its backend */
    bool serving;   /* the engine thread may look at blocks, and hand out their descriptors */
    bool left;      /* the close went without it: it retires them when it comes out */
    bool sleeping;  /* the engine thread waits, or is about to, and has seen all input so far */
    bool event_set; /* event_fd is readable */
    int start_rc;
    int wake_fd;
    int event_fd; /* -1 until somebody asks for it */
    int watches[FO_MAX_WATCHES]; /* descriptors of others, to be written to at the next change */
    uint32_t watch_count;
    pthread_t thread;
    uint64_t wakeups;
    uint32_t ring_flags, registered;
    char reason[160];
    pthread_mutex_t look_mutex; /* before the other one: of fo_engine_look alone, which takes its time */
    bool looked;
    uint32_t huge_pages;
    /* fork: read by the child without the mutex */
    atomic_bool dead;
    atomic_int fork_fds[FO_MAX_TARGETS * 2 + 4];
    fo_engine *next_engine;
};

/* ---- fo_engine.c (all under the mutex unless said) ---- */

uint64_t fo_engine_clock(const fo_engine *e);
uint64_t fo_engine_after(const fo_engine *e, uint64_t timeout_ns);
/* After inputs: lets the engine thread know, and everybody who may go on. */
void fo_engine_kick(fo_engine *e);
/* Waits once; the caller looks again after 0.  -ETIMEDOUT: the deadline has passed.  NULL: there is none.  It is moved on by the time in
 * which this process was stopped: nothing that is waited for could happen then. */
int fo_engine_wait_slots(fo_engine *e, uint64_t *deadline_ns);
int fo_engine_wait_state(fo_engine *e, uint64_t *deadline_ns);
void fo_engine_wake(fo_engine *e);
/* A worker's result, or that of a job that was cancelled. */
void fo_engine_post(fo_engine *e, uint64_t token, int64_t result);
void fo_engine_ref(fo_engine *e);
/* Unlocks and, as the last one, frees. */
void fo_engine_unlock_unref(fo_engine *e);
/* One turn of the step, with its completions; hands the submissions out.  Both without I/O. */
uint32_t fo_engine_turn(fo_engine *e, const fo_completion *done, uint32_t count, fo_submission *out);
void fo_engine_notify(fo_engine *e);
/* Lets every watcher look again, and forgets them. */
void fo_engine_fire(fo_engine *e);
/* What a step decided about targets: workers of one that was let go start nothing more, one that is gone is forgotten. */
void fo_engine_settle(fo_engine *e);
/* Closes what is still open: when nobody serves any more. */
void fo_engine_retire(fo_engine *e);
/* The engine thread.  Without the mutex. */
void *fo_engine_main(void *arg);
/* Locks and holds; -EOWNERDEAD in a forked child, -ESHUTDOWN while closing. */
int fo_engine_enter(fo_engine *e);
void fo_engine_leave(fo_engine *e);
/* Memory of a submission; NULL when it has none. */
unsigned char *fo_engine_memory(const fo_engine *e, const fo_submission *s);
void fo_engine_add_reason(fo_engine *e, const char *sentence);

/* ---- fo_fork.c ---- */

/* From its first descriptor to its last, which may be long after its close: a child closes what is in fork_fds. */
void fo_fork_register(fo_engine *e);
void fo_fork_unregister(fo_engine *e);
/* Round what makes or removes a descriptor that a child must not keep, and its entry in fork_fds. */
void fo_fork_hold(void);
void fo_fork_go(void);
/* open(2) and close(2) with their entry in fork_fds. */
int fo_fork_open(atomic_int *entry, const char *path, int flags, mode_t mode);
int fo_fork_close(atomic_int *entry, int fd);
/* Index into fork_fds: target's descriptor, target's directory, then the engine's own. */
enum { FO_FORK_WAKE = FO_MAX_TARGETS * 2, FO_FORK_EVENT, FO_FORK_RING };

/* ---- fo_pool.c (under the mutex) ---- */

fo_block *fo_block_new(fo_engine *e, uint16_t target, const char *path, const fo_open *opt);
/* For a caller who waits inside: the target may be gone when it comes back, its block is not.  Both keep the mutex. */
void fo_block_ref(fo_block *b);
void fo_block_unref(fo_block *b);
/* The target is gone: workers end when they come back. */
void fo_block_retire(fo_block *b);
/* 0, or -ENOMEM when no thread could be had. */
int fo_pool_push(fo_pool *p, const fo_submission *s);
/* Jobs that no worker has started are not started any more. */
void fo_pool_cancel(fo_pool *p);

/* ---- fo_device.c (without the mutex, may block) ---- */

/* Carries out one operation on a block; bytes or negative errno. */
int64_t fo_device_run(fo_block *b, const fo_submission *s, unsigned char *memory);
/* Closes its descriptors, those that are open. */
void fo_device_close(fo_block *b);

/* ---- fo_backend_faulty.c (under the mutex) ---- */

/* Drives the step and moves the simulated clock to the next thing that happens, at most to deadline_ns. */
int fo_faulty_advance(fo_engine *e, uint64_t deadline_ns);
void fo_faulty_kick(fo_engine *e);
uint64_t fo_faulty_clock(const fo_engine *e);

#endif
