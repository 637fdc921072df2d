/*
 * test_refused.c: the n-th call of each kind to the system is refused, and then all from the n-th on, until a whole life of an
 * engine no longer reaches it; and what the engine makes of kernels, devices and file systems that it cannot have here.
 *
 * A refusal may cost what it belongs to, never more: the caller is told one of the errnos that it can come to, nothing hangs,
 * nothing leaks.
 */
#include "../fo_engine.h"
#include "refusing.h"
#include "whole_life.h"

#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>

#define BOUND 400u /* calls of one kind in one life: far more than there are */

static uint32_t backend;
static int refused_with;
static unsigned char *life_bytes; /* of every life */
static held nothing;              /* when nothing is open */

typedef struct row {
    const char *name;
    call call;
    int err;
} row;

static const row rows[] = {
    {"mmap", CALL_MMAP, ENOMEM},
    {"madvise", CALL_MADVISE, EINVAL},
    {"madvise does nothing", CALL_MADVISE, LIE},
    {"fopen", CALL_FOPEN, ENOENT},
    {"fopen of nothing", CALL_FOPEN, LIE},
    {"eventfd", CALL_EVENTFD, EMFILE},
    {"pthread_create", CALL_THREAD, EAGAIN},
    {"open", CALL_OPEN, EMFILE},
    {"open", CALL_OPEN, EINVAL},
    {"close", CALL_CLOSE, EIO},
    {"stat", CALL_STAT, ENOENT},
    {"fstat", CALL_FSTAT, EIO},
    {"fstatfs", CALL_FSTATFS, EIO},
    {"statx", CALL_STATX, ENOSYS},
    {"statx without direct I/O", CALL_STATX, LIE},
    {"fcntl", CALL_FCNTL, EINVAL},
    {"flock", CALL_FLOCK, EWOULDBLOCK},
    {"flock", CALL_FLOCK, ENOLCK},
    {"fallocate", CALL_FALLOCATE, EOPNOTSUPP},
    {"fallocate", CALL_FALLOCATE, ENOSYS},
    {"fallocate", CALL_FALLOCATE, ENOSPC},
    {"ftruncate", CALL_FTRUNCATE, EIO},
    {"preadv2", CALL_READ, EIO},
    {"pwritev2", CALL_WRITE, EIO},
    {"fsync", CALL_FSYNC, EIO},
    {"fdatasync", CALL_FDATASYNC, EIO},
    {"io_uring_setup", CALL_RING, EINVAL},
    {"io_uring_setup", CALL_RING, EPERM},
    {"io_uring_setup of an old kernel", CALL_RING, LIE},
    {"register buffers", CALL_BUFFERS, ENOMEM},
    {"register buffers", CALL_BUFFERS, EOPNOTSUPP},
    {"register files", CALL_FILES, EINVAL},
    {"register a file", CALL_FILE, EINVAL},
    {"io_uring_enter", CALL_SUBMIT, EAGAIN},
};

/* A thread that cannot be had is want of memory to whoever asked, another's lock is EBUSY. */
static bool may_fail(int err) {
    return err == refused_with || (refused_with == EAGAIN && err == ENOMEM) || (refused_with == EWOULDBLOCK && err == EBUSY);
}

static void sweep(const row *row, bool forever) {
    unsigned n = 0, lives = 0;
    bool untouched = false;
    refused_with = row->err;
    life_hard_ns = row->err == EAGAIN && forever ? SECOND / 2 : 120 * SECOND;
    while (!untouched && n++ < BOUND) {
        refuse(row->call, n, forever ? UINT32_MAX : n, row->err);
        (void)whole_life(backend, life_bytes, may_fail);
        untouched = atomic_load(&refusals[row->call].seen) < n;
        allow(row->call);
        check_nothing_left(nothing);
        lives++;
        if (test_failures != 0) {
            printf("  %s, call %u, %s, %s: %s\n", row->name, n, forever ? "for ever" : "once", fo_backend_name(backend),
                   row->err == LIE ? "a lie" : strerror(row->err));
            break;
        }
    }
    CHECK(untouched);
}

