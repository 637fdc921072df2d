/*
 * test_faults.c: what the engine says and does when a target fails, on the simulated clock, over real files.
 *
 * One table has a row per result that a write can have; each is tried at the first, a middle and the last write, once and for
 * ever.  The healthy target beside it always has to end with every byte.
 */
#include "fanout.h"
#include "testing.h"

#define MS 1000000ull
#define SECOND 1000000000ull
#define SLOT ((size_t)64 << 10)

typedef struct rig {
    fo_engine *e;
    uint16_t ids[2]; /* 0: the one with faults, 1: healthy */
    fo_stream *s;
    unsigned char *data;
    size_t size;
} rig;

static fo_engine *open_engine(uint64_t seed) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = FO_BACKEND_FAULTY;
    cfg.slot_size = SLOT;
    cfg.slot_count = 32;
    cfg.max_streams = 4;
    cfg.quarantine_slots = 8;
    cfg.soft_ns = SECOND;
    cfg.hard_ns = 4 * SECOND;
    cfg.seed = seed;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    return e;
}

static rig make_rig(uint64_t seed, size_t slots) {
    rig r = {.e = open_engine(seed), .size = slots * SLOT};
    fo_open o = {.flags = FO_OPEN_CREATE, .size = 4 << 20, .depth = 4};
    for (int i = 0; i < 2; i++) {
        const char *path = test_path(i == 0 ? "bad" : "good");
        (void)unlink(path);
        REQUIRE(fo_target_open(r.e, path, &o, SECOND, &r.ids[i], NULL) == 0);
    }
    REQUIRE(fo_stream_open(r.e, r.ids, 2, SECOND, &r.s) == 0);
    r.data = test_bytes(r.size, seed);
    return r;
}

static void drop_rig(rig *r, int expected) {
    fo_stream_close(r->s);
    CHECK_EQ(fo_engine_close(r->e, SECOND), expected);
    free(r->data);
}

static void set_fault(rig *r, fo_fault f) {
    f.target = r->ids[0];
    REQUIRE(fo_faults_set(r->e, &f, 1) == 0);
}

static bool holds(const char *name, const unsigned char *data, size_t n) {
    size_t size;
    unsigned char *file = test_read_file(test_path(name), &size);
    bool equal = size >= n && memcmp(file, data, n) == 0;
    free(file);
    return equal;
}

/* Writes everything; the stream goes on as long as one leg does. */
static void write_all(rig *r) {
    for (size_t at = 0; at < r->size; at += SLOT) {
        int rc = fo_stream_write(r->s, r->data + at, SLOT, 0, 60 * SECOND, NULL, NULL);
        CHECK_EQ(rc, 0);
        if (rc != 0) {
            return;
        }
    }
    CHECK_EQ(fo_stream_sync(r->s, 60 * SECOND), 0);
}

static uint32_t count_events(fo_engine *e, uint8_t kind, fo_event *first) {
    fo_event ev[64];
    uint32_t found = 0;
    int n;
    while ((n = fo_events(e, ev, 64, 0)) > 0) {
        for (int i = 0; i < n; i++) {
            if (ev[i].kind == kind && found++ == 0) {
                *first = ev[i];
            }
        }
    }
    return found;
}

/* ---- the rows ---- */

typedef struct row {
    const char *name;
    uint8_t action;
    int64_t value;
    bool heals;    /* once: absorbed by the engine */
    uint8_t code;  /* for ever: what the leg's first fault says */
    int32_t err;
    uint8_t cls;
} row;

