/*
 * test_storm.c: clients that come and go on targets that fail, on real threads.
 *
 * The system calls that the workers make on a target are this program's own: on a bad file they report errors, do a part, take
 * long, or hang past the hard deadline and are carried out afterwards (late).  Under the threads backend that is every write; under
 * io_uring it is everything but reads and writes.  Each client opens its own two files with locks, pours into them by writes and
 * leases, aborts, ejects, syncs, reads back, closes without waiting, and opens the same names again.  A policy thread looks
 * and ejects, two readers take events.
 *
 * What could break: a race (run it under ThreadSanitizer), a wake-up that is lost (every wait here is bounded, and one that ends by
 * its timeout is a failure), a late write that lands in the next opening's bytes, a slot or a target that never comes back.
 *
 * FO_STRESS_SECONDS says how long each backend is stormed; the default is short enough for every test run.  FO_SEED repeats one.
 */
#include "fanout.h"
#include "testing.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#define MS 1000000ull
#define SECOND 1000000000ull
#define PATIENCE (120 * SECOND) /* sanitizers and busy machines included */
#define KIB ((size_t)1 << 10)
#define SLOT (64 * KIB)
#define CLIENTS 6
#define REGION (24 * SLOT)
#define HARD_NS (150 * MS)

static uint32_t backend;
static uint64_t seed;
static fo_engine *engine;
static atomic_int stop, complaints;
static atomic_uint_fast64_t injected, hung, late_seen, synced, failed, aborted, rounds;
static _Atomic uint64_t bad_inodes[CLIENTS];
static _Atomic uint64_t until_ns;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            atomic_fetch_add(&complaints, 1);                                                      \
            printf("  %s:%d: %s\n", __FILE__, __LINE__, #condition);                               \
        }                                                                                          \
    } while (0)

static uint64_t now_ns(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

static void pause_ns(uint64_t ns) {
    struct timespec ts = {(time_t)(ns / SECOND), (long)(ns % SECOND)};
    (void)nanosleep(&ts, NULL);
}

/* ---- the system calls of the workers ---- */

static bool is_bad(int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return false;
    }
    for (int i = 0; i < CLIENTS; i++) {
        if (atomic_load(&bad_inodes[i]) == (uint64_t)st.st_ino) {
            return true;
        }
    }
    return false;
}

typedef enum fate { DONE, FAILS, PARTIAL, FAILS_AFTERWARDS } fate;

/* What becomes of one call; may take its time first. */
static fate decide(int fd, int *err) {
    static const int final[] = {EIO, ENOSPC, ENODATA, ETIMEDOUT}, passing[] = {EAGAIN, EINTR, EBUSY, ENOMEM};
    static atomic_uint_fast64_t count;
    uint64_t state = seed + atomic_fetch_add(&count, 1);
    uint64_t dice = test_random(&state), which = dice >> 32 & 3;
    *err = 0;
    if (!is_bad(fd)) {
        return DONE;
    }
    switch (dice % 200) {
    case 0:
        *err = final[which];
        break;
    case 1:
    case 2:
    case 3:
        *err = passing[which];
        break;
    case 4:
        atomic_fetch_add(&hung, 1);
        pause_ns(2 * HARD_NS);
        *err = which == 0 ? EIO : 0;
        break;
    case 5:
    case 6:
        pause_ns(which * 20 * MS);
        return DONE;
    case 7:
        *err = final[which];
        atomic_fetch_add(&injected, 1);
        return FAILS_AFTERWARDS;
    case 8:
    case 9:
        return PARTIAL;
    default:
        return DONE;
    }
    atomic_fetch_add(&injected, *err != 0);
    return *err != 0 ? FAILS : DONE;
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags) {
    struct iovec part = *iov;
    int err;
    fate what = decide(fd, &err);
    ssize_t n;
    if (what == FAILS) {
        errno = err;
        return -1;
    }
    if (what == PARTIAL && part.iov_len >= 8 * KIB) {
        part.iov_len = part.iov_len / 8 / KIB * 4 * KIB;
    }
    n = syscall(SYS_pwritev2, fd, &part, count, offset, 0, flags);
    if (n >= 0 && what == FAILS_AFTERWARDS) {
        errno = err;
        return -1;
    }
    return n;
}

