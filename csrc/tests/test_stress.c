/*
 * test_stress.c: several clients, an event reader, a policy thread that ejects, and a target that fails, all at once.  What it
 * looks for is races (run it under ThreadSanitizer), lost wake-ups (a wait that ends by its timeout is a failure) and bytes of
 * one client in another's place.
 */
#include "fanout.h"
#include "testing.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#define SECOND 1000000000ull
#define MIB ((uint64_t)1 << 20)
#define SLOT ((size_t)64 << 10)
#define CLIENTS 5
#define TARGETS 4 /* the last one fails: a file size limit lies in the middle of it */
#define ROUNDS 12
#define REGION (2 * MIB)
#define LIMIT (CLIENTS * REGION / 2 + 8 * MIB)

static uint32_t backend;
static fo_engine *engine;
static uint16_t targets[TARGETS];
static atomic_int stop, complaints;
static atomic_uint_fast64_t events_seen;

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            atomic_fetch_add(&complaints, 1);                                                      \
            printf("  %s:%d: %s\n", __FILE__, __LINE__, #condition);                               \
        }                                                                                          \
    } while (0)

typedef struct client {
    uint64_t number, random;
    fo_stream *_Atomic stream; /* shown to the policy thread while it is open */
    pthread_mutex_t closing;
} client;

static client clients[CLIENTS];

static uint64_t base_of(const client *c, int target) {
    return c->number * REGION + (target == TARGETS - 1 ? 8 * MIB : 0);
}

/* What is on every target whose leg was synced is exactly what was written. */
static void read_back(const client *c, int target, const unsigned char *data, size_t n) {
    unsigned char *back = malloc(SLOT);
    for (size_t at = 0; at < n; at += SLOT) {
        size_t part = n - at < SLOT ? (n - at) / 4096 * 4096 : SLOT;
        fo_request r = {.target = targets[target], .kind = FO_OP_READ, .offset = base_of(c, target) + at, .length = part,
                        .data = back};
        EXPECT(fo_run(engine, &r, 1, 60 * SECOND) == 0);
        EXPECT(r.outcome.code == FO_OUTCOME_OK);
        EXPECT(memcmp(back, data + at, part) == 0);
    }
    free(back);
}

static int lease_piece(fo_stream *s, const unsigned char *data, size_t *piece) {
    void *memory;
    size_t room;
    int rc = fo_stream_lease(s, 0, 60 * SECOND, &memory, &room);
    if (rc == 0) {
        *piece = *piece < room ? *piece : room;
        memcpy(memory, data, *piece);
        rc = fo_stream_commit(s, *piece, 0, NULL);
    }
    return rc;
}

static int write_pieces(client *c, fo_stream *s, const unsigned char *data, size_t n) {
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < n;) {
        size_t piece = 1 + (size_t)(test_random(&c->random) % 200000);
        piece = piece < n - at ? piece : n - at;
        if (test_random(&c->random) % 3 == 0) {
            rc = lease_piece(s, data + at, &piece);
        } else {
            rc = fo_stream_write(s, data + at, piece, 0, 60 * SECOND, NULL, NULL);
        }
        at += piece;
    }
    return rc;
}