static const row rows[] = {
    {"EIO", FO_FAULT_ERRNO, EIO, false, FO_OUTCOME_ERROR, EIO, FO_CLASS_DEVICE},
    {"ENODATA", FO_FAULT_ERRNO, ENODATA, false, FO_OUTCOME_ERROR, ENODATA, FO_CLASS_MEDIUM},
    {"EREMOTEIO", FO_FAULT_ERRNO, EREMOTEIO, false, FO_OUTCOME_ERROR, EREMOTEIO, FO_CLASS_DEVICE},
    {"EILSEQ", FO_FAULT_ERRNO, EILSEQ, false, FO_OUTCOME_ERROR, EILSEQ, FO_CLASS_MEDIUM},
    {"ENOSPC", FO_FAULT_ERRNO, ENOSPC, false, FO_OUTCOME_ERROR, ENOSPC, FO_CLASS_SPACE},
    {"EDQUOT", FO_FAULT_ERRNO, EDQUOT, false, FO_OUTCOME_ERROR, EDQUOT, FO_CLASS_SPACE},
    {"EFBIG", FO_FAULT_ERRNO, EFBIG, false, FO_OUTCOME_ERROR, EFBIG, FO_CLASS_SPACE},
    {"ETIMEDOUT", FO_FAULT_ERRNO, ETIMEDOUT, false, FO_OUTCOME_ERROR, ETIMEDOUT, FO_CLASS_TRANSPORT},
    {"ENOLINK", FO_FAULT_ERRNO, ENOLINK, false, FO_OUTCOME_ERROR, ENOLINK, FO_CLASS_TRANSPORT},
    {"ENODEV", FO_FAULT_ERRNO, ENODEV, false, FO_OUTCOME_ERROR, ENODEV, FO_CLASS_TRANSPORT},
    {"ENXIO", FO_FAULT_ERRNO, ENXIO, false, FO_OUTCOME_ERROR, ENXIO, FO_CLASS_TRANSPORT},
    {"ESHUTDOWN", FO_FAULT_ERRNO, ESHUTDOWN, false, FO_OUTCOME_ERROR, ESHUTDOWN, FO_CLASS_TRANSPORT},
    {"ENOTCONN", FO_FAULT_ERRNO, ENOTCONN, false, FO_OUTCOME_ERROR, ENOTCONN, FO_CLASS_TRANSPORT},
    {"ECONNABORTED", FO_FAULT_ERRNO, ECONNABORTED, false, FO_OUTCOME_ERROR, ECONNABORTED, FO_CLASS_TRANSPORT},
    {"EPERM", FO_FAULT_ERRNO, EPERM, false, FO_OUTCOME_ERROR, EPERM, FO_CLASS_ACCESS},
    {"EROFS", FO_FAULT_ERRNO, EROFS, false, FO_OUTCOME_ERROR, EROFS, FO_CLASS_ACCESS},
    {"EACCES", FO_FAULT_ERRNO, EACCES, false, FO_OUTCOME_ERROR, EACCES, FO_CLASS_ACCESS},
    {"EINVAL", FO_FAULT_ERRNO, EINVAL, false, FO_OUTCOME_ERROR, EINVAL, FO_CLASS_SETUP},
    {"EOPNOTSUPP", FO_FAULT_ERRNO, EOPNOTSUPP, false, FO_OUTCOME_ERROR, EOPNOTSUPP, FO_CLASS_SETUP},
    {"EBADE", FO_FAULT_ERRNO, EBADE, false, FO_OUTCOME_ERROR, EBADE, FO_CLASS_SETUP},
    {"unknown errno", FO_FAULT_ERRNO, 199, false, FO_OUTCOME_ERROR, 199, FO_CLASS_DEVICE},
    {"reported failed, was written", FO_FAULT_ERRNO_AFTER, EIO, false, FO_OUTCOME_ERROR, EIO, FO_CLASS_DEVICE},
    {"zero bytes", FO_FAULT_SHORT, 0, false, FO_OUTCOME_ERROR, EIO, FO_CLASS_DEVICE},
    {"short, aligned", FO_FAULT_SHORT, 8192, true, FO_OUTCOME_OK, 0, FO_CLASS_NONE},
    {"short, odd", FO_FAULT_SHORT, 10000, true, FO_OUTCOME_OK, 0, FO_CLASS_NONE},
    {"short, less than a granule", FO_FAULT_SHORT, 100, true, FO_OUTCOME_SHORT, 0, FO_CLASS_DEVICE},
    {"EINTR", FO_FAULT_ERRNO, EINTR, true, FO_OUTCOME_ERROR, EINTR, FO_CLASS_TRANSIENT},
    {"EAGAIN", FO_FAULT_ERRNO, EAGAIN, true, FO_OUTCOME_ERROR, EAGAIN, FO_CLASS_TRANSIENT},
    {"EBUSY", FO_FAULT_ERRNO, EBUSY, true, FO_OUTCOME_ERROR, EBUSY, FO_CLASS_TRANSIENT},
    {"ENOMEM", FO_FAULT_ERRNO, ENOMEM, true, FO_OUTCOME_ERROR, ENOMEM, FO_CLASS_HOST},
};

