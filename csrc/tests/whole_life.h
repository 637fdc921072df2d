/*
 * whole_life.h: an engine from its opening to its closing, with every call of fanout.h that can be refused anything.
 *
 * Whoever refuses says beforehand which errnos may come of it (`may_fail`).  Each call has to succeed or to fail with one of these,
 * and what was said to be written has to be there.
 */
#ifndef WHOLE_LIFE_H
#define WHOLE_LIFE_H

#include "fanout.h"
#include "testing.h"

#include <sys/eventfd.h>

#define SECOND 1000000000ull
#define SLOT ((size_t)64 << 10)
#define LENGTH ((size_t)200 << 10)
#define LEASED ((size_t)1000)

/* What is refused for a while is tried again so long: whoever refuses it for ever makes it short. */
static uint64_t life_hard_ns = 120 * SECOND;

typedef struct life {
    uint32_t backend;
    bool (*may_fail)(int err);
    const unsigned char *bytes; /* LENGTH */
    fo_engine *e;
    uint16_t ids[2];
    int first; /* what the first refusal came to: 0 or negative errno */
} life;

/* Remembers a refusal; true: it went well. */
static bool well(life *l, int rc, const char *what) {
    if (rc >= 0) {
        return true;
    }
    if (!l->may_fail(-rc)) {
        printf("  %s says %s\n", what, strerror(-rc));
        CHECK(l->may_fail(-rc));
    }
    l->first = l->first != 0 ? l->first : rc;
    return false;
}

#define WELL(call) well(l, (call), #call)

static bool outcome_well(life *l, const fo_outcome *o, const char *what) {
    if (o->code == FO_OUTCOME_OK) {
        return true;
    }
    if (o->code == FO_OUTCOME_SHORT && o->phase == FO_OP_READ) {
        CHECK(l->first != 0); /* what could not be written is not there, and somebody was told */
        return false;
    }
    CHECK(o->err != 0); /* never a loss without a word */
    return well(l, -o->err, what);
}

static bool legs_well(life *l, fo_stream *s) {
    fo_leg legs[2];
    bool good = true;
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    for (int i = 0; i < 2; i++) {
        if (legs[i].state != FO_LEG_SYNCED) {
            CHECK(legs[i].first.code != FO_OUTCOME_OK);
            good = outcome_well(l, &legs[i].first, "a leg") && good;
        }
    }
    return good;
}

/* As `well`, of a call that takes bytes: that no leg is left may show in any of them, and then each leg says why. */
static bool fed(life *l, fo_stream *s, int rc, const char *what) {
    if (rc != -EPIPE) {
        return well(l, rc, what);
    }
    CHECK(!legs_well(l, s));
    return false;
}

#define FED(call) fed(l, s, (call), #call)

/* The rest of a slot, filled in place: taken the first time, given back the second. */
static bool lease_twice(life *l, fo_stream *s) {
    void *lent;
    size_t room;
    uint32_t failed;
    if (!FED(fo_stream_lease(s, LEASED, 10 * SECOND, &lent, &room))) {
        return false;
    }
    memset(lent, 0xab, LEASED);
    if (!FED(fo_stream_commit(s, LEASED, 0, &failed)) || !FED(fo_stream_lease(s, 1, 10 * SECOND, &lent, &room))) {
        return false;
    }
    fo_stream_return(s);
    return true;
}

static void read_back(life *l, const uint64_t *sums, uint64_t length) {
    fo_readback regions[2];
    memset(regions, 0, sizeof regions);
    for (int i = 0; i < 2; i++) {
        regions[i].target = l->ids[i];
        regions[i].length = length;
        regions[i].sums = sums;
    }
    if (WELL(fo_read_back(l->e, regions, 2, 10 * SECOND))) {
        for (int i = 0; i < 2; i++) {
            CHECK(regions[i].outcome.code != FO_OUTCOME_MISMATCH);
            (void)outcome_well(l, &regions[i].outcome, "reading back");
        }
    }
}

static bool write_all(life *l, fo_stream *s) {
    uint32_t failed;
    int rc = fo_stream_write(s, l->bytes, LENGTH, 0, 10 * SECOND, NULL, &failed);
    CHECK(rc != -EPIPE || failed == 3);
    return FED(rc);
}

static bool fill(life *l, fo_stream *s) {
    uint64_t offsets[2] = {0, 0}, sums[8];
    uint8_t digest[FO_DIGEST_SIZE];
    int blocks;
    bool good = WELL(fo_stream_prove(s)) && WELL(fo_stream_keep(s, 2)) &&
                WELL(fo_stream_place(s, offsets, (uint64_t)1 << 19)) && write_all(l, s) && lease_twice(l, s) &&
                FED(fo_stream_pad(s, SECOND)) && WELL(fo_stream_digest(s, digest)) &&
                WELL(fo_stream_seal(s, SECOND)) && WELL(fo_stream_sync(s, 10 * SECOND));
    if (!good || !legs_well(l, s)) {
        return false;
    }
    blocks = fo_stream_media(s, sums, 8);
    CHECK_EQ(blocks, 4);
    read_back(l, sums, fo_stream_position(s));
    return true;
}