static void every_call(void) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0] && test_failures == 0; i++) {
        sweep(&rows[i], false);
        sweep(&rows[i], true);
    }
}

/* ---- what cannot be had here ---- */

static fo_engine *open_engine(uint32_t kind) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = kind;
    cfg.slot_size = SLOT;
    cfg.slot_count = 24;
    cfg.max_streams = 2;
    cfg.hard_ns = SECOND / 4;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    look(e); /* less than a huge page */
    return e;
}

static int open_file(fo_engine *e, const char *name, uint32_t flags, uint16_t *id, fo_geometry *g) {
    fo_open o = {.flags = flags, .size = (flags & FO_OPEN_READONLY) != 0 ? 0 : 1 << 20};
    int rc = fo_target_open(e, test_path(name), &o, 10 * SECOND, id, NULL);
    return rc == 0 ? fo_target_geometry(e, *id, g) : rc;
}

static void write_and_read(fo_engine *e, uint16_t id) {
    static unsigned char back[4096];
    unsigned char *bytes = test_bytes(sizeof back, 5);
    fo_request r[2] = {{.target = id, .kind = FO_OP_WRITE, .length = sizeof back, .data = bytes},
                       {.target = id, .kind = FO_OP_READ, .length = sizeof back, .data = back}};
    CHECK_EQ(fo_run(e, &r[0], 1, SECOND), 0);
    CHECK_EQ(r[0].outcome.code, FO_OUTCOME_OK);
    CHECK_EQ(fo_run(e, &r[1], 1, SECOND), 0);
    CHECK_EQ(r[1].outcome.code, FO_OUTCOME_OK);
    CHECK(memcmp(bytes, back, sizeof back) == 0);
    free(bytes);
}

/* A container that forbids the ring gets threads, and hears why; one that has no threads either gets nothing. */
static void no_ring(void) {
    fo_config cfg;
    fo_engine *e;
    fo_info info;
    char reason[160];
    fo_config_init(&cfg);
    refuse(CALL_RING, 1, UINT32_MAX, EPERM);
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    fo_engine_info(e, &info);
    CHECK_EQ(info.ring_flags, 0);
    CHECK_EQ(info.backend, FO_BACKEND_THREADS);
    CHECK(strstr(info.reason, "forbidden") != NULL);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    refuse(CALL_RING, 1, UINT32_MAX, EPERM);
    refuse(CALL_THREAD, 2, 2, EAGAIN); /* the ring's thread is had, the other is not */
    CHECK_EQ(fo_engine_open(&cfg, reason, &e), -EAGAIN);
    CHECK(strstr(reason, "thread") != NULL);
    allow(CALL_THREAD);
    refuse(CALL_RING, 1, 1, LIE);
    cfg.backend = FO_BACKEND_URING;
    CHECK_EQ(fo_engine_open(&cfg, reason, &e), -EOPNOTSUPP);
    CHECK(strstr(reason, "deadline") != NULL);
    allow(CALL_RING);
}

