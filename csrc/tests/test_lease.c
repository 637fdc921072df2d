/*
 * test_lease.c: slots lent to the caller.  What a lease takes is what a write of the same bytes would have taken; and lent memory
 * is nobody else's before it is given back, whatever is aborted or closed meanwhile.
 */
#include "fanout.h"
#include "testing.h"

#include <pthread.h>

#define SECOND 1000000000ull
#define MIB ((size_t)1 << 20)
#define SLOT ((size_t)64 << 10)
#define SLOTS 32

static uint32_t backend;

typedef struct rig {
    fo_engine *e;
    fo_stream *s;
    uint16_t ids[2];
} rig;

static rig make_rig(void) {
    rig r = {0};
    fo_config cfg;
    char reason[160];
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = 8 * MIB};
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = SLOTS;
    cfg.max_streams = 4;
    cfg.quarantine_slots = 8;
    REQUIRE(fo_engine_open(&cfg, reason, &r.e) == 0);
    REQUIRE(fo_target_open(r.e, test_path("a"), &o, 10 * SECOND, &r.ids[0], NULL) == 0);
    REQUIRE(fo_target_open(r.e, test_path("b"), &o, 10 * SECOND, &r.ids[1], NULL) == 0);
    REQUIRE(fo_stream_open(r.e, r.ids, 2, SECOND, &r.s) == 0);
    return r;
}

static void drop_rig(rig *r) {
    fo_stream_close(r->s);
    CHECK_EQ(fo_engine_close(r->e, 10 * SECOND), 0);
}

static uint32_t slots_in_use(fo_engine *e) {
    fo_info info;
    fo_engine_info(e, &info);
    return info.slot_count - info.slots_free;
}

/* Lends, fills as much as it wants of what it got, commits. */
static size_t lease_some(fo_stream *s, const unsigned char *data, size_t want, size_t min, uint32_t flags) {
    void *memory;
    size_t room;
    int rc = fo_stream_lease(s, min, 10 * SECOND, &memory, &room);
    CHECK_EQ(rc, 0);
    if (rc != 0) {
        return want;
    }
    CHECK(room >= min && room <= SLOT);
    want = want < room ? want : room;
    memcpy(memory, data, want);
    CHECK_EQ(fo_stream_commit(s, want, flags, NULL), 0);
    return want;
}

/* Leases and writes of any size in any order give the bytes, the digest and the sums of the same bytes written at once. */
static void same_as_write(void) {
    for (uint64_t seed = 1; seed <= 6; seed++) {
        (void)unlink(test_path("b")); /* what another run left in front of the region */
        rig r = make_rig();
        size_t size = 3 * MIB + (size_t)seed * 12345;
        uint64_t random = seed, offsets[2] = {0, 64 << 10}, sums[256];
        unsigned char *data = test_bytes(size, seed), *image = calloc(1, size + (64 << 10));
        uint8_t digest[16], expected[16];
        size_t at = 0;
        int count;
        REQUIRE(image != NULL);
        CHECK_EQ(fo_stream_place(r.s, offsets, (size + 4095) / 4096 * 4096), 0);
        while (at < size) {
            size_t left = size - at, n = 1 + (size_t)(test_random(&random) % (seed % 2 != 0 ? 5000 : 3 * SLOT));
            size_t min = (size_t)(test_random(&random) % (SLOT - 4096));
            n = n < left ? n : left;
            if (test_random(&random) % 3 == 0) {
                CHECK_EQ(fo_stream_write(r.s, data + at, n, 0, 10 * SECOND, NULL, NULL), 0);
            } else {
                n = lease_some(r.s, data + at, n, test_random(&random) % 2 != 0 && min <= left ? min : 0, 0);
            }
            at += n;
            CHECK_EQ(fo_stream_position(r.s), at);
        }
        CHECK_EQ(fo_stream_digest(r.s, digest), 0);
        fo_digest(data, size, expected);
        CHECK(memcmp(digest, expected, 16) == 0);
        count = fo_stream_sums(r.s, sums, 256);
        CHECK_EQ(count, (size + SLOT - 1) / SLOT);
        for (size_t i = 0; i < (size_t)count; i++) {
            CHECK(sums[i] == fo_sum(data + i * SLOT, size - i * SLOT < SLOT ? size - i * SLOT : SLOT));
        }
        CHECK_EQ(fo_stream_sync(r.s, 30 * SECOND), 0);
        fo_stream_close(r.s);
        CHECK_EQ(fo_target_finish(r.e, r.ids[0], (int64_t)size, 10 * SECOND, NULL), 0);
        CHECK_EQ(fo_target_finish(r.e, r.ids[1], (int64_t)(size + (64 << 10)), 10 * SECOND, NULL), 0);
        memcpy(image + (64 << 10), data, size);
        CHECK(test_file_equals(test_path("a"), data, size));
        CHECK(test_file_equals(test_path("b"), image, size + (64 << 10)));
        CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
        free(data);
        free(image);
    }
}