static int called(int fd, long number, long a, long b, long c) {
    int err;
    fate what = decide(fd, &err);
    int rc = what == FAILS ? -1 : (int)syscall(number, fd, a, b, c);
    if (rc == 0 && what == FAILS_AFTERWARDS) {
        rc = -1;
    }
    if (err != 0) {
        errno = err;
    }
    return rc;
}

int fsync(int fd) { return called(fd, SYS_fsync, 0, 0, 0); }
int fdatasync(int fd) { return called(fd, SYS_fdatasync, 0, 0, 0); }
int ftruncate(int fd, off_t length) { return called(fd, SYS_ftruncate, length, 0, 0); }
int fallocate(int fd, int mode, off_t offset, off_t length) { return called(fd, SYS_fallocate, mode, offset, length); }

/* ---- clients ---- */

typedef struct client {
    uint64_t number, random;
    pthread_mutex_t shown; /* guards what the policy thread may look at */
    fo_stream *stream;
    uint16_t bad;
} client;

static client clients[CLIENTS];

static uint64_t roll(client *c, uint64_t sides) { return test_random(&c->random) % sides; }

static void show(client *c, fo_stream *s, uint16_t bad) {
    (void)pthread_mutex_lock(&c->shown);
    c->stream = s;
    c->bad = bad;
    (void)pthread_mutex_unlock(&c->shown);
}

/* 0, or what kept it from being opened: a bad one may have met with a fault. */
static int open_one(client *c, bool bad, uint16_t *id) {
    fo_open o = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .depth = 4, .lock_wait_ns = PATIENCE, .size = REGION};
    fo_outcome why;
    char name[32];
    (void)snprintf(name, sizeof name, "%s%llu", bad ? "bad" : "good", (unsigned long long)c->number);
    if (bad) {
        o.soft_ns = HARD_NS / 4;
        o.hard_ns = HARD_NS;
        o.lock_wait_ns = 4 * HARD_NS; /* until the late write of the last round has landed */
    }
    return fo_target_open(engine, test_path(name), &o, PATIENCE, id, &why);
}

static int pour(client *c, fo_stream *s, const unsigned char *data, size_t n) {
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < n;) {
        size_t piece = 1 + (size_t)roll(c, 3 * SLOT);
        piece = piece < n - at ? piece : n - at;
        if (roll(c, 3) == 0) {
            void *memory;
            size_t room;
            rc = fo_stream_lease(s, 0, PATIENCE, &memory, &room);
            if (rc == 0) {
                piece = piece < room ? piece : room;
                memcpy(memory, data + at, piece);
                rc = fo_stream_commit(s, piece, 0, NULL);
            }
        } else {
            rc = fo_stream_write(s, data + at, piece, 0, PATIENCE, NULL, NULL);
        }
        at += piece;
    }
    return rc;
}

static void read_back(uint16_t target, const unsigned char *data, size_t n) {
    unsigned char *back = malloc(SLOT);
    for (size_t at = 0; at < n; at += SLOT) {
        size_t part = n - at < SLOT ? n - at : SLOT;
        fo_request r = {.target = target, .kind = FO_OP_READ, .offset = at, .length = (part + 4095) / 4096 * 4096, .data = back};
        EXPECT(fo_run(engine, &r, 1, PATIENCE) == 0);
        if (r.outcome.code == FO_OUTCOME_OK) { /* a bad one may have been let go meanwhile */
            EXPECT(memcmp(back, data + at, part) == 0);
        }
    }
    free(back);
}

static void check_legs(fo_stream *s, const uint16_t *ids, uint32_t count, const unsigned char *data, size_t n) {
    fo_leg legs[2];
    EXPECT(fo_stream_legs(s, legs, 2) == (int)count);
    for (uint32_t i = 0; i < count; i++) {
        EXPECT(legs[i].accepted >= legs[i].submitted && legs[i].submitted >= legs[i].completed);
        EXPECT(legs[i].completed >= legs[i].synced);
        if (legs[i].state == FO_LEG_SYNCED) {
            atomic_fetch_add(&synced, 1);
            EXPECT(legs[i].first.code == FO_OUTCOME_OK);
            read_back(ids[i], data, n);
        } else {
            atomic_fetch_add(&failed, 1);
            EXPECT(i == 1 && legs[i].first.code != FO_OUTCOME_OK); /* never the healthy one */
        }
    }
}