/* An object that goes on in another stream, with sums of a length that nobody knows. */
static void go_on(life *l, fo_stream *from) {
    uint64_t offsets[2] = {1 << 19, 1 << 19}, sums[1];
    fo_unfinished unfinished;
    fo_stream *s;
    if (!WELL(fo_stream_open(l->e, l->ids, 2, 10 * SECOND, &s))) {
        return;
    }
    if (WELL(fo_stream_suspend(from, &unfinished)) && WELL(fo_stream_resume(s, &unfinished)) && WELL(fo_stream_place(s, offsets, UINT64_MAX)) &&
        WELL(fo_stream_write(s, l->bytes, 4096, 0, 10 * SECOND, NULL, NULL)) && WELL(fo_stream_sums(s, sums, 1)) &&
        WELL(fo_stream_sync(s, 10 * SECOND))) {
        (void)legs_well(l, s);
    }
    fo_stream_close(s);
}

static void stream(life *l) {
    fo_stream *s;
    if (WELL(fo_stream_open(l->e, l->ids, 2, 10 * SECOND, &s))) {
        if (fill(l, s)) { /* else a target may be closed for writing */
            go_on(l, s);
        }
        fo_stream_close(s);
    }
}

static void requests(life *l) {
    static const uint8_t kinds[] = {FO_OP_WRITE, FO_OP_READ, FO_OP_ALLOCATE, FO_OP_FLUSH, FO_OP_TRUNCATE, FO_OP_DIRSYNC};
    static unsigned char memory[4096];
    for (size_t i = 0; i < sizeof kinds; i++) {
        fo_request r = {.target = l->ids[1], .kind = kinds[i], .length = sizeof memory, .data = memory};
        r.length = kinds[i] == FO_OP_TRUNCATE ? 1 << 20 : r.length;
        if (WELL(fo_run(l->e, &r, 1, 10 * SECOND))) {
            (void)outcome_well(l, &r.outcome, "a request");
        }
    }
}

/* Waiting without a thread: both eventfds. */
static void watch(life *l, int fd) {
    if (l->backend != FO_BACKEND_FAULTY) {
        (void)WELL(fo_event_fd(l->e));
    }
    (void)WELL(fo_watch(l->e, fd));
}

static void open_again(life *l) {
    fo_open o = {.flags = FO_OPEN_READONLY};
    unsigned char byte[4096];
    fo_request r = {.kind = FO_OP_READ, .length = sizeof byte, .data = byte};
    fo_outcome why;
    (void)WELL(fo_target_finish(l->e, l->ids[1], 1 << 20, 10 * SECOND, &why));
    (void)WELL(fo_target_close(l->e, l->ids[0], 10 * SECOND));
    if (!WELL(fo_target_open(l->e, test_path("a"), &o, 10 * SECOND, &r.target, &why))) {
        return;
    }
    if (WELL(fo_run(l->e, &r, 1, SECOND))) {
        (void)outcome_well(l, &r.outcome, "a read");
    }
    (void)WELL(fo_target_close(l->e, r.target, 10 * SECOND));
}

static void use(life *l) {
    /* A line that never strikes: truncation has no 99th time here. */
    fo_fault line = {.nth = 99, .count = 1, .target = UINT16_MAX, .kind = FO_OP_TRUNCATE, .action = FO_FAULT_ERRNO, .value = EIO};
    fo_open a = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .size = 1 << 20, .on_slow = FO_SLOW_EJECT};
    fo_open b = {.flags = FO_OPEN_CREATE | FO_OPEN_LOCK};
    fo_event events[16];
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    (void)unlink(test_path("b"));
    if ((fd >= 0 || l->may_fail(EMFILE)) && (l->backend != FO_BACKEND_FAULTY || WELL(fo_faults_set(l->e, &line, 1))) &&
        WELL(fo_target_open(l->e, test_path("a"), &a, 10 * SECOND, &l->ids[0], NULL)) &&
        WELL(fo_target_open(l->e, test_path("b"), &b, 10 * SECOND, &l->ids[1], NULL))) {
        watch(l, fd);
        stream(l);
        requests(l);
        while (fo_events(l->e, events, 16, 0) > 0) {
        }
        open_again(l);
    }
    if (fd >= 0) {
        fo_unwatch(l->e, fd);
        (void)close(fd);
    }
}

/* What the pages are is asked for once, and not before somebody wants to know. */
static void look(fo_engine *e) {
    fo_info before, after;
    fo_engine_info(e, &before);
    fo_engine_look(e);
    fo_engine_look(e);
    fo_engine_info(e, &after);
    CHECK_EQ(before.huge_pages, 0);
    CHECK(strstr(before.reason, "small pages") == NULL);
    CHECK((strstr(after.reason, "small pages") == NULL) == (after.huge_pages != 0));
}

/* 0, or the first refusal. */
static int whole_life(uint32_t backend, const unsigned char *bytes, bool (*may_fail)(int err)) {
    life memory = {.backend = backend, .may_fail = may_fail, .bytes = bytes}, *l = &memory;
    fo_config cfg;
    char reason[160];
    int rc;
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 40; /* more than a huge page */
    cfg.max_streams = 2;
    cfg.hard_ns = life_hard_ns;
    rc = fo_engine_open(&cfg, reason, &l->e);
    if (rc != 0) {
        CHECK(reason[0] != '\0');
        return rc == -EOPNOTSUPP || WELL(rc) ? rc : l->first;
    }
    look(l->e);
    use(l);
    (void)WELL(fo_engine_close(l->e, 10 * SECOND));
    return l->first;
}

#endif