static void check_row(const row *row, uint64_t nth, bool forever) {
    const size_t slots = 20;
    rig r = make_rig(nth * 100 + (uint64_t)(row - rows), slots);
    bool fails = row->code != FO_OUTCOME_OK && (forever || !row->heals);
    fo_leg legs[2];
    fo_event ev = {0};
    uint32_t faults;
    int before = test_failures;
    set_fault(&r, (fo_fault){.nth = nth, .count = forever ? UINT64_MAX : 1, .kind = FO_OP_WRITE, .action = row->action,
                             .value = row->value});
    write_all(&r);
    CHECK_EQ(fo_stream_drained(r.s, SECOND), 0); /* a leg that failed may still have had writes in flight */
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK_EQ(legs[1].synced, r.size);
    CHECK(holds("good", r.data, r.size));
    if (fails) {
        const fo_outcome *f = &legs[0].first;
        CHECK_EQ(legs[0].state, FO_LEG_FAILED);
        CHECK_EQ(f->code, row->code);
        CHECK_EQ(f->err, row->err);
        CHECK_EQ(f->cls, row->cls);
        CHECK_EQ(f->phase, FO_OP_WRITE);
        CHECK_EQ(f->length, SLOT);
        CHECK_EQ(f->offset % SLOT, 0);
        CHECK(legs[0].completed < r.size && legs[0].synced <= legs[0].completed);
        CHECK(legs[0].accepted >= legs[0].submitted && legs[0].submitted >= legs[0].completed);
        CHECK_EQ(legs[0].drained, 1);
        if (!forever) {
            CHECK_EQ(f->offset, (nth - 1) * SLOT);
        }
    } else {
        CHECK_EQ(legs[0].state, FO_LEG_SYNCED);
        CHECK(holds("bad", r.data, r.size));
    }
    faults = count_events(r.e, FO_EVENT_FAULT, &ev);
    CHECK(fails ? faults >= 1 : faults == 0);
    if (fails) {
        CHECK_EQ(ev.target, r.ids[0]);
        CHECK_EQ(ev.stream, fo_stream_id(r.s));
        CHECK_EQ(ev.err, row->err);
        CHECK_EQ(ev.offset, legs[0].first.offset);
    }
    if (test_failures != before) {
        printf("  row %s, write %llu, %s\n", row->name, (unsigned long long)nth, forever ? "for ever" : "once");
    }
    drop_rig(&r, 0);
}

static void write_rows(void) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        static const uint64_t at[] = {1, 10, 20};
        for (size_t k = 0; k < 3; k++) {
            check_row(&rows[i], at[k], false);
            check_row(&rows[i], at[k], true);
        }
    }
}

static void read_rows(void) {
    rig r = make_rig(77, 4);
    unsigned char back[8192];
    fo_request q = {.target = r.ids[0], .kind = FO_OP_READ, .length = sizeof back, .data = back};
    fo_event ev = {0};
    write_all(&r);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        bool fails = rows[i].action != FO_FAULT_SHORT && !rows[i].heals;
        set_fault(&r, (fo_fault){.nth = 1, .count = 1, .kind = FO_OP_READ, .action = rows[i].action,
                                 .value = rows[i].value});
        CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
        if (fails) {
            CHECK_EQ(q.outcome.code, FO_OUTCOME_ERROR);
            CHECK_EQ(q.outcome.err, rows[i].err);
            CHECK_EQ(q.outcome.cls, rows[i].cls);
            CHECK_EQ(q.outcome.phase, FO_OP_READ);
            CHECK_EQ(count_events(r.e, FO_EVENT_FAULT, &ev), 1);
            CHECK_EQ(ev.phase, FO_OP_READ);
        } else if (rows[i].value == 8192 || rows[i].heals) {
            CHECK(q.outcome.code == FO_OUTCOME_OK || q.outcome.code == FO_OUTCOME_SHORT);
        } else {
            CHECK_EQ(q.outcome.code, FO_OUTCOME_SHORT); /* zero bytes: the end */
        }
    }
    set_fault(&r, (fo_fault){.nth = 99, .count = 1, .action = FO_FAULT_ERRNO});
    memset(back, 0, sizeof back);
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
    CHECK_EQ(q.outcome.code, FO_OUTCOME_OK);
    CHECK(memcmp(back, r.data, sizeof back) == 0); /* a read error closes nothing */
    drop_rig(&r, 0);
}