static void one_round(client *c) {
    size_t n = (size_t)(1 + test_random(&c->random) % (REGION - 4096));
    unsigned char *data = test_bytes(n, c->random);
    uint64_t offsets[TARGETS];
    uint8_t a[16], b[16];
    fo_leg legs[TARGETS];
    fo_stream *s;
    int rc;
    EXPECT(fo_stream_open(engine, targets, TARGETS, 60 * SECOND, &s) == 0);
    for (int i = 0; i < TARGETS; i++) {
        offsets[i] = base_of(c, i);
    }
    EXPECT(fo_stream_place(s, offsets, REGION) == 0);
    atomic_store(&c->stream, s);
    rc = write_pieces(c, s, data, n);
    EXPECT(rc == 0);
    EXPECT(fo_stream_digest(s, a) == 0);
    fo_digest(data, n, b);
    EXPECT(memcmp(a, b, 16) == 0);
    if (test_random(&c->random) % 4 == 0) {
        EXPECT(fo_stream_abort(s) == 0);
        EXPECT(fo_stream_drained(s, 60 * SECOND) == 0);
    } else {
        EXPECT(fo_stream_sync(s, 60 * SECOND) == 0);
    }
    (void)pthread_mutex_lock(&c->closing);
    atomic_store(&c->stream, NULL);
    (void)pthread_mutex_unlock(&c->closing);
    EXPECT(fo_stream_drained(s, 60 * SECOND) == 0);
    EXPECT(fo_stream_legs(s, legs, TARGETS) == TARGETS);
    fo_stream_close(s);
    for (int i = 0; i < TARGETS; i++) {
        EXPECT(legs[i].accepted >= legs[i].submitted && legs[i].submitted >= legs[i].completed);
        EXPECT(legs[i].completed >= legs[i].synced && legs[i].inflight == 0);
        if (legs[i].state == FO_LEG_SYNCED) {
            read_back(c, i, data, n);
        }
    }
    free(data);
}

static void *client_main(void *arg) {
    for (int i = 0; i < ROUNDS; i++) {
        one_round(arg);
    }
    return NULL;
}

static void *reader_main(void *arg) {
    fo_event ev[32];
    (void)arg;
    while (!atomic_load(&stop)) {
        int n = fo_events(engine, ev, 32, SECOND / 100);
        EXPECT(n >= 0);
        for (int i = 0; i < n; i++) {
            uint64_t last = atomic_fetch_add(&events_seen, 1);
            EXPECT(ev[i].seq == last + 1);
        }
    }
    return NULL;
}

/* Asks, and sleeps until it is told. */
static void *watcher_main(void *arg) {
    int fd = eventfd(0, EFD_CLOEXEC);
    uint64_t count;
    (void)arg;
    while (!atomic_load(&stop)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        EXPECT(fo_watch(engine, fd) == 0);
        if (poll(&p, 1, 100) == 1) {
            EXPECT(read(fd, &count, sizeof count) == sizeof count && count == 1);
            (void)usleep(200);
        }
    }
    fo_unwatch(engine, fd);
    (void)close(fd);
    return NULL;
}

static void *policy_main(void *arg) {
    uint64_t random = 99;
    (void)arg;
    while (!atomic_load(&stop)) {
        client *c = &clients[test_random(&random) % CLIENTS];
        fo_info info;
        fo_geometry g;
        fo_leg legs[TARGETS];
        (void)pthread_mutex_lock(&c->closing);
        if (atomic_load(&c->stream) != NULL) {
            (void)fo_stream_legs(atomic_load(&c->stream), legs, TARGETS);
            (void)fo_stream_position(atomic_load(&c->stream));
            if (test_random(&random) % 8 == 0) {
                EXPECT(fo_stream_eject(atomic_load(&c->stream), targets[1]) == 0);
            }
        }
        (void)pthread_mutex_unlock(&c->closing);
        fo_engine_info(engine, &info);
        EXPECT(info.slots_free + info.slots_filling + info.slots_live + info.slots_lagging + info.slots_control +
                   info.slots_quarantined ==
               info.slot_count);
        EXPECT(fo_target_geometry(engine, targets[0], &g) == 0);
        (void)usleep(500);
    }
    return NULL;
}

static void open_all(void) {
    fo_config cfg;
    char reason[160], name[16];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 32;
    cfg.max_streams = 4; /* fewer than clients: admission has to wait */
    cfg.quarantine_slots = 8;
    cfg.control_slots = 2;
    REQUIRE(fo_engine_open(&cfg, reason, &engine) == 0);
    for (int i = 0; i < TARGETS; i++) {
        fo_open o = {.flags = FO_OPEN_REPLACE, .size = 20 * MIB, .depth = 4};
        if (i == 1) { /* the one that the policy thread ejects may also be ejected for the least hiccup */
            o.on_slow = FO_SLOW_EJECT;
            o.patience_ns = 3000000;
        }
        (void)snprintf(name, sizeof name, "s%d", i);
        REQUIRE(fo_target_open(engine, test_path(name), &o, 10 * SECOND, &targets[i], NULL) == 0);
    }
}