/* Framing through a lease is in the sums and not in the digest; padding after it is zeros. */
static void raw_and_pad(void) {
    rig r = make_rig();
    uint64_t offsets[2] = {0, 0}, sum;
    unsigned char *data = test_bytes(9000, 3), image[12288] = {0};
    uint8_t digest[16], expected[16];
    void *memory;
    size_t room;
    CHECK_EQ(fo_stream_place(r.s, offsets, 16384), 0);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    memset(memory, 0xff, room); /* what is not committed leaves no trace */
    memcpy(memory, data, 1000);
    CHECK_EQ(fo_stream_commit(r.s, 1000, FO_WRITE_RAW, NULL), 0);
    CHECK_EQ(lease_some(r.s, data + 1000, 8000, 0, 0), 8000);
    CHECK_EQ(fo_stream_digest(r.s, digest), 0);
    fo_digest(data + 1000, 8000, expected);
    CHECK(memcmp(digest, expected, 16) == 0);
    CHECK_EQ(fo_stream_pad(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_sums(r.s, &sum, 1), 1);
    memcpy(image, data, 9000);
    CHECK(sum == fo_sum(image, fo_stream_position(r.s)));
    CHECK_EQ(fo_stream_sync(r.s, SECOND), 0);
    drop_rig(&r);
    free(data);
}

static void refusals(void) {
    rig r = make_rig();
    uint64_t offsets[2] = {0, 0}, sum;
    uint8_t digest[16];
    fo_unfinished unfinished = {{0}};
    unsigned char byte = 1;
    void *memory, *other;
    size_t room, taken;
    fo_leg legs[2];
    fo_stream *second;
    CHECK_EQ(fo_stream_open(r.e, r.ids, 2, SECOND, &second), 0);
    CHECK_EQ(fo_stream_commit(r.s, 0, 0, NULL), -EINVAL); /* nothing is lent */
    fo_stream_return(r.s);
    CHECK_EQ(fo_stream_place(r.s, offsets, 2 * SLOT), 0);
    CHECK_EQ(fo_stream_lease(r.s, SLOT + 1, SECOND, &memory, &room), -EINVAL);
    CHECK_EQ(fo_stream_lease(r.s, 2 * SLOT + 1, SECOND, &memory, &room), -EFBIG);
    CHECK(memory == NULL && room == 0);
    CHECK_EQ(fo_stream_lease(r.s, SLOT, SECOND, &memory, &room), 0);
    CHECK_EQ(room, SLOT);
    CHECK_EQ(fo_stream_write(r.s, &byte, 1, 0, SECOND, &taken, NULL), -EBUSY);
    CHECK_EQ(fo_stream_pad(r.s, SECOND), -EBUSY);
    CHECK_EQ(fo_stream_seal(r.s, SECOND), -EBUSY);
    CHECK_EQ(fo_stream_sync(r.s, SECOND), -EBUSY);
    CHECK_EQ(fo_stream_place(r.s, offsets, SLOT), -EBUSY);
    CHECK_EQ(fo_stream_digest(r.s, digest), -EBUSY);
    CHECK_EQ(fo_stream_sums(r.s, &sum, 1), -EBUSY);
    CHECK_EQ(fo_stream_suspend(r.s, &unfinished), -EBUSY);
    CHECK_EQ(fo_stream_resume(r.s, &unfinished), -EBUSY);
    CHECK_EQ(fo_stream_lease(r.s, 1, SECOND, &other, &taken), -EBUSY);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(fo_stream_drained(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_commit(r.s, SLOT + 1, 0, NULL), -EINVAL); /* the lease goes on */
    CHECK_EQ(fo_stream_commit(r.s, 0, 0, NULL), 0);
    CHECK_EQ(slots_in_use(r.e), 0);
    CHECK_EQ(fo_stream_place(r.s, offsets, SLOT), 0); /* an empty slot is not kept */
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    fo_stream_return(r.s);
    CHECK_EQ(slots_in_use(r.e), 0);
    CHECK_EQ(fo_stream_write(r.s, &byte, 1, 0, SECOND, &taken, NULL), 0);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    CHECK_EQ(room, SLOT - 1); /* the placed length */
    fo_stream_return(r.s);
    CHECK_EQ(fo_stream_position(r.s), 1);
    CHECK_EQ(lease_some(r.s, memory, SLOT - 1, SLOT - 1, 0), SLOT - 1);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), -EFBIG);
    CHECK_EQ(fo_stream_sync(r.s, 10 * SECOND), 0);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), -EINVAL); /* sealed */
    fo_stream_close(second);
    drop_rig(&r);
}

