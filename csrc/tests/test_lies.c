/*
 * test_lies.c: the simulation itself: devices that lie, the journal of what the medium has seen, and the power failing.
 *
 * Whatever is proved with these is worth what they are worth: a lie has to be the lie that was asked for, and no other.
 */
#include "fanout.h"
#include "testing.h"

#define SECOND 1000000000ull
#define SLOT ((size_t)64 << 10)

typedef struct rig {
    fo_engine *e;
    uint16_t id;
    unsigned char *bytes;
} rig;

static fo_engine *open_engine(uint32_t backend) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.hard_ns = UINT64_MAX;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    return e;
}

static rig make_rig(void) {
    rig r = {.e = open_engine(FO_BACKEND_FAULTY), .bytes = test_bytes(SLOT, 9)};
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = 1 << 20};
    (void)unlink(test_path("lies"));
    REQUIRE(fo_target_open(r.e, test_path("lies"), &o, SECOND, &r.id, NULL) == 0);
    return r;
}

static void drop_rig(rig *r) {
    (void)fo_engine_close(r->e, SECOND);
    free(r->bytes);
}

static fo_outcome ask(rig *r, uint8_t kind, uint64_t offset, uint64_t length, const fo_fault *fault) {
    static unsigned char back[SLOT];
    fo_request q = {.target = r->id, .kind = kind, .offset = offset, .length = length};
    q.data = kind == FO_OP_WRITE ? r->bytes : kind == FO_OP_READ ? back : NULL;
    REQUIRE(fo_faults_set(r->e, fault, fault != NULL) == 0);
    CHECK_EQ(fo_run(r->e, &q, 1, 10 * SECOND), 0);
    return q.outcome;
}

static fo_fault lie(uint8_t action, int64_t value) {
    return (fo_fault){.nth = 1, .count = 1, .target = UINT16_MAX, .action = action, .value = value};
}

static unsigned char on_disk(uint64_t at) {
    unsigned char byte = 0;
    int fd = open(test_path("lies"), O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && pread(fd, &byte, 1, (off_t)at) == 1);
    (void)close(fd);
    return byte;
}

static void every_lie(void) {
    rig r = make_rig();
    fo_fault f = lie(FO_FAULT_SWALLOW, 0);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, &f).code, FO_OUTCOME_OK);
    CHECK_EQ(on_disk(1), 0);
    CHECK_EQ(ask(&r, FO_OP_READ, 0, 4096, &f).code, FO_OUTCOME_OK);
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, &f).code, FO_OUTCOME_OK);
    f = lie(FO_FAULT_FLIP, 7);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, &f).code, FO_OUTCOME_OK);
    CHECK_EQ(on_disk(7), r.bytes[7] ^ 1);
    CHECK_EQ(on_disk(8), r.bytes[8]);
    CHECK_EQ(ask(&r, FO_OP_TRUNCATE, 0, 0, &f).err, ENOMEM); /* there is no byte that could be turned */
    f.kind = FO_OP_READ; /* nor in the warm-up read, whose bytes nobody wants */
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    CHECK_EQ(fo_target_open(r.e, test_path("lies"), &(fo_open){0}, SECOND, &(uint16_t){0}, NULL), -ENOMEM);
    f = lie(FO_FAULT_SHIFT, 8192);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, &f).code, FO_OUTCOME_OK);
    CHECK_EQ(on_disk(8192 + 5), r.bytes[5]);
    CHECK_EQ(on_disk(7), r.bytes[7] ^ 1); /* where it was meant to go nothing happened */
    drop_rig(&r);
}

/* A fault on top of a failure of the medium: the medium's word counts. */
static void failures_below(void) {
    rig r = make_rig();
    fo_fault f = lie(FO_FAULT_ERRNO_AFTER, EDQUOT);
    CHECK_EQ(ask(&r, FO_OP_TRUNCATE, 0, UINT64_MAX / 2 + 1, &f).err, EINVAL);
    CHECK_EQ(ask(&r, FO_OP_ALLOCATE, 0, 4096, &f).err, EDQUOT);
    f = lie(FO_FAULT_SHORT, 4096);
    CHECK_EQ(ask(&r, FO_OP_WRITE, (uint64_t)INT64_MAX + 1, 8192, &f).err, EINVAL);
    CHECK_EQ(ask(&r, FO_OP_ALLOCATE, 0, 8192, &f).code, FO_OUTCOME_OK);
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, &f).code, FO_OUTCOME_OK);
    f = lie(FO_FAULT_SHORT, 512); /* of the warm-up read any number of bytes will do */
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    f.kind = FO_OP_READ;
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    CHECK_EQ(fo_target_open(r.e, test_path("lies"), &(fo_open){0}, SECOND, &(uint16_t){0}, NULL), 0);
    drop_rig(&r);
}

/* Nothing will ever happen: whoever waits for ever is told so.  Then one target's operations are released, and not the other's. */
static void nothing_happens(void) {
    rig r = make_rig();
    uint16_t ids[2] = {r.id};
    fo_fault f = {.nth = 1, .count = UINT64_MAX, .target = UINT16_MAX, .kind = FO_OP_WRITE, .action = FO_FAULT_NEVER};
    fo_leg legs[2];
    fo_stream *s;
    uint64_t now;
    REQUIRE(fo_target_open(r.e, test_path("other"), &(fo_open){.flags = FO_OPEN_REPLACE, .soft_ns = UINT64_MAX}, SECOND, &ids[1],
                           NULL) == 0);
    REQUIRE(fo_stream_open(r.e, ids, 2, SECOND, &s) == 0);
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    CHECK_EQ(fo_stream_write(s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 100 * SECOND), -ETIMEDOUT); /* past the soft deadline */
    CHECK_EQ(fo_stream_sync(s, FO_FOREVER), -ETIMEDOUT);
    now = fo_now(r.e);
    CHECK_EQ(fo_faults_advance(r.e, FO_FOREVER), 0);
    CHECK_EQ(fo_now(r.e), now);
    CHECK_EQ(fo_faults_advance(r.e, 0), 0);
    CHECK_EQ(fo_faults_release(r.e, ids[1]), 0);
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    CHECK_EQ(legs[0].completed, 0);
    CHECK_EQ(legs[1].completed, SLOT);
    CHECK_EQ(fo_stream_write(s, r.bytes, SLOT, 0, SECOND, NULL, NULL), -EINVAL); /* sealed */
    CHECK_EQ(fo_faults_release(r.e, UINT16_MAX), 0);
    CHECK_EQ(fo_stream_sync(s, SECOND), 0);
    fo_stream_close(s);
    drop_rig(&r);
}