static void stress(void) {
    pthread_t threads[CLIENTS], reader, policy, watcher;
    struct rlimit old, low;
    fo_info info;
    atomic_store(&stop, 0);
    atomic_store(&complaints, 0);
    atomic_store(&events_seen, 0);
    open_all();
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    low = old;
    low.rlim_cur = LIMIT;
    (void)signal(SIGXFSZ, SIG_IGN);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &low) == 0);
    for (uint64_t i = 0; i < CLIENTS; i++) {
        clients[i] = (client){.number = i, .random = i * 7919 + 1};
        (void)pthread_mutex_init(&clients[i].closing, NULL);
    }
    REQUIRE(pthread_create(&reader, NULL, reader_main, NULL) == 0);
    REQUIRE(pthread_create(&policy, NULL, policy_main, NULL) == 0);
    REQUIRE(pthread_create(&watcher, NULL, watcher_main, NULL) == 0);
    for (uint64_t i = 0; i < CLIENTS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, client_main, &clients[i]) == 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    atomic_store(&stop, 1);
    (void)pthread_join(reader, NULL);
    (void)pthread_join(policy, NULL);
    (void)pthread_join(watcher, NULL);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &old) == 0);
    fo_engine_info(engine, &info);
    CHECK_EQ(info.slots_free, info.slot_count);
    CHECK_EQ(info.streams, 0);
    printf("  %llu events, %llu steps, %llu submissions, %llu wake-ups\n", (unsigned long long)atomic_load(&events_seen),
           (unsigned long long)info.steps, (unsigned long long)info.submissions, (unsigned long long)info.wakeups);
    CHECK(atomic_load(&events_seen) > 0); /* the limit was reached */
    CHECK_EQ(fo_engine_close(engine, 10 * SECOND), 0);
    CHECK_EQ(atomic_load(&complaints), 0);
}

/* Opening and closing targets, and whole engines, beside writers. */
static void *opener_main(void *arg) {
    uint64_t number = (uint64_t)(uintptr_t)arg;
    char name[16];
    (void)snprintf(name, sizeof name, "o%llu", (unsigned long long)number);
    for (int i = 0; i < 15; i++) {
        fo_open o = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK};
        unsigned char bytes[5000] = {1};
        fo_stream *s;
        uint16_t id;
        EXPECT(fo_target_open(engine, test_path(name), &o, 10 * SECOND, &id, NULL) == 0);
        EXPECT(fo_stream_open(engine, &id, 1, 10 * SECOND, &s) == 0);
        EXPECT(fo_stream_write(s, bytes, sizeof bytes, 0, 10 * SECOND, NULL, NULL) == 0);
        EXPECT(fo_stream_sync(s, 10 * SECOND) == 0);
        fo_stream_close(s);
        EXPECT(fo_target_finish(engine, id, 5000, 10 * SECOND, NULL) == 0);
    }
    return NULL;
}

static void opening_beside(void) {
    pthread_t threads[4];
    atomic_store(&complaints, 0);
    open_all();
    for (uintptr_t i = 0; i < 4; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, opener_main, (void *)i) == 0);
    }
    for (int i = 0; i < 4; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    CHECK_EQ(fo_engine_close(engine, 10 * SECOND), 0);
    CHECK_EQ(atomic_load(&complaints), 0);
}

int main(void) {
    static const uint32_t kinds[] = {FO_BACKEND_THREADS, FO_BACKEND_URING};
    test_dir_make();
    for (size_t i = 0; i < 2; i++) {
        fo_config cfg;
        char reason[160];
        backend = kinds[i];
        fo_config_init(&cfg);
        cfg.backend = backend;
        if (fo_engine_open(&cfg, reason, &engine) != 0) {
            printf("backend %s: cannot run here, %s\n", fo_backend_name(backend), reason);
            continue;
        }
        CHECK_EQ(fo_engine_close(engine, SECOND), 0);
        printf("backend %s\n", fo_backend_name(backend));
        RUN(stress);
        RUN(opening_beside);
    }
    test_dir_remove();
    return test_end();
}