/* ---- flush ---- */

static void flush_fails_once(void) {
    rig r = make_rig(3, 6);
    fo_leg legs[2];
    fo_request q = {.target = r.ids[0], .kind = FO_OP_FLUSH};
    fo_geometry g;
    fo_event ev = {0};
    set_fault(&r, (fo_fault){.nth = 1, .count = 1, .kind = FO_OP_FLUSH, .action = FO_FAULT_ERRNO, .value = EIO});
    write_all(&r);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED);
    CHECK_EQ(legs[0].first.phase, FO_OP_FLUSH);
    CHECK_EQ(legs[0].first.err, EIO);
    CHECK_EQ(legs[0].completed, r.size);
    CHECK_EQ(legs[0].synced, 0);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK_EQ(count_events(r.e, FO_EVENT_FAULT, &ev), 1);
    CHECK_EQ(ev.phase, FO_OP_FLUSH);
    CHECK_EQ(fo_target_geometry(r.e, r.ids[0], &g), 0);
    CHECK_EQ(g.state, FO_TARGET_FAILED);
    CHECK_EQ(g.flushes_good, 0);
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0); /* the device would say yes now: nobody asks it */
    CHECK_EQ(q.outcome.code, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(fo_stream_open(r.e, r.ids, 2, 0, &(fo_stream *){NULL}), -EINVAL);
    drop_rig(&r, 0);
}

static void flush_hangs(void) {
    rig r = make_rig(4, 6);
    fo_leg legs[2];
    fo_event ev = {0};
    set_fault(&r, (fo_fault){.nth = 1, .count = 1, .kind = FO_OP_FLUSH, .action = FO_FAULT_NEVER});
    write_all(&r);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED);
    CHECK_EQ(legs[0].first.code, FO_OUTCOME_DETACHED);
    CHECK_EQ(legs[0].first.phase, FO_OP_FLUSH);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK_EQ(count_events(r.e, FO_EVENT_DETACHED, &ev), 1);
    CHECK_EQ(ev.phase, FO_OP_FLUSH);
    drop_rig(&r, -ETIMEDOUT);
}

/* ---- hangs ---- */

static void write_hangs_then_lands_late(void) {
    rig r = make_rig(5, 24);
    fo_leg legs[2];
    fo_info info;
    fo_geometry g;
    fo_event ev[64];
    uint64_t began = fo_now(r.e);
    int n, late = 0, slow = 0, detached = 0;
    uint64_t timed_out_offset = UINT64_MAX;
    set_fault(&r, (fo_fault){.nth = 5, .count = 1, .kind = FO_OP_WRITE, .action = FO_FAULT_NEVER});
    write_all(&r);
    CHECK(fo_now(r.e) - began >= 4 * SECOND && fo_now(r.e) - began < 5 * SECOND);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED);
    CHECK_EQ(legs[0].first.code, FO_OUTCOME_TIMED_OUT);
    CHECK_EQ(legs[0].first.err, ETIMEDOUT);
    CHECK_EQ(legs[0].first.cls, FO_CLASS_TRANSPORT);
    CHECK_EQ(legs[0].inflight, 1);
    CHECK_EQ(legs[0].drained, 0);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK(holds("good", r.data, r.size));
    fo_engine_info(r.e, &info);
    CHECK_EQ(info.slots_quarantined, 1);
    CHECK_EQ(info.slots_live, 0);
    CHECK_EQ(info.slots_lagging, 0);
    CHECK_EQ(fo_target_geometry(r.e, r.ids[0], &g), 0);
    CHECK_EQ(g.state, FO_TARGET_DETACHED);
    CHECK_EQ(g.quarantined, 1);
    while ((n = fo_events(r.e, ev, 64, 0)) > 0) {
        for (int i = 0; i < n; i++) {
            slow += ev[i].kind == FO_EVENT_SLOW;
            detached += ev[i].kind == FO_EVENT_DETACHED;
            if (ev[i].kind == FO_EVENT_DETACHED) {
                timed_out_offset = ev[i].offset;
                CHECK_EQ(ev[i].latency_ns, 4 * SECOND);
            }
        }
    }
    CHECK_EQ(slow, 1);
    CHECK_EQ(detached, 1);
    CHECK_EQ(timed_out_offset, legs[0].first.offset);
    CHECK_EQ(fo_faults_release(r.e, r.ids[0]), 0);
    while ((n = fo_events(r.e, ev, 64, 0)) > 0) {
        for (int i = 0; i < n; i++) {
            late += ev[i].kind == FO_EVENT_LATE;
            CHECK_EQ(ev[i].outcome, FO_OUTCOME_LATE_OK);
            CHECK_EQ(ev[i].offset, timed_out_offset);
        }
    }
    CHECK_EQ(late, 1);
    fo_engine_info(r.e, &info);
    CHECK_EQ(info.slots_quarantined, 0);
    CHECK_EQ(info.late, 1);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED); /* a miss stays a miss */
    CHECK_EQ(legs[0].drained, 1);
    fo_stream_close(r.s);
    r.s = NULL;
    CHECK_EQ(fo_target_close(r.e, r.ids[0], SECOND), 0);
    drop_rig(&r, 0);
}

