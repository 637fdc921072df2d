/*
 * fo_backend_uring.c: data operations on one ring, owned by the engine thread.
 *
 * A write that is in flight here holds no thread of ours: when a device hangs, the ring can be left, and the process can end.
 * That holds for direct writes; what the kernel has to give to its own workers (buffered files) it does not promise.
 *
 * Not used, on purpose: linked requests (a failure cancels the followers), DRAIN (one slow target would hold all), SQPOLL and
 * IOPOLL (a core for a thousand calls a second).
 */
#include "fo_engine.h"

#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SQ_ENTRIES 256u
#define BUFFER_MAX ((size_t)1 << 30) /* the kernel registers at most 1 GiB as one buffer */
#define WAKE_TOKEN UINT64_MAX

/* Waking up costs more than what is then to be done, so completions are taken in several at a time: with enough in flight, half
 * of them, GATHER_MAX at most, or what there is once a target at 2.5 GB/s could have written one of usual size.  A target with
 * two or more in flight is not idle for it.  It takes Linux 6.12, and a name that older headers lack. */
#define GATHER_MAX 8u
#define GATHER_USEC(bytes) ((uint32_t)((bytes) / 2500u))
#define GATHER_USEC_MIN 10u /* for less, a timer is not worth it */
#define FEAT_MIN_TIMEOUT (1u << 15)

typedef struct uring {
    struct io_uring ring;
    bool fixed_buffers, fixed_files;
    bool armed;                    /* a read of wake_fd is on its way */
    bool in_table[FO_MAX_TARGETS]; /* the target's file is registered */
    uint64_t wake_count;           /* where the outstanding read of wake_fd writes */
    uint32_t flying;               /* entries handed over and not reaped, but for that read */
    uint64_t usual;                /* bytes of an entry, a running mean */
    uint32_t failed;               /* completions that we make ourselves */
    fo_completion failures[FO_BATCH];
} uring;

/* ---- start ---- */

/* Newest first; a kernel that does not know a flag says EINVAL, and the next line asks for less.
 *   SINGLE_ISSUER | DEFER_TASKRUN (6.1): completions are worked off when we wait, not by interrupting the engine thread
 *   COOP_TASKRUN (5.19): the next best
 *   SUBMIT_ALL (5.18): one bad entry does not hold up the others of a batch */
static const unsigned int ladder[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
    IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
    IORING_SETUP_CQSIZE,
    0,
};

/* Data operations that can be in the kernel at once. */
static uint32_t most_in_flight(const fo_engine *e) {
    uint32_t lanes = FO_MAX_TARGETS * FO_MAX_DEPTH;
    return (e->machine.op_count < lanes ? e->machine.op_count : lanes) + e->machine.cfg.control_slots;
}

static unsigned int completion_entries(const fo_engine *e) {
    uint32_t wanted = most_in_flight(e) + 64;
    uint32_t entries = SQ_ENTRIES * 2;
    while (entries < wanted) { /* so that the completion queue can never overflow */
        entries *= 2;
    }
    return entries;
}

static int setup_ring(fo_engine *e, uring *u, char reason[160]) {
    int rc = -EINVAL;
    for (size_t i = 0; rc == -EINVAL && i < sizeof ladder / sizeof ladder[0]; i++) {
        struct io_uring_params p;
        memset(&p, 0, sizeof p);
        p.flags = ladder[i];
        p.cq_entries = completion_entries(e);
        rc = io_uring_queue_init_params(SQ_ENTRIES, &u->ring, &p);
    }
    if (rc != 0) {
        (void)snprintf(reason, 160, "io_uring_setup: %s%s", strerror(-rc),
                       rc == -EPERM ? " (forbidden by a container profile or kernel.io_uring_disabled)" : "");
    }
    return rc;
}

/* A wait with a deadline that is no operation of its own came with 5.11; older rings are not worth a third code path. */
static int check_features(const uring *u, char reason[160]) {
    if ((u->ring.features & IORING_FEAT_EXT_ARG) == 0) {
        (void)snprintf(reason, 160, "this kernel's io_uring has no wait with a deadline (before Linux 5.11)");
        return -EOPNOTSUPP;
    }
    return 0;
}

/* Registered memory saves half of what a write still costs on huge pages.  It is charged to RLIMIT_MEMLOCK; where that
 * refuses, plain writes do the same at about twice the cost. */