/* ---- journal and power ---- */

static size_t records(int fd, fo_carried *out, size_t max) {
    fo_carried c;
    off_t at = 0;
    size_t n = 0;
    while (n < max && pread(fd, &c, sizeof c, at) == (ssize_t)sizeof c) {
        at += (off_t)(sizeof c + c.data);
        out[n++] = c;
    }
    return n;
}

static void journal_and_power(void) {
    rig r = make_rig();
    fo_carried c[16];
    fo_fault never = {.nth = 1, .count = UINT64_MAX, .target = UINT16_MAX, .kind = FO_OP_WRITE, .action = FO_FAULT_NEVER};
    fo_fault failed = lie(FO_FAULT_ERRNO, EIO);
    int fd = open(test_path("journal"), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    fo_stream *s;
    REQUIRE(fd >= 0 && fo_faults_journal(r.e, fd) == 0);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, NULL).code, FO_OUTCOME_OK);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, &failed).err, EIO);
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, NULL).code, FO_OUTCOME_OK);
    CHECK_EQ(ask(&r, FO_OP_READ, 0, 4096, NULL).code, FO_OUTCOME_OK);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &s) == 0);
    REQUIRE(fo_faults_set(r.e, &never, 1) == 0);
    CHECK_EQ(fo_stream_write(s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_faults_power(r.e, 2), 0);
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, NULL).code, FO_OUTCOME_OK); /* the first of two */
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, NULL).code, FO_OUTCOME_OK); /* and with the second it is gone */
    CHECK_EQ(ask(&r, FO_OP_FLUSH, 0, 0, NULL).err, EIO);
    CHECK_EQ(fo_faults_power(r.e, 5), -ENODEV); /* it stays away */
    CHECK_EQ(fo_faults_power(r.e, 0), -ENODEV);
    CHECK_EQ(records(fd, c, 16), 8);
    CHECK(c[0].kind == FO_OP_WRITE && c[0].data == 4096 && c[0].medium == 4096 && c[0].ino != 0);
    CHECK(c[1].kind == FO_OP_WRITE && c[1].data == 0 && c[1].result == -EIO && c[1].action == FO_FAULT_ERRNO);
    CHECK(c[2].kind == FO_OP_FLUSH && c[0].done < c[2].issued);
    CHECK(c[3].kind == FO_OP_READ && c[3].data == 0);
    CHECK(c[6].kind == FO_OP_WRITE && c[6].medium == -EINPROGRESS && c[6].data == SLOT);
    CHECK(c[7].kind == FO_OP_NONE);
    fo_stream_close(s);
    drop_rig(&r); /* a close is always carried out */
    (void)close(fd);
}

/* What is closed is closed, also in the dark. */
static void closed_without_power(void) {
    rig r = make_rig();
    CHECK_EQ(fo_faults_power(r.e, 0), 0);
    CHECK_EQ(fo_target_close(r.e, r.id, SECOND), 0);
    drop_rig(&r);
}

static void power_without_a_journal(void) {
    rig r = make_rig();
    fo_fault never = {.nth = 1, .count = 1, .target = UINT16_MAX, .kind = FO_OP_FLUSH, .action = FO_FAULT_NEVER};
    fo_stream *s;
    CHECK_EQ(fo_faults_power(r.e, UINT64_MAX), 0);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, NULL).code, FO_OUTCOME_OK);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &s) == 0);
    REQUIRE(fo_faults_set(r.e, &never, 1) == 0);
    CHECK_EQ(fo_stream_write(s, r.bytes, 100, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, SECOND), -ETIMEDOUT); /* its flush is in flight when the power fails */
    CHECK_EQ(fo_faults_power(r.e, 0), 0);
    CHECK_EQ(ask(&r, FO_OP_WRITE, 0, 4096, NULL).err, EIO);
    CHECK_EQ(fo_faults_journal(r.e, -1), 0);
    fo_stream_close(s);
    drop_rig(&r);
}

/* Only the simulation lies. */
static void real_backends_refuse(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    fo_fault f = lie(FO_FAULT_SWALLOW, 0);
    CHECK_EQ(fo_faults_set(e, &f, 1), -EOPNOTSUPP);
    CHECK_EQ(fo_faults_advance(e, 1), -EOPNOTSUPP);
    CHECK_EQ(fo_faults_release(e, 0), -EOPNOTSUPP);
    CHECK_EQ(fo_faults_journal(e, -1), -EOPNOTSUPP);
    CHECK_EQ(fo_faults_power(e, 0), -EOPNOTSUPP);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

int main(void) {
    test_dir_make();
    RUN(every_lie);
    RUN(failures_below);
    RUN(nothing_happens);
    RUN(journal_and_power);
    RUN(power_without_a_journal);
    RUN(closed_without_power);
    RUN(real_backends_refuse);
    test_dir_remove();
    return test_end();
}