/* The late write takes what is in its slot when it lands.  Clients that came later must not find their bytes on that device. */
static void quarantine_keeps_clients_apart(void) {
    rig r = make_rig(6, 16);
    unsigned char *secret = malloc(SLOT);
    size_t size;
    unsigned char *file;
    REQUIRE(secret != NULL);
    memset(secret, 0xee, SLOT);
    set_fault(&r, (fo_fault){.nth = 1, .count = UINT64_MAX, .kind = FO_OP_WRITE, .action = FO_FAULT_NEVER});
    write_all(&r);
    fo_stream_close(r.s);
    r.s = NULL;
    for (int round = 0; round < 100; round++) { /* every slot that is not in quarantine gets the other client's bytes */
        fo_stream *s;
        CHECK_EQ(fo_stream_open(r.e, &r.ids[1], 1, SECOND, &s), 0);
        CHECK_EQ(fo_stream_place(s, &(uint64_t){3 << 20}, SLOT), 0);
        CHECK_EQ(fo_stream_write(s, secret, SLOT, 0, SECOND, NULL, NULL), 0);
        CHECK_EQ(fo_stream_sync(s, SECOND), 0);
        fo_stream_close(s);
    }
    CHECK_EQ(fo_target_close(r.e, r.ids[0], 0), -ETIMEDOUT);
    CHECK_EQ(fo_faults_release(r.e, r.ids[0]), 0);
    CHECK_EQ(fo_faults_advance(r.e, SECOND), 0);
    CHECK_EQ(fo_target_close(r.e, r.ids[0], 0), -EBADF); /* it closed itself after the last completion */
    file = test_read_file(test_path("bad"), &size);
    CHECK(memcmp(file, r.data, 4 * SLOT) == 0); /* depth 4: those were in flight, and landed as they were */
    for (size_t i = 0; i < size; i += SLOT) {
        CHECK(memcmp(file + i, secret, 4096) != 0);
    }
    free(file);
    free(secret);
    drop_rig(&r, 0);
}

static void all_targets_hang(void) {
    rig r = make_rig(7, 40);
    fo_fault f = {.nth = 1, .count = UINT64_MAX, .kind = FO_OP_WRITE, .action = FO_FAULT_NEVER, .target = UINT16_MAX};
    int rc = 0;
    fo_leg legs[2];
    fo_info info;
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    for (size_t at = 0; rc == 0 && at < r.size; at += SLOT) {
        rc = fo_stream_write(r.s, r.data + at, SLOT, 0, 60 * SECOND, NULL, NULL);
    }
    CHECK_EQ(rc, -EPIPE);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(legs[i].state, FO_LEG_FAILED);
        CHECK_EQ(legs[i].completed, 0);
        CHECK_EQ(legs[i].inflight, 4);
    }
    fo_engine_info(r.e, &info);
    CHECK_EQ(info.slots_quarantined, 4);
    CHECK_EQ(fo_stream_sync(r.s, SECOND), 0);
    drop_rig(&r, -ETIMEDOUT);
}