/* Aborted and closed with the lease out: the memory stays lent, and comes back once it is given back. */
static void abort_and_close(void) {
    rig r = make_rig();
    fo_stream *s;
    void *memory;
    size_t room;
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    CHECK_EQ(fo_stream_abort(r.s), 0);
    CHECK_EQ(fo_stream_drained(r.s, SECOND), 0);
    CHECK_EQ(slots_in_use(r.e), 1);
    memset(memory, 1, room);
    CHECK_EQ(fo_stream_commit(r.s, room, 0, NULL), -ECANCELED);
    CHECK_EQ(slots_in_use(r.e), 0);
    CHECK_EQ(fo_stream_commit(r.s, 0, 0, NULL), -EINVAL);
    CHECK_EQ(fo_stream_open(r.e, r.ids, 2, SECOND, &s), 0);
    CHECK_EQ(fo_stream_lease(s, 0, SECOND, &memory, &room), 0);
    fo_stream_close(s);
    CHECK_EQ(slots_in_use(r.e), 1);
    memset(memory, 2, room);
    fo_stream_return(s);
    CHECK_EQ(slots_in_use(r.e), 0);
    drop_rig(&r);
}

static void engine_closes_first(void) {
    for (int closed_too = 0; closed_too < 2; closed_too++) {
        rig r = make_rig();
        void *memory;
        size_t room;
        CHECK_EQ(fo_stream_write(r.s, "begun", 5, 0, SECOND, NULL, NULL), 0);
        CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
        if (closed_too) {
            fo_stream_close(r.s);
        }
        CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
        memset(memory, 3, room); /* the arena is still there */
        if (closed_too) {
            fo_stream_return(r.s);
        } else {
            CHECK_EQ(fo_stream_commit(r.s, room, 0, NULL), -ESHUTDOWN);
            fo_stream_close(r.s);
        }
    }
}

/* A slow client with a lease holds what it has and nobody else. */
static void others_go_on(void) {
    rig r = make_rig();
    unsigned char *data = test_bytes(4 * MIB, 7);
    fo_stream *s;
    void *memory;
    size_t room;
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    CHECK_EQ(fo_stream_open(r.e, r.ids, 2, SECOND, &s), 0);
    CHECK_EQ(fo_stream_write(s, data, 4 * MIB, 0, 30 * SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 30 * SECOND), 0);
    fo_stream_close(s);
    CHECK_EQ(slots_in_use(r.e), 1);
    fo_stream_return(r.s);
    drop_rig(&r);
    free(data);
}