static void one_stream(client *c, const uint16_t *ids, uint32_t count, bool last) {
    size_t n = (size_t)(1 + roll(c, REGION - 4096));
    unsigned char *data = test_bytes(n, c->random);
    uint64_t offsets[2] = {0, 0};
    uint8_t a[16], b[16];
    fo_stream *s;
    int rc = fo_stream_open(engine, ids, count, PATIENCE, &s);
    if (rc == -EINVAL && count == 2) { /* it has failed since it was opened */
        free(data);
        return;
    }
    EXPECT(rc == 0);
    EXPECT(fo_stream_place(s, offsets, REGION) == 0);
    show(c, s, count == 2 ? ids[1] : UINT16_MAX);
    EXPECT(pour(c, s, data, n) == 0);
    EXPECT(fo_stream_digest(s, a) == 0);
    fo_digest(data, n, b);
    EXPECT(memcmp(a, b, 16) == 0);
    if (roll(c, 5) == 0) {
        EXPECT(fo_stream_abort(s) == 0);
        atomic_fetch_add(&aborted, 1);
    } else {
        EXPECT(fo_stream_sync(s, PATIENCE) == 0);
        check_legs(s, ids, count, data, n);
    }
    show(c, NULL, UINT16_MAX);
    if (!last || roll(c, 2) == 0) { /* a region may be written again only when nothing is in flight there */
        EXPECT(fo_stream_drained(s, PATIENCE) == 0);
    }
    fo_stream_close(s);
    free(data);
}

static void leave_one(client *c, uint16_t id, bool bad) {
    int rc;
    switch (roll(c, 3)) {
    case 0:
        fo_target_forget(engine, id);
        return;
    case 1:
        rc = fo_target_close(engine, id, roll(c, 2) * PATIENCE);
        break;
    default:
        rc = fo_target_finish(engine, id, (int64_t)roll(c, REGION), PATIENCE, NULL);
        break;
    }
    EXPECT(bad || rc == 0 || rc == -ETIMEDOUT);
}

static void *client_main(void *arg) {
    client *c = arg;
    while (now_ns() < atomic_load(&until_ns)) {
        uint16_t ids[2];
        uint32_t count = 1;
        EXPECT(open_one(c, false, &ids[0]) == 0);
        if (open_one(c, true, &ids[1]) == 0) {
            count = 2;
        }
        for (uint64_t i = 1 + roll(c, 3); i > 0; i--) {
            one_stream(c, ids, count, i == 1);
        }
        for (uint32_t i = 0; i < count; i++) {
            leave_one(c, ids[i], i == 1);
        }
        atomic_fetch_add(&rounds, 1);
    }
    return NULL;
}

/* ---- those who look on ---- */

static void *reader_main(void *arg) {
    fo_event ev[32];
    (void)arg;
    while (!atomic_load(&stop)) {
        int n = fo_events(engine, ev, 32, 10 * MS);
        EXPECT(n >= 0);
        for (int i = 0; i < n; i++) {
            atomic_fetch_add(&late_seen, ev[i].kind == FO_EVENT_LATE);
        }
    }
    return NULL;
}

static void *policy_main(void *arg) {
    uint64_t random = seed;
    (void)arg;
    while (!atomic_load(&stop)) {
        client *c = &clients[test_random(&random) % CLIENTS];
        fo_leg legs[2];
        fo_info info;
        fo_geometry g;
        (void)pthread_mutex_lock(&c->shown);
        if (c->stream != NULL) {
            (void)fo_stream_legs(c->stream, legs, 2);
            (void)fo_stream_position(c->stream);
            if (c->bad != UINT16_MAX && test_random(&random) % 16 == 0) {
                EXPECT(fo_stream_eject(c->stream, c->bad) == 0);
            }
        }
        (void)pthread_mutex_unlock(&c->shown);
        fo_engine_info(engine, &info);
        EXPECT(info.slots_free + info.slots_filling + info.slots_live + info.slots_lagging + info.slots_control +
                   info.slots_quarantined ==
               info.slot_count);
        (void)fo_target_geometry(engine, (uint16_t)(test_random(&random) % FO_MAX_TARGETS), &g);
        pause_ns(MS);
    }
    return NULL;
}