static void slow_but_alive(void) {
    rig r = make_rig(8, 12);
    fo_leg legs[2];
    fo_event ev = {0};
    set_fault(&r, (fo_fault){.nth = 3, .count = 2, .kind = FO_OP_WRITE, .action = FO_FAULT_DELAY, .value = 2 * SECOND});
    write_all(&r);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_SYNCED);
    CHECK_EQ(count_events(r.e, FO_EVENT_SLOW, &ev), 2); /* once per operation */
    CHECK_EQ(ev.target, r.ids[0]);
    CHECK(holds("bad", r.data, r.size));
    drop_rig(&r, 0);
}

/* ---- open, truncate, close ---- */

static void lifecycle_faults(void) {
    static const struct {
        uint8_t kind;
        int err;
    } cases[] = {{FO_OP_OPEN, EMFILE}, {FO_OP_OPEN, EACCES}, {FO_OP_ALLOCATE, ENOSPC}, {FO_OP_READ, EIO}};
    fo_engine *e = open_engine(9);
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = 1 << 20};
    fo_outcome why;
    fo_info info;
    uint16_t id;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fo_fault f = {.nth = 1, .count = 1, .kind = cases[i].kind, .action = FO_FAULT_ERRNO, .value = cases[i].err,
                      .target = UINT16_MAX};
        CHECK_EQ(fo_faults_set(e, &f, 1), 0);
        CHECK_EQ(fo_target_open(e, test_path("life"), &o, SECOND, &id, &why), -cases[i].err);
        CHECK_EQ(why.phase, cases[i].kind);
        CHECK_EQ(why.err, cases[i].err);
        CHECK_EQ(why.cls, fo_classify(cases[i].err));
        fo_engine_info(e, &info);
        CHECK_EQ(info.targets, 0);
    }
    for (int i = 0; i < 5; i++) {
        static const uint8_t kinds[] = {FO_OP_TRUNCATE, FO_OP_FLUSH, FO_OP_DIRSYNC, FO_OP_CLOSE, 0};
        fo_fault f = {.nth = 1, .count = 1, .kind = kinds[i], .action = FO_FAULT_ERRNO, .value = EDQUOT,
                      .target = UINT16_MAX};
        (void)unlink(test_path("life"));
        CHECK_EQ(fo_faults_set(e, &f, kinds[i] != 0), 0);
        CHECK_EQ(fo_target_open(e, test_path("life"), &o, SECOND, &id, &why), 0);
        CHECK_EQ(fo_target_finish(e, id, 100, SECOND, &why), kinds[i] != 0 ? -EDQUOT : 0);
        CHECK_EQ(why.phase, kinds[i] != 0 ? kinds[i] : why.phase);
        CHECK_EQ(why.code, kinds[i] != 0 ? FO_OUTCOME_ERROR : FO_OUTCOME_OK);
        fo_engine_info(e, &info);
        CHECK_EQ(info.targets, 0); /* closed, whatever went wrong before */
    }
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