/* A kernel with RWF_DONTCACHE, which this one may not be. */
static void uncached_buffered_io(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_geometry g;
    uint16_t id;
    refuse(CALL_READ, 1, UINT32_MAX, LIE);
    refuse(CALL_WRITE, 1, UINT32_MAX, LIE);
    CHECK_EQ(open_file(e, "buffered", FO_OPEN_REPLACE | FO_OPEN_BUFFERED, &id, &g), 0);
    CHECK_EQ(g.direct, 0);
    write_and_read(e, id);
    allow(CALL_READ);
    allow(CALL_WRITE);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    e = open_engine(FO_BACKEND_THREADS);
    refuse(CALL_READ, 1, 1, EOPNOTSUPP); /* and one without */
    CHECK_EQ(open_file(e, "buffered", FO_OPEN_REPLACE | FO_OPEN_BUFFERED, &id, &g), 0);
    write_and_read(e, id);
    allow(CALL_READ);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* FUSE and network file systems are found by their magic, and are written to by the kernel's own workers. */
static void slow_file_systems(void) {
    fo_engine *e = open_engine(FO_BACKEND_URING);
    fo_geometry g;
    uint16_t id;
    lying_statfs = (struct statfs){.f_type = 0x6969};
    refuse(CALL_FSTATFS, 1, UINT32_MAX, LIE);
    CHECK_EQ(open_file(e, "slow", FO_OPEN_REPLACE, &id, &g), 0);
    CHECK_EQ(g.slow_path, 1);
    write_and_read(e, id);
    allow(CALL_FSTATFS);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* A block size that is none is not believed where it says too much, and refused where no slot could be cut by it. */
static void block_sizes(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    static const struct {
        long size;
        int rc;
        uint32_t granule;
    } cases[] = {{1 << 20, 0, 0}, {-1, 0, 0}, {16384, 0, 16384}, {5000, -EINVAL, 0}};
    fo_geometry plain, g;
    uint16_t id;
    CHECK_EQ(open_file(e, "plain", FO_OPEN_REPLACE, &id, &plain), 0);
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        lying_statfs = (struct statfs){.f_bsize = cases[i].size};
        refuse(CALL_FSTATFS, 1, UINT32_MAX, LIE);
        CHECK_EQ(open_file(e, "plain", FO_OPEN_REPLACE, &id, &g), cases[i].rc);
        if (cases[i].rc == 0) {
            CHECK(cases[i].granule == 0 ? g.granule <= plain.granule : g.granule == cases[i].granule);
            CHECK_EQ(fo_target_close(e, id, SECOND), 0);
        }
    }
    allow(CALL_FSTATFS);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* A disk: its size cannot change, so nothing is allocated there and nothing cut off. */
static void block_devices(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_request r = {.kind = FO_OP_ALLOCATE, .length = 4096};
    fo_geometry g;
    fo_outcome why;
    refuse(CALL_FSTAT, 1, UINT32_MAX, LIE);
    CHECK_EQ(open_file(e, "disk", FO_OPEN_REPLACE, &r.target, &g), -ENOTTY); /* whatever it is, it has no size */
    refuse(CALL_IOCTL, 1, 1, LIE);
    CHECK_EQ(open_file(e, "disk", FO_OPEN_REPLACE, &r.target, &g), -ENOTTY); /* nor sectors */
    refuse(CALL_IOCTL, 1, UINT32_MAX, LIE);
    CHECK_EQ(open_file(e, "disk", FO_OPEN_REPLACE, &r.target, &g), 0);
    CHECK_EQ(g.is_block, 1);
    CHECK_EQ(g.size, 1 << 20);
    CHECK_EQ(fo_run(e, &r, 1, SECOND), 0);
    CHECK_EQ(r.outcome.code, FO_OUTCOME_OK);
    CHECK_EQ(fo_target_finish(e, r.target, 0, SECOND, &why), 0);
    allow(CALL_FSTAT);
    allow(CALL_IOCTL);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* Two processes replace one file that was not there: both go on. */
static void made_in_between(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_geometry g;
    uint16_t id;
    (void)unlink(test_path("between"));
    refuse(CALL_OPEN, 3, 3, LIE); /* after a look for the file, and its directory */
    CHECK_EQ(open_file(e, "between", FO_OPEN_REPLACE | FO_OPEN_NAMED, &id, &g), 0);
    allow(CALL_OPEN);
    CHECK_EQ(g.created, 0);
    write_and_read(e, id);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* A file that was just made, and is another's all the same: there is nothing to wait for. */
static void made_and_locked(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_open o = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .lock_wait_ns = UINT64_MAX / 4};
    uint16_t id;
    (void)unlink(test_path("locked"));
    refuse(CALL_FLOCK, 1, UINT32_MAX, EWOULDBLOCK);
    CHECK_EQ(fo_target_open(e, test_path("locked"), &o, 10 * SECOND, &id, NULL), -EBUSY);
    allow(CALL_FLOCK);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* A file system without fallocate gives at least the size, and a file that has it is not cut. */
static void no_fallocate(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_request r = {.kind = FO_OP_ALLOCATE, .length = 4096};
    fo_geometry g;
    struct stat st;
    refuse(CALL_FALLOCATE, 1, UINT32_MAX, EOPNOTSUPP);
    CHECK_EQ(open_file(e, "sparse", FO_OPEN_REPLACE, &r.target, &g), 0);
    CHECK(stat(test_path("sparse"), &st) == 0 && st.st_size == 1 << 20);
    CHECK_EQ(fo_run(e, &r, 1, SECOND), 0);
    CHECK_EQ(r.outcome.code, FO_OUTCOME_OK);
    CHECK(stat(test_path("sparse"), &st) == 0 && st.st_size == 1 << 20);
    refuse(CALL_FSTAT, 1, UINT32_MAX, EIO);
    CHECK_EQ(fo_run(e, &r, 1, SECOND), 0);
    CHECK_EQ(r.outcome.err, EIO);
    allow(CALL_FSTAT);
    r.length = 2 << 20;
    refuse(CALL_FTRUNCATE, 1, UINT32_MAX, EFBIG);
    CHECK_EQ(fo_run(e, &r, 1, SECOND), 0);
    CHECK_EQ(r.outcome.err, EFBIG);
    allow(CALL_FTRUNCATE);
    allow(CALL_FALLOCATE);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* Where a file grows beside its writes no size is set: it could be less than what has been written meanwhile. */
static void no_fallocate_ahead(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    unsigned char *bytes = test_bytes(4 * SLOT, 7);
    fo_open o = {.flags = FO_OPEN_REPLACE};
    fo_stream *s;
    fo_leg leg;
    uint16_t id;
    refuse(CALL_FALLOCATE, 1, UINT32_MAX, EOPNOTSUPP);
    refuse(CALL_FTRUNCATE, 1, 0, 0); /* counts */
    CHECK_EQ(fo_target_open(e, test_path("growing"), &o, SECOND, &id, NULL), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(fo_stream_write(s, bytes, 4 * SLOT, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 10 * SECOND), 0);
    CHECK(fo_stream_legs(s, &leg, 1) == 1 && leg.state == FO_LEG_SYNCED);
    CHECK_EQ(atomic_load(&refusals[CALL_FALLOCATE].seen), 1); /* and it is not asked for again */
    CHECK_EQ(atomic_load(&refusals[CALL_FTRUNCATE].seen), 0);
    allow(CALL_FALLOCATE);
    fo_stream_close(s);
    CHECK_EQ(fo_target_finish(e, id, 4 * SLOT, SECOND, NULL), 0);
    CHECK(test_file_equals(test_path("growing"), bytes, 4 * SLOT));
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(bytes);
}

/* ---- what hangs ---- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void wait_at_the_gate(void) {
    (void)pthread_mutex_lock(&gate);
    (void)pthread_mutex_unlock(&gate);
}

/* One worker hangs and a second cannot be had: what waits behind it is cancelled with the target, and written by nobody. */
static void jobs_behind_a_hung_worker(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    unsigned char *bytes = test_bytes(SLOT * 2, 6);
    fo_geometry g;
    fo_stream *s;
    fo_leg leg;
    uint16_t id;
    CHECK_EQ(open_file(e, "hung", FO_OPEN_REPLACE, &id, &g), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    (void)pthread_mutex_lock(&gate);
    before_write = wait_at_the_gate;
    refuse(CALL_THREAD, 2, UINT32_MAX, EAGAIN);
    CHECK_EQ(fo_stream_write(s, bytes, 2 * SLOT, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 10 * SECOND), 0);
    for (int i = 0; i < 5000 && (fo_stream_legs(s, &leg, 1) != 1 || leg.inflight != 1); i++) {
        (void)usleep(1000); /* the engine thread is told that the job behind it has ended */
    }
    CHECK_EQ(leg.inflight, 1);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    CHECK_EQ(leg.first.code, FO_OUTCOME_TIMED_OUT);
    allow(CALL_THREAD);
    fo_stream_close(s);
    CHECK_EQ(fo_engine_close(e, SECOND / 100), -ETIMEDOUT); /* the worker keeps what it needs */
    before_write = NULL;
    (void)pthread_mutex_unlock(&gate);
    free(bytes);
    check_nothing_left(nothing);
}

static atomic_int writers;
static atomic_bool met;

/* The first waits until another one is here too, or does not come. */
static void meet(void) {
    bool first = atomic_fetch_add(&writers, 1) == 0;
    for (int i = 0; first && i < 5000 && !atomic_load(&met); i++) {
        (void)usleep(1000);
        atomic_store(&met, atomic_load(&writers) > 1);
    }
}

/* Two jobs at once for a lane whose one worker sleeps: told of the first, it has not woken up when the second comes. */
static void a_worker_for_each_job(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    unsigned char *bytes = test_bytes(SLOT, 8);
    fo_open o = {.flags = FO_OPEN_REPLACE, .hard_ns = 120 * SECOND};
    fo_request r[2];
    fo_outcome why;
    uint16_t id;
    CHECK_EQ(fo_target_open(e, test_path("two"), &o, SECOND, &id, &why), 0);
    r[0] = (fo_request){.target = id, .kind = FO_OP_WRITE, .length = SLOT, .data = bytes};
    r[1] = r[0];
    r[1].offset = SLOT;
    CHECK_EQ(fo_run(e, r, 1, SECOND), 0);
    before_write = meet;
    CHECK_EQ(fo_run(e, r, 2, SECOND), 0);
    before_write = NULL;
    CHECK(atomic_load(&met));
    CHECK_EQ(fo_target_finish(e, id, 0, SECOND, &why), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(bytes);
    check_nothing_left(nothing);
}

/* A file whose name could not be made durable later, for want of its directory, is not made: nothing is there to be in the way. */
static void not_made_in_vain(void) {
    for (unsigned i = 0; i < 5; i++) {
        fo_engine *e = open_engine(FO_BACKEND_THREADS);
        fo_open o = {.flags = i < 2 ? FO_OPEN_CREATE : FO_OPEN_REPLACE};
        unsigned n = i < 2 ? i + 1 : i - 1; /* a replacement looks for the file first */
        uint16_t id;
        refuse(CALL_OPEN, n, n, EACCES);
        CHECK(fo_target_open(e, test_path("vain"), &o, SECOND, &id, NULL) < 0);
        allow(CALL_OPEN);
        CHECK(access(test_path("vain"), F_OK) != 0);
        CHECK_EQ(fo_target_open(e, test_path("vain"), &o, SECOND, &id, NULL), 0);
        CHECK_EQ(unlink(test_path("vain")), 0);
        CHECK_EQ(fo_engine_close(e, SECOND), 0);
        check_nothing_left(nothing);
    }
}

static fo_engine *crowded;

static void *many_writes(void *target) {
    fo_request r[8];
    for (uint32_t i = 0; i < 8; i++) {
        r[i] = (fo_request){.target = *(uint16_t *)target, .kind = FO_OP_WRITE, .length = SLOT, .data = life_bytes};
    }
    CHECK_EQ(fo_run(crowded, r, 8, 60 * SECOND), 0);
    return NULL;
}

/* Requests that hang on some targets leave a control slot for each other one, whose reads, flushes and ends go on. */
static void requests_beside_hung_targets(void) {
    static const char *const names[] = {"hung0", "hung1", "hung2"};
    fo_open o = {.flags = FO_OPEN_REPLACE, .hard_ns = 120 * SECOND, .size = 1 << 20};
    fo_request read = {.kind = FO_OP_READ, .length = SLOT, .data = test_bytes(SLOT, 6)};
    fo_info info = {0};
    fo_outcome why;
    pthread_t threads[3];
    uint16_t hung[3], good;
    crowded = open_engine(FO_BACKEND_THREADS);
    for (int i = 0; i < 3; i++) {
        REQUIRE(fo_target_open(crowded, test_path(names[i]), &o, SECOND, &hung[i], NULL) == 0);
    }
    REQUIRE(fo_target_open(crowded, test_path("good"), &o, SECOND, &good, NULL) == 0);
    (void)pthread_mutex_lock(&gate);
    before_write = wait_at_the_gate;
    for (uint32_t i = 0; i < 3; i++) { /* three of four, the last one, and one beyond them */
        REQUIRE(pthread_create(&threads[i], NULL, many_writes, &hung[i]) == 0);
        for (int polls = 0; polls < 5000 && info.slots_control < 3 + i; polls++) {
            (void)usleep(1000);
            fo_engine_info(crowded, &info);
        }
        (void)usleep(10000); /* for one more, if it were given one */
        fo_engine_info(crowded, &info);
        CHECK_EQ(info.slots_control, 3 + i);
    }
    read.target = good;
    CHECK_EQ(fo_run(crowded, &read, 1, SECOND), 0);
    CHECK_EQ(read.outcome.code, FO_OUTCOME_OK);
    CHECK_EQ(fo_target_finish(crowded, good, -1, SECOND, &why), 0);
    before_write = NULL;
    (void)pthread_mutex_unlock(&gate);
    for (int i = 0; i < 3; i++) {
        REQUIRE(pthread_join(threads[i], NULL) == 0);
    }
    CHECK_EQ(fo_engine_close(crowded, SECOND), 0);
    free(read.data);
    check_nothing_left(nothing);
}

static void *finish_it(void *target) {
    CHECK_EQ(fo_target_finish(crowded, *(uint16_t *)target, -1, 20 * SECOND, NULL), 0);
    return NULL;
}

/* Requests of others have all slots, also those that are lent: a flush goes on with the first that is given back. */
static void a_flush_gets_its_slot(void) {
    fo_open o = {.flags = FO_OPEN_REPLACE};
    uint32_t taken[64], n = 0, waiting = 0;
    pthread_t thread;
    uint16_t id;
    crowded = open_engine(FO_BACKEND_THREADS);
    REQUIRE(fo_target_open(crowded, test_path("flushed"), &o, SECOND, &id, NULL) == 0);
    (void)pthread_mutex_lock(&crowded->mutex);
    while ((taken[n] = fo_machine_take_control(&crowded->machine, (uint16_t)(100 + n))) != FO_NIL && ++n < 63) {
    }
    (void)pthread_mutex_unlock(&crowded->mutex);
    CHECK_EQ(n, crowded->machine.cfg.control_slots + crowded->machine.cfg.quarantine_slots);
    REQUIRE(pthread_create(&thread, NULL, finish_it, &id) == 0);
    while (waiting == 0) {
        (void)usleep(100);
        (void)pthread_mutex_lock(&crowded->mutex);
        waiting = crowded->slots_waiting;
        (void)pthread_mutex_unlock(&crowded->mutex);
    }
    (void)pthread_mutex_lock(&crowded->mutex);
    while (n-- > 0) {
        fo_machine_collect(&crowded->machine, taken[n]);
    }
    fo_engine_notify(crowded);
    (void)pthread_mutex_unlock(&crowded->mutex);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK_EQ(fo_engine_close(crowded, SECOND), 0);
    check_nothing_left(nothing);
}

/* The kernel keeps the engine thread: the close does not wait for it, and nothing is freed under it. */
static void thread_that_stays(void) {
    fo_engine *e = open_engine(FO_BACKEND_URING);
    refuse(CALL_JOIN, 1, UINT32_MAX, EBUSY);
    CHECK_EQ(fo_engine_close(e, SECOND), -ETIMEDOUT);
    allow(CALL_JOIN);
    refuse(CALL_BUFFERS, 1, 1, ENOMEM); /* memory that the kernel may be reading yet is not unmapped: that of the arena stays */
    e = open_engine(FO_BACKEND_URING);
    refuse(CALL_JOIN, 1, UINT32_MAX, EBUSY);
    CHECK_EQ(fo_engine_close(e, SECOND), -ETIMEDOUT);
    allow(CALL_JOIN);
    allow(CALL_BUFFERS);
    check_nothing_left(nothing);
}

static atomic_bool at_the_gate;

static void come_to_the_gate(void) {
    atomic_store(&at_the_gate, true);
    wait_at_the_gate();
}

/* The engine thread has a descriptor in hand, and comes to the kernel with it when the engine was closed without it: until then
 * the number is no other file's, or that would be written to. */
static void thread_that_comes_late(void) {
    fo_engine *e = open_engine(FO_BACKEND_URING);
    unsigned char *bytes = test_bytes(SLOT, 9);
    fo_geometry g;
    fo_stream *s;
    uint16_t id;
    int fd;
    CHECK_EQ(open_file(e, "late", FO_OPEN_REPLACE, &id, &g), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    fd = atomic_load(&e->blocks[id]->fd);
    (void)pthread_mutex_lock(&gate);
    before_file = come_to_the_gate;
    CHECK_EQ(fo_stream_write(s, bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    while (!atomic_load(&at_the_gate)) {
        (void)usleep(100);
    }
    fo_stream_close(s);
    refuse(CALL_CLOCK, 1, UINT32_MAX, LIE); /* no wait is for a time of day, which somebody may set back */
    CHECK_EQ(fo_engine_close(e, SECOND / 100), -ETIMEDOUT);
    allow(CALL_CLOCK);
    for (int i = 0; i < 100 && fcntl(fd, F_GETFD) >= 0; i++) {
        (void)usleep(1000);
    }
    CHECK(fcntl(fd, F_GETFD) >= 0);
    before_file = NULL;
    (void)pthread_mutex_unlock(&gate);
    free(bytes);
    check_nothing_left(nothing);
}

/* The engine thread was kept for longer than the hard deadline, as it is where the whole process is stopped: no target hung. */
static void thread_that_was_kept(void) {
    fo_engine *e = open_engine(FO_BACKEND_URING);
    unsigned char *bytes = test_bytes(SLOT, 10);
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = 1 << 20, .soft_ns = SECOND / 2, .hard_ns = 2 * SECOND};
    fo_stream *s;
    fo_leg leg;
    uint16_t id;
    CHECK_EQ(fo_target_open(e, test_path("kept"), &o, 10 * SECOND, &id, NULL), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    atomic_store(&at_the_gate, false);
    (void)pthread_mutex_lock(&gate);
    before_file = come_to_the_gate;
    CHECK_EQ(fo_stream_write(s, bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    while (!atomic_load(&at_the_gate)) {
        (void)usleep(100);
    }
    (void)usleep(3500000);
    before_file = NULL;
    (void)pthread_mutex_unlock(&gate);
    CHECK_EQ(fo_stream_sync(s, 20 * SECOND), 0);
    CHECK_EQ(fo_stream_legs(s, &leg, 1), 1);
    CHECK_EQ(leg.state, FO_LEG_SYNCED);
    CHECK_EQ(leg.first.code, FO_OUTCOME_OK);
    fo_stream_close(s);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(bytes);
    check_nothing_left(nothing);
}

/* Opens a file that is locked for longer than it waits; but for most of that time it is stopped. */
static void wait_for_a_lock(const char *path, int going) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_open o = {.flags = FO_OPEN_LOCK, .lock_wait_ns = 60 * SECOND};
    fo_outcome why;
    uint16_t id;
    REQUIRE(write(going, "", 1) == 1);
    CHECK_EQ(fo_target_open(e, path, &o, SECOND * 3 / 2, &id, &why), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* A wait is not over because its process was stopped: what it waits for may be there, and nobody could look. */
static void wait_of_a_stopped_process(void) {
    const char *path = test_path("locked");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), going[2], status;
    char byte;
    pid_t child;
    REQUIRE(fd >= 0 && flock(fd, LOCK_EX) == 0 && pipe(going) == 0);
    (void)fflush(stdout);
    child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        test_failures = 0;
        wait_for_a_lock(path, going[1]);
        exit(test_failures != 0);
    }
    CHECK_EQ(read(going[0], &byte, 1), 1);
    (void)usleep(300000);
    CHECK_EQ(kill(child, SIGSTOP), 0);
    (void)usleep(3500000);
    CHECK_EQ(flock(fd, LOCK_UN), 0);
    CHECK_EQ(kill(child, SIGCONT), 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    (void)close(going[0]);
    (void)close(going[1]);
    (void)close(fd);
}

/* The helper comes to a close after the hard deadline: it is done all the same, or a forked child would close whatever has the
 * number by then. */
static void close_behind_a_hung_helper(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_submission hung = {.kind = FO_OP_FLUSH}; /* of nobody: its completion is a stray */
    fo_geometry g;
    fo_info info;
    uint16_t id;
    CHECK_EQ(open_file(e, "closing", FO_OPEN_REPLACE, &id, &g), 0);
    (void)pthread_mutex_lock(&gate);
    before_flush = wait_at_the_gate;
    (void)pthread_mutex_lock(&e->mutex);
    CHECK_EQ(fo_pool_push(&e->blocks[id]->helper, &hung), 0);
    (void)pthread_mutex_unlock(&e->mutex);
    CHECK_EQ(fo_target_close(e, id, 10 * SECOND), -ETIMEDOUT);
    (void)usleep(20000);
    fo_engine_info(e, &info);
    CHECK_EQ(info.targets, 1);
    before_flush = NULL;
    (void)pthread_mutex_unlock(&gate);
    for (int i = 0; i < 5000 && info.targets != 0; i++) {
        (void)usleep(1000);
        fo_engine_info(e, &info);
    }
    CHECK_EQ(info.targets, 0);
    CHECK_EQ(atomic_load(&e->fork_fds[id]), -1);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    check_nothing_left(nothing);
}

int main(void) {
    static const uint32_t backends[] = {FO_BACKEND_FAULTY, FO_BACKEND_THREADS, FO_BACKEND_URING};
    test_dir_make();
    life_bytes = test_bytes(LENGTH, 1);
    nothing = holding();
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        backend = backends[i];
        printf("backend %s\n", fo_backend_name(backend));
        RUN(every_call);
    }
    RUN(no_ring);
    RUN(uncached_buffered_io);
    RUN(slow_file_systems);
    RUN(block_sizes);
    RUN(block_devices);
    RUN(made_in_between);
    RUN(made_and_locked);
    RUN(no_fallocate);
    RUN(no_fallocate_ahead);
    RUN(jobs_behind_a_hung_worker);
    RUN(a_worker_for_each_job);
    RUN(not_made_in_vain);
    RUN(requests_beside_hung_targets);
    RUN(a_flush_gets_its_slot);
    RUN(thread_that_stays);
    RUN(thread_that_comes_late);
    RUN(thread_that_was_kept);
    RUN(wait_of_a_stopped_process);
    RUN(close_behind_a_hung_helper);
    free(life_bytes);
    test_dir_remove();
    return test_end();
}