static void register_buffers(fo_engine *e, uring *u) {
    struct iovec pieces[64];
    unsigned int n = 0;
    int rc;
    for (size_t at = 0; at < e->arena.size; at += BUFFER_MAX) {
        FO_ASSERT(n < 64); /* 4,096 slots of 16 MiB */
        pieces[n].iov_base = e->arena.base + at;
        pieces[n].iov_len = e->arena.size - at < BUFFER_MAX ? e->arena.size - at : BUFFER_MAX;
        n++;
    }
    rc = io_uring_register_buffers(&u->ring, pieces, n);
    u->fixed_buffers = rc == 0;
    e->registered = rc == 0;
    if (rc == -ENOMEM) {
        fo_engine_add_reason(e, "memory not registered: RLIMIT_MEMLOCK is too low");
    } else if (rc != 0) {
        fo_engine_add_reason(e, "memory not registered: the kernel refused");
    }
}

/* What cannot be handed over without blocking goes to threads of the kernel's, by default four for each CPU.  Each can sit behind a
 * file system that hangs, and with the last of them every other target that needs one would hang too.  They are made when they
 * are needed.  Before Linux 5.15 their number cannot be changed. */
static void allow_workers(const fo_engine *e, uring *u) {
    unsigned int most[2] = {most_in_flight(e), 0}; /* of files and devices; of the rest: as it is */
    (void)io_uring_register_iowq_max_workers(&u->ring, most);
}

static void leave_ring(fo_engine *e, uring *u) {
    fo_fork_hold();
    atomic_store(&e->fork_fds[FO_FORK_RING], -1);
    io_uring_queue_exit(&u->ring); /* what is in flight ends in the background */
    fo_fork_go();
    free(u);
}

static void arm_wake(fo_engine *e, uring *u);

static int uring_start(fo_engine *e, char reason[160]) {
    uring *u = calloc(1, sizeof *u);
    int rc;
    if (u == NULL) {
        (void)snprintf(reason, 160, "no memory for the ring");
        return -ENOMEM;
    }
    fo_fork_hold(); /* a child that kept the ring would keep the files that are registered with it, and their locks */
    rc = setup_ring(e, u, reason);
    if (rc == 0) {
        atomic_store(&e->fork_fds[FO_FORK_RING], u->ring.ring_fd);
    }
    fo_fork_go();
    if (rc != 0) {
        free(u);
        return rc;
    }
    rc = check_features(u, reason);
    if (rc != 0) {
        leave_ring(e, u);
        return rc;
    }
    (void)io_uring_ring_dontfork(&u->ring);
    register_buffers(e, u);
    allow_workers(e, u);
    u->fixed_files = io_uring_register_files_sparse(&u->ring, FO_MAX_TARGETS) == 0;
    e->ring_flags = u->ring.flags;
    e->backend_state = u;
    arm_wake(e, u);
    return 0;
}

/* ---- submission ---- */

static struct io_uring_sqe *next_entry(uring *u) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (sqe == NULL) {
        (void)io_uring_submit(&u->ring);
        sqe = io_uring_get_sqe(&u->ring);
    }
    return sqe;
}

static void arm_wake(fo_engine *e, uring *u) {
    struct io_uring_sqe *sqe = next_entry(u);
    u->armed = sqe != NULL; /* else the queue is full, and the kernel takes nothing just now */
    if (!u->armed) {
        return;
    }
    io_uring_prep_read(sqe, e->wake_fd, &u->wake_count, sizeof u->wake_count, 0);
    io_uring_sqe_set_data64(sqe, WAKE_TOKEN);
}

static bool in_table(fo_engine *e, uring *u, uint16_t target) {
    if (!u->in_table[target] && u->fixed_files) {
        int fd = atomic_load(&e->blocks[target]->fd);
        u->in_table[target] = io_uring_register_files_update(&u->ring, target, &fd, 1) == 1;
    }
    return u->in_table[target];
}

static void prepare(fo_engine *e, uring *u, struct io_uring_sqe *sqe, const fo_submission *s) {
    const fo_block *b = e->blocks[s->target];
    unsigned char *memory = fo_engine_memory(e, s);
    bool fixed_file = in_table(e, u, s->target);
    int fd = fixed_file ? (int)s->target : atomic_load(&b->fd);
    unsigned int length = (unsigned int)s->length;
    int piece = (int)((size_t)(memory - e->arena.base) / BUFFER_MAX);
    if (s->kind == FO_OP_WRITE && u->fixed_buffers) {
        io_uring_prep_write_fixed(sqe, fd, memory, length, s->offset, piece);
    } else if (s->kind == FO_OP_WRITE) {
        io_uring_prep_write(sqe, fd, memory, length, s->offset);
    } else if (u->fixed_buffers) {
        io_uring_prep_read_fixed(sqe, fd, memory, length, s->offset, piece);
    } else {
        io_uring_prep_read(sqe, fd, memory, length, s->offset);
    }
    sqe->rw_flags = b->rw_flags;
    sqe->flags |= (uint8_t)(fixed_file ? IOSQE_FIXED_FILE : 0);
    /* A hung FUSE or network server can put the submitting thread to sleep; the kernel's own worker may sleep. */
    sqe->flags |= (uint8_t)(b->geometry.slow_path ? IOSQE_ASYNC : 0);
    io_uring_sqe_set_data64(sqe, s->token);
}