/* ---- the storm ---- */

static void make_files(void) {
    char name[32];
    for (int i = 0; i < CLIENTS; i++) {
        struct stat st;
        int fd;
        (void)snprintf(name, sizeof name, "bad%d", i);
        fd = open(test_path(name), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
        REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
        (void)close(fd);
        atomic_store(&bad_inodes[i], (uint64_t)st.st_ino);
    }
}

static void open_engine(void) {
    fo_config cfg;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 64;
    cfg.max_streams = CLIENTS - 2; /* admission has to wait */
    cfg.quarantine_slots = 16;
    cfg.control_slots = 3;
    cfg.soft_ns = cfg.hard_ns = PATIENCE;
    REQUIRE(fo_engine_open(&cfg, reason, &engine) == 0);
}

/* Everything comes back: what hung has landed, what was closed without waiting has closed itself. */
static void settle(void) {
    uint64_t limit = now_ns() + PATIENCE;
    fo_info info;
    do {
        pause_ns(MS);
        fo_engine_info(engine, &info);
    } while ((info.slots_free != info.slot_count || info.targets != 0) && now_ns() < limit);
    CHECK_EQ(info.slots_free, info.slot_count);
    CHECK_EQ(info.targets, 0);
    CHECK_EQ(info.streams, 0);
}

/* One engine's life. */
static void storm_once(uint64_t ns) {
    pthread_t threads[CLIENTS], watchers[3];
    atomic_store(&stop, 0);
    atomic_store(&until_ns, now_ns() + ns);
    open_engine();
    for (int i = 0; i < 3; i++) {
        REQUIRE(pthread_create(&watchers[i], NULL, i < 2 ? reader_main : policy_main, NULL) == 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, client_main, &clients[i]) == 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    settle();
    atomic_store(&stop, 1);
    for (int i = 0; i < 3; i++) {
        (void)pthread_join(watchers[i], NULL);
    }
    CHECK_EQ(fo_engine_close(engine, PATIENCE), 0);
}

static uint64_t storm_ns(void) {
    const char *text = getenv("FO_STRESS_SECONDS");
    return text != NULL ? strtoull(text, NULL, 10) * SECOND : 2 * SECOND;
}

static void storm(void) {
    uint64_t end = now_ns() + storm_ns();
    make_files();
    for (uint64_t i = 0; i < CLIENTS; i++) {
        clients[i] = (client){.number = i, .random = seed + i, .bad = UINT16_MAX};
        (void)pthread_mutex_init(&clients[i].shown, NULL);
    }
    do {
        uint64_t left = end > now_ns() ? end - now_ns() : 1;
        storm_once(left < 5 * SECOND ? left : 5 * SECOND);
    } while (now_ns() < end && test_failures == 0);
    printf("  seed %llu: %llu rounds, %llu legs synced, %llu failed, %llu aborts, %llu errors, %llu hangs, %llu late\n",
           (unsigned long long)seed, (unsigned long long)atomic_load(&rounds), (unsigned long long)atomic_load(&synced),
           (unsigned long long)atomic_load(&failed), (unsigned long long)atomic_load(&aborted),
           (unsigned long long)atomic_load(&injected), (unsigned long long)atomic_load(&hung),
           (unsigned long long)atomic_load(&late_seen));
    CHECK_EQ(atomic_load(&complaints), 0);
    CHECK(atomic_load(&rounds) > 0 && atomic_load(&synced) > 0);
}

int main(void) {
    static const uint32_t kinds[] = {FO_BACKEND_THREADS, FO_BACKEND_URING};
    const char *given = getenv("FO_SEED");
    seed = given != NULL ? strtoull(given, NULL, 10) : now_ns();
    test_dir_make();
    for (size_t i = 0; i < 2; i++) {
        fo_config cfg;
        char reason[160];
        fo_config_init(&cfg);
        cfg.backend = backend = kinds[i];
        if (fo_engine_open(&cfg, reason, &engine) != 0) {
            printf("backend %s: cannot run here, %s\n", fo_backend_name(backend), reason);
            continue;
        }
        CHECK_EQ(fo_engine_close(engine, SECOND), 0);
        printf("backend %s\n", fo_backend_name(backend));
        RUN(storm);
    }
    test_dir_remove();
    return test_end();
}