static void open_hangs(void) {
    fo_engine *e = open_engine(10);
    fo_open o = {.flags = FO_OPEN_REPLACE};
    fo_fault f = {.nth = 1, .count = 1, .kind = FO_OP_OPEN, .action = FO_FAULT_NEVER, .target = UINT16_MAX};
    fo_outcome why;
    fo_info info;
    uint16_t id;
    uint64_t began = fo_now(e);
    CHECK_EQ(fo_faults_set(e, &f, 1), 0);
    CHECK_EQ(fo_target_open(e, test_path("hung"), &o, FO_FOREVER, &id, &why), -ETIMEDOUT);
    CHECK_EQ(fo_now(e) - began, 4 * SECOND); /* for ever is bounded by the hard deadline */
    CHECK_EQ(why.phase, FO_OP_OPEN);
    CHECK_EQ(why.code, FO_OUTCOME_TIMED_OUT);
    CHECK_EQ(fo_target_open(e, test_path("other"), &o, SECOND, &id, &why), 0); /* nobody else is held up */
    CHECK_EQ(fo_faults_release(e, 0), 0);
    CHECK_EQ(fo_faults_advance(e, SECOND), 0);
    fo_engine_info(e, &info);
    CHECK_EQ(info.targets, 1); /* the late one closed itself */
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* ---- abort and eject ---- */

/* What is in flight at an abort may fail yet: who looks for the guilty then must not be told of the abort alone. */
static void fails_after_abort(void) {
    rig r = make_rig(12, 16);
    fo_leg legs[2];
    set_fault(&r, (fo_fault){.nth = 2, .count = 1, .kind = FO_OP_WRITE, .action = FO_FAULT_ERRNO, .value = EIO});
    for (size_t at = 0; at < 8 * SLOT; at += SLOT) {
        CHECK_EQ(fo_stream_write(r.s, r.data + at, SLOT, 0, SECOND, NULL, NULL), 0);
    }
    CHECK_EQ(fo_stream_abort(r.s), 0);
    CHECK_EQ(fo_stream_drained(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].first.code, FO_OUTCOME_ERROR);
    CHECK_EQ(legs[0].first.err, EIO);
    CHECK_EQ(legs[0].first.offset, SLOT);
    CHECK_EQ(legs[0].first.more, 1); /* what the abort left unsubmitted */
    CHECK_EQ(legs[1].first.code, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(legs[1].first.err, ECANCELED);
    drop_rig(&r, 0);
}

static void abort_drains(void) {
    rig r = make_rig(11, 16);
    fo_event ev = {0};
    fo_leg legs[2];
    fo_info info;
    set_fault(&r, (fo_fault){.nth = 1, .count = 4, .kind = FO_OP_WRITE, .action = FO_FAULT_DELAY, .value = 500 * MS});
    for (size_t at = 0; at < 8 * SLOT; at += SLOT) {
        CHECK_EQ(fo_stream_write(r.s, r.data + at, SLOT, 0, SECOND, NULL, NULL), 0);
    }
    CHECK_EQ(fo_stream_write(r.s, r.data, 100, 0, SECOND, NULL, NULL), 0); /* a slot that is half full */
    CHECK_EQ(fo_stream_abort(r.s), 0);
    CHECK_EQ(fo_stream_abort(r.s), 0);
    CHECK_EQ(fo_stream_write(r.s, r.data, 1, 0, SECOND, NULL, NULL), -ECANCELED);
    CHECK_EQ(fo_stream_sync(r.s, SECOND), -ECANCELED);
    CHECK_EQ(fo_stream_drained(r.s, MS), -ETIMEDOUT);
    CHECK_EQ(fo_stream_drained(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(legs[i].state, FO_LEG_FAILED);
        CHECK_EQ(legs[i].first.code, FO_OUTCOME_NOT_SUBMITTED);
        CHECK_EQ(legs[i].first.err, ECANCELED);
        CHECK_EQ(legs[i].drained, 1);
        CHECK_EQ(legs[i].completed, legs[i].submitted);
    }
    CHECK(legs[0].submitted < legs[0].accepted);
    CHECK_EQ(count_events(r.e, FO_EVENT_DRAINED, &ev), 2);
    fo_engine_info(r.e, &info);
    CHECK_EQ(info.slots_free, info.slot_count);
    drop_rig(&r, 0);
}

static void eject_one(void) {
    rig r = make_rig(12, 16);
    fo_leg legs[2];
    fo_event ev = {0};
    uint32_t failed = 0;
    set_fault(&r, (fo_fault){.nth = 1, .count = UINT64_MAX, .kind = FO_OP_WRITE, .action = FO_FAULT_DELAY,
                             .value = 900 * MS});
    for (size_t at = 0; at < 8 * SLOT; at += SLOT) {
        CHECK_EQ(fo_stream_write(r.s, r.data + at, SLOT, 0, SECOND, NULL, NULL), 0);
    }
    CHECK_EQ(fo_stream_eject(r.s, r.ids[0]), 0);
    CHECK_EQ(fo_stream_eject(r.s, r.ids[0]), 0);
    CHECK_EQ(fo_stream_eject(r.s, 60), -EINVAL);
    for (size_t at = 8 * SLOT; at < r.size; at += SLOT) {
        CHECK_EQ(fo_stream_write(r.s, r.data + at, SLOT, 0, SECOND, NULL, &failed), 0);
    }
    CHECK_EQ(failed, 1);
    CHECK_EQ(fo_stream_sync(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_legs(r.s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_EJECTED);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK(holds("good", r.data, r.size));
    CHECK_EQ(count_events(r.e, FO_EVENT_EJECTED, &ev), 1);
    drop_rig(&r, 0);
}

/* ---- one seed, one run ---- */

static uint64_t fingerprint(uint64_t seed) {
    rig r = make_rig(seed, 20);
    fo_fault f[2] = {{.nth = 4, .count = 3, .kind = FO_OP_WRITE, .action = FO_FAULT_ERRNO, .value = EAGAIN, .target = UINT16_MAX},
                     {.nth = 9, .count = 1, .kind = FO_OP_WRITE, .action = FO_FAULT_ERRNO, .value = EIO, .target = 0}};
    fo_event ev[64];
    uint64_t sum = 0;
    int n;
    REQUIRE(fo_faults_set(r.e, f, 2) == 0);
    write_all(&r);
    n = fo_events(r.e, ev, 64, 0);
    for (int i = 0; i < n; i++) {
        ev[i].reserved[0] = 0;
        sum = sum * 31 + fo_sum(&ev[i], sizeof ev[i]);
    }
    sum += fo_now(r.e);
    drop_rig(&r, 0);
    return sum;
}

static void deterministic(void) {
    CHECK_EQ(fingerprint(1234), fingerprint(1234));
    CHECK(fingerprint(1234) != fingerprint(1235));
}

static void misuse(void) {
    rig r = make_rig(13, 4);
    fo_stream *s;
    uint16_t twice[2] = {r.ids[0], r.ids[0]};
    fo_outcome why;
    uint16_t id;
    CHECK_EQ(fo_stream_open(r.e, twice, 2, 0, &s), -EINVAL);
    CHECK_EQ(fo_stream_open(r.e, twice, 0, 0, &s), -EINVAL);
    twice[1] = 50;
    CHECK_EQ(fo_stream_open(r.e, twice, 2, 0, &s), -EINVAL);
    CHECK_EQ(fo_target_close(r.e, r.ids[0], 0), -EBUSY);
    CHECK_EQ(fo_target_finish(r.e, r.ids[0], 0, 0, &why), -EBUSY);
    CHECK_EQ(fo_target_open(r.e, "", &(fo_open){0}, 0, &id, &why), -EINVAL);
    CHECK_EQ(fo_target_open(r.e, "/nonexistent/x", &(fo_open){0}, SECOND, &id, &why), -ENOENT);
    CHECK_EQ(why.cls, FO_CLASS_SETUP);
    CHECK_EQ(fo_target_open(r.e, "/dev/null", &(fo_open){0}, SECOND, &id, &why), -EINVAL);
    CHECK_EQ(fo_event_fd(r.e), -EOPNOTSUPP);
    CHECK_EQ(fo_stream_place(r.s, (uint64_t[]){1, 0}, UINT64_MAX), -EINVAL);
    CHECK_EQ(fo_stream_place(r.s, (uint64_t[]){0, 0}, 100), -EINVAL);
    CHECK_EQ(fo_stream_write(r.s, NULL, 0, 0, 0, NULL, NULL), 0);
    CHECK_EQ(fo_stream_seal(r.s, 0), 0);
    CHECK_EQ(fo_stream_write(r.s, r.data, 1, 0, 0, NULL, NULL), -EINVAL);
    CHECK_EQ(fo_stream_sync(r.s, 0), 0);
    drop_rig(&r, 0);
}

int main(void) {
    test_dir_make();
    RUN(write_rows);
    RUN(read_rows);
    RUN(flush_fails_once);
    RUN(flush_hangs);
    RUN(write_hangs_then_lands_late);
    RUN(quarantine_keeps_clients_apart);
    RUN(all_targets_hang);
    RUN(slow_but_alive);
    RUN(lifecycle_faults);
    RUN(open_hangs);
    RUN(fails_after_abort);
    RUN(abort_drains);
    RUN(eject_one);
    RUN(deterministic);
    RUN(misuse);
    test_dir_remove();
    return test_end();
}