static void uring_submit(fo_engine *e, const fo_submission *s, uint32_t count) {
    uring *u = e->backend_state;
    for (uint32_t i = 0; i < count; i++) {
        struct io_uring_sqe *sqe = next_entry(u);
        if (sqe != NULL) {
            prepare(e, u, sqe, &s[i]);
            u->flying++;
            u->usual = (u->usual * 7 + s[i].length) / 8;
        } else { /* the kernel takes nothing just now: the machine's own retry rules apply */
            FO_ASSERT(u->failed < FO_BATCH);
            u->failures[u->failed++] = (fo_completion){s[i].token, -EAGAIN};
        }
    }
}

/* ---- completion ---- */

/* How many completions to wait for. */
static uint32_t worth_gathering(const uring *u, uint64_t left_ns) {
    uint32_t half = u->flying / 2, usec = GATHER_USEC(u->usual);
    bool can = (u->ring.features & FEAT_MIN_TIMEOUT) != 0 && usec >= GATHER_USEC_MIN && left_ns > usec * 1000ull;
    return !can ? 1 : half < GATHER_MAX ? half : GATHER_MAX;
}

/* As io_uring_wait_cqes, with a second, shorter patience: for more than one completion. */
static void gather(uring *u, uint32_t wanted, struct __kernel_timespec *patience) {
    struct { /* struct io_uring_getevents_arg, as Linux 6.12 has it */
        uint64_t sigmask;
        uint32_t sigmask_size, min_wait_usec;
        uint64_t patience;
    } arg = {0, 0, GATHER_USEC(u->usual), (uint64_t)(uintptr_t)patience};
    (void)io_uring_enter2((unsigned int)u->ring.ring_fd, 0, wanted, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG,
                          (sigset_t *)&arg, sizeof arg);
}

/* EINTR, EAGAIN, EBUSY, ETIME: the caller reaps and comes again. */
static void uring_wait(fo_engine *e, uint64_t deadline_ns) {
    uring *u = e->backend_state;
    struct __kernel_timespec patience;
    struct io_uring_cqe *cqe;
    uint64_t now, left;
    uint32_t wanted;
    if (u->failed != 0 || !u->armed) {
        (void)io_uring_submit(&u->ring);
        return;
    }
    if (deadline_ns == FO_FOREVER) {
        (void)io_uring_submit_and_wait(&u->ring, 1);
        return;
    }
    now = fo_engine_clock(e);
    left = deadline_ns > now ? deadline_ns - now : 0;
    patience = (struct __kernel_timespec){(long long)(left / 1000000000ull), (long long)(left % 1000000000ull)};
    wanted = worth_gathering(u, left);
    if (wanted > 1 && io_uring_submit(&u->ring) >= 0) {
        gather(u, wanted, &patience);
    } else {
        (void)io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &patience, NULL);
    }
}

static uint32_t uring_reap(fo_engine *e, fo_completion *out, uint32_t max) {
    uring *u = e->backend_state;
    uint32_t n = 0, seen = 0;
    unsigned int head;
    struct io_uring_cqe *cqe;
    while (u->failed != 0 && n < max) {
        out[n++] = u->failures[--u->failed];
    }
    io_uring_for_each_cqe(&u->ring, head, cqe) {
        if (n == max) {
            break;
        }
        seen++;
        if (cqe->user_data == WAKE_TOKEN) {
            u->armed = false;
        } else {
            u->flying--;
            out[n].token = cqe->user_data;
            out[n++].result = cqe->res;
        }
    }
    io_uring_cq_advance(&u->ring, seen);
    if (!u->armed) {
        arm_wake(e, u);
    }
    return n;
}

static void uring_forget(fo_engine *e, uint16_t target) {
    uring *u = e->backend_state;
    int none = -1;
    if (u->in_table[target]) {
        (void)io_uring_submit(&u->ring);
        (void)io_uring_register_files_update(&u->ring, target, &none, 1);
        u->in_table[target] = false;
    }
}

static void uring_stop(fo_engine *e) {
    leave_ring(e, e->backend_state);
    e->backend_state = NULL;
}

const fo_backend fo_backend_uring = {
    .kind = FO_BACKEND_URING,
    .name = "io_uring",
    .start = uring_start,
    .submit = uring_submit,
    .wait = uring_wait,
    .reap = uring_reap,
    .forget = uring_forget,
    .stop = uring_stop,
};