/* A target fails between lease and commit: the mask says so; when all have failed, nothing more is lent. */
static void faults(void) {
    rig r;
    fo_leg legs[2];
    void *memory;
    size_t room;
    uint32_t failed = 0;
    fo_fault f = {.nth = 1, .count = UINT64_MAX, .value = EIO, .kind = FO_OP_WRITE, .action = FO_FAULT_ERRNO};
    if (backend != FO_BACKEND_FAULTY) {
        SKIP("only the faulty backend fails on demand");
    }
    r = make_rig();
    f.target = r.ids[1];
    CHECK_EQ(fo_faults_set(r.e, &f, 1), 0);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(fo_stream_lease(r.s, SLOT, SECOND, &memory, &room), 0);
        CHECK_EQ(fo_faults_advance(r.e, SECOND), 0);
        memset(memory, i, room);
        CHECK_EQ(fo_stream_commit(r.s, room, 0, &failed), 0);
        CHECK_EQ(failed, i == 0 ? 0 : 2);
    }
    f.target = UINT16_MAX;
    CHECK_EQ(fo_faults_set(r.e, &f, 1), 0);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    CHECK_EQ(fo_stream_commit(r.s, room, 0, &failed), 0);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), 0);
    CHECK_EQ(fo_faults_advance(r.e, SECOND), 0);
    CHECK_EQ(fo_stream_commit(r.s, 1, 0, &failed), -EPIPE);
    CHECK_EQ(failed, 3);
    CHECK_EQ(fo_stream_lease(r.s, 0, SECOND, &memory, &room), -EPIPE);
    CHECK_EQ(fo_stream_sync(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK(legs[0].state == FO_LEG_FAILED && legs[1].state == FO_LEG_FAILED);
    drop_rig(&r);
}

typedef struct turn {
    fo_stream *s;
    useconds_t delay;
} turn;

static void *abort_main(void *arg) {
    const turn *t = arg;
    (void)usleep(t->delay);
    CHECK_EQ(fo_stream_abort(t->s), 0);
    return NULL;
}

/* Another thread aborts while slots are lent and committed; it hits another moment each time. */
static void abort_beside(void) {
    rig r = make_rig();
    uint64_t offsets[2] = {0, 0};
    for (useconds_t round = 0; round < 20; round++) {
        pthread_t thread;
        turn t = {.delay = round * 97};
        void *memory;
        size_t room;
        int rc = 0;
        CHECK_EQ(fo_stream_open(r.e, r.ids, 2, 10 * SECOND, &t.s), 0);
        REQUIRE(pthread_create(&thread, NULL, abort_main, &t) == 0);
        for (int i = 0; rc == 0 && i < 100000; i++) {
            rc = i % 64 == 0 ? fo_stream_place(t.s, offsets, 64 * SLOT) : 0;
            rc = rc != 0 ? rc : fo_stream_lease(t.s, SLOT, 10 * SECOND, &memory, &room);
            if (rc == 0) {
                memset(memory, i, room);
                rc = fo_stream_commit(t.s, SLOT, 0, NULL);
            }
        }
        CHECK_EQ(rc, -ECANCELED);
        (void)pthread_join(thread, NULL);
        fo_stream_return(t.s);
        fo_stream_close(t.s);
    }
    CHECK_EQ(fo_stream_abort(r.s), 0);
    drop_rig(&r);
}

int main(void) {
    static const uint32_t kinds[] = {FO_BACKEND_THREADS, FO_BACKEND_URING, FO_BACKEND_FAULTY};
    test_dir_make();
    for (size_t i = 0; i < 3; i++) {
        fo_config cfg;
        fo_engine *e;
        backend = kinds[i];
        fo_config_init(&cfg);
        cfg.backend = backend;
        if (fo_engine_open(&cfg, NULL, &e) != 0) {
            printf("backend %s: cannot run here\n", fo_backend_name(backend));
            continue;
        }
        CHECK_EQ(fo_engine_close(e, SECOND), 0);
        printf("backend %s\n", fo_backend_name(backend));
        RUN(same_as_write);
        RUN(raw_and_pad);
        RUN(refusals);
        RUN(abort_and_close);
        RUN(engine_closes_first);
        RUN(others_go_on);
        RUN(faults);
        RUN(abort_beside);
    }
    test_dir_remove();
    return test_end();
}
