/*
 * test_limits.c: every bound of the interface, reached: sums, requests, regions, events, slots, names; on the simulated clock.
 */
#include "../fo_stream.h"
#include "testing.h"

#define SECOND 1000000000ull
#define SLOT ((size_t)64 << 10)

typedef struct rig {
    fo_engine *e;
    uint16_t id;
    fo_stream *s;
    unsigned char *bytes;
} rig;

static rig make_rig(void) {
    rig r = {.bytes = test_bytes(4 * SLOT, 2)};
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = 4 << 20, .depth = 4};
    fo_config cfg;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = FO_BACKEND_FAULTY;
    cfg.slot_size = SLOT;
    cfg.slot_count = 12;
    cfg.max_streams = 2;
    cfg.control_slots = 2;
    cfg.quarantine_slots = 4;
    cfg.hard_ns = 1000 * SECOND;
    REQUIRE(fo_engine_open(&cfg, reason, &r.e) == 0);
    REQUIRE(fo_target_open(r.e, test_path("limits"), &o, SECOND, &r.id, NULL) == 0);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &r.s) == 0);
    return r;
}

static void drop_rig(rig *r) {
    fo_stream_close(r->s);
    (void)fo_engine_close(r->e, SECOND);
    free(r->bytes);
}

static void set_fault(rig *r, uint8_t kind, uint8_t action, int64_t value, uint64_t count) {
    fo_fault f = {.nth = 1, .count = count, .target = r->id, .kind = kind, .action = action, .value = value};
    REQUIRE(fo_faults_set(r->e, &f, 1) == 0);
}

/* Blocks beyond those that sums are kept for go unsummed; whoever needs all of them is told. */
static void sums_run_out(void) {
    rig r = make_rig();
    uint64_t sums[4], offset = 0;
    CHECK_EQ(fo_stream_media(r.s, sums, 4), -EINVAL); /* nobody asked for them */
    CHECK_EQ(fo_stream_place(r.s, &offset, (uint64_t)1 << 60), -EINVAL); /* more blocks than there are numbers */
    CHECK_EQ(fo_stream_prove(r.s), 0);
    CHECK_EQ(fo_stream_media(r.s, sums, 4), 0); /* of no block */
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 4096, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_media(r.s, sums, 4), -EINVAL); /* written before a place: not summed */
    CHECK_EQ(fo_stream_pad(r.s, SECOND), 0);
    CHECK_EQ(fo_stream_place(r.s, &offset, UINT64_MAX), 0);
    r.s->sums_max = 2; /* instead of 65,536 */
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 2 * SLOT + 100, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_media(r.s, sums, 1), -EFBIG);
    CHECK_EQ(fo_stream_sums(r.s, sums, 1), 2); /* the third is not among them */
    CHECK_EQ(sums[0], fo_sum(r.bytes, SLOT));
    CHECK_EQ(fo_stream_write(r.s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    drop_rig(&r);
}

/* More requests than there are tickets for one wave, most of them with nothing to do. */
static void many_requests(void) {
    rig r = make_rig();
    static fo_request q[300];
    for (int i = 0; i < 300; i++) {
        q[i] = (fo_request){.target = r.id, .kind = i % 2 == 0 ? FO_OP_WRITE : FO_OP_READ};
    }
    q[5].length = q[7].length = SLOT + 1; /* longer than a slot */
    q[4].length = SLOT + 1;
    q[6].length = 4096; /* without data */
    q[9].kind = FO_OP_OPEN;
    q[290] = (fo_request){.target = r.id, .kind = FO_OP_FLUSH};
    q[291] = (fo_request){.target = r.id, .kind = FO_OP_DIRSYNC}; /* it was there before: no directory to flush */
    CHECK_EQ(fo_run(r.e, q, 300, SECOND), 0);
    for (int i = 0; i < 300; i++) {
        bool bad = (i >= 4 && i <= 7) || i == 9;
        CHECK_EQ(q[i].outcome.code, bad ? FO_OUTCOME_NOT_SUBMITTED : FO_OUTCOME_OK);
        CHECK_EQ(q[i].outcome.err, bad ? EINVAL : 0);
    }
    q[0] = (fo_request){.target = FO_MAX_TARGETS, .kind = FO_OP_FLUSH};
    CHECK_EQ(fo_run(r.e, q, 1, SECOND), 0);
    CHECK_EQ(q[0].outcome.err, EBADF);
    drop_rig(&r);
}

/* All control slots are taken by requests of others that hang: nothing was submitted, and that is said. */
static void no_control_slot(void) {
    rig r = make_rig();
    fo_request q = {.target = r.id, .kind = FO_OP_FLUSH};
    fo_outcome why;
    uint32_t taken[6]; /* two, and the four of the reserve */
    uint16_t second;
    REQUIRE(fo_target_open(r.e, test_path("second"), &(fo_open){.flags = FO_OPEN_REPLACE}, SECOND, &second, NULL) == 0);
    for (int i = 0; i < 6; i++) {
        taken[i] = fo_machine_take_control(&r.e->machine, (uint16_t)(100 + i));
        REQUIRE(taken[i] != FO_NIL);
    }
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), -ETIMEDOUT);
    CHECK_EQ(q.outcome.code, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(q.outcome.err, ETIMEDOUT);
    CHECK_EQ(fo_target_finish(r.e, second, -1, SECOND, &why), -ETIMEDOUT);
    CHECK_EQ(why.phase, FO_OP_FLUSH);
    for (int i = 0; i < 6; i++) {
        fo_machine_collect(&r.e->machine, taken[i]);
    }
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
    drop_rig(&r);
}

/* Regions of several lengths, more than one batch, one of them wrong and one unreadable. */
static void many_regions(void) {
    rig r = make_rig();
    static fo_readback regions[70];
    uint64_t sums[2], wrong[2] = {1, 2};
    fo_request w = {.target = r.id, .kind = FO_OP_WRITE, .length = SLOT, .data = r.bytes};
    CHECK_EQ(fo_run(r.e, &w, 1, SECOND), 0);
    w.offset = SLOT;
    CHECK_EQ(fo_run(r.e, &w, 1, SECOND), 0);
    sums[0] = sums[1] = fo_sum(r.bytes, SLOT);
    for (int i = 0; i < 70; i++) {
        regions[i] = (fo_readback){.target = r.id, .length = i % 2 == 0 ? SLOT : 2 * SLOT, .sums = i == 5 ? wrong : sums};
    }
    regions[6].target = 60;
    CHECK_EQ(fo_read_back(r.e, regions, 70, SECOND), 0);
    for (int i = 0; i < 70; i++) {
        CHECK_EQ(regions[i].outcome.code,
                 i == 5 ? FO_OUTCOME_MISMATCH : i == 6 ? FO_OUTCOME_NOT_SUBMITTED : FO_OUTCOME_OK);
        CHECK(i == 5 || i == 6 || regions[i].outcome.done == regions[i].length);
    }
    for (uint16_t i = 0; i < 6; i++) {
        CHECK(fo_machine_take_control(&r.e->machine, (uint16_t)(100 + i)) != FO_NIL);
    }
    CHECK_EQ(fo_read_back(r.e, regions, 70, SECOND), -ETIMEDOUT); /* in the middle of it */
    CHECK_EQ(fo_read_back(r.e, regions, 2, SECOND), -ETIMEDOUT);
    drop_rig(&r);
}

/* Both batches of a wrong region count. */
static void wrong_twice(void) {
    rig r = make_rig();
    static fo_readback regions[65];
    uint64_t wrong[2] = {1, 2};
    for (int i = 0; i < 65; i++) {
        regions[i] = (fo_readback){.target = r.id, .length = 2 * SLOT, .sums = wrong};
    }
    CHECK_EQ(fo_read_back(r.e, regions, 65, SECOND), 0);
    for (int i = 0; i < 65; i++) {
        CHECK_EQ(regions[i].outcome.code, FO_OUTCOME_MISMATCH);
    }
    drop_rig(&r);
}

/* Unread events stop streams, requests and opening, and lose nothing. */
static void events_unread(void) {
    rig r = make_rig();
    fo_machine *m = &r.e->machine;
    fo_request q = {.target = r.id, .kind = FO_OP_FLUSH};
    fo_outcome why;
    fo_stream *s;
    uint16_t id;
    uint32_t cap = m->event_cap;
    uint64_t now = fo_now(r.e);
    CHECK_EQ(fo_stream_seal(r.s, SECOND), 0);
    m->event_cap = 1; /* as if all others were unread */
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), -ENOBUFS);
    CHECK_EQ(q.outcome.err, ENOBUFS);
    CHECK_EQ(fo_now(r.e), now); /* at once: waiting does not help */
    CHECK_EQ(fo_stream_open(r.e, &r.id, 1, SECOND, &s), -ENOBUFS);
    CHECK_EQ(fo_target_open(r.e, test_path("more"), &(fo_open){.flags = FO_OPEN_REPLACE}, SECOND, &id, &why), -ENOBUFS);
    m->event_cap = cap;
    CHECK_EQ(fo_stream_open(r.e, &r.id, 1, SECOND, &s), 0);
    m->event_cap = 1;
    CHECK_EQ(fo_stream_write(s, r.bytes, 1, 0, SECOND, NULL, NULL), -ENOBUFS);
    m->event_cap = cap;
    CHECK_EQ(fo_stream_write(s, r.bytes, 1, 0, SECOND, NULL, NULL), 0);
    fo_stream_close(s);
    drop_rig(&r);
}

/* No slot in time, for a write and for a lease whose rest would have to move on. */
static void slots_taken(void) {
    rig r = make_rig();
    void *lent;
    size_t room;
    set_fault(&r, FO_OP_WRITE, FO_FAULT_DELAY, 100 * (int64_t)SECOND, UINT64_MAX);
    while (fo_machine_may_take(&r.e->machine, r.s->flow)) {
        CHECK_EQ(fo_stream_write(r.s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    }
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 1, 0, SECOND, NULL, NULL), -ETIMEDOUT);
    CHECK_EQ(fo_faults_advance(r.e, 100 * SECOND), 0);
    fo_stream_close(r.s);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &r.s) == 0);
    CHECK_EQ(fo_stream_write(r.s, r.bytes, SLOT - 1000, 0, SECOND, NULL, NULL), 0);
    while (r.e->machine.flows[r.s->flow].held < 2 || fo_machine_may_take(&r.e->machine, r.s->flow)) {
        REQUIRE(fo_machine_take(&r.e->machine, r.s->flow) != FO_NIL);
    }
    CHECK_EQ(fo_stream_lease(r.s, 2000, SECOND, &lent, &room), -ETIMEDOUT);
    CHECK_EQ(fo_stream_position(r.s), SLOT - 1000);
    for (uint32_t i = 0; i < r.e->machine.cfg.slot_count; i++) {
        if (r.e->machine.slots[i].state == FO_SLOT_FILLING && i != r.s->slot) {
            fo_machine_give_back(&r.e->machine, i);
        }
    }
    CHECK_EQ(fo_stream_lease(r.s, 2000, SECOND, &lent, &room), 0);
    fo_stream_return(r.s);
    drop_rig(&r);
}

/* A read of which some bytes came before it hung: they are not given out. */
static void part_of_a_read(void) {
    rig r = make_rig();
    unsigned char *back = calloc(1, SLOT);
    fo_request q = {.target = r.id, .kind = FO_OP_READ, .length = SLOT, .data = back};
    fo_fault f[2] = {{.nth = 1, .count = 1, .target = r.id, .kind = FO_OP_READ, .action = FO_FAULT_SHORT, .value = 4096},
                     {.nth = 2, .count = 1, .target = r.id, .kind = FO_OP_READ, .action = FO_FAULT_NEVER}};
    fo_request w = {.target = r.id, .kind = FO_OP_WRITE, .length = SLOT, .data = r.bytes};
    REQUIRE(back != NULL && fo_run(r.e, &w, 1, SECOND) == 0);
    REQUIRE(fo_faults_set(r.e, f, 2) == 0);
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
    CHECK_EQ(q.outcome.code, FO_OUTCOME_TIMED_OUT);
    CHECK_EQ(q.outcome.done, 4096);
    CHECK_EQ(back[0], 0);
    free(back);
    drop_rig(&r);
}

/* Targets that are not what a caller thinks: unknown, being opened, taken, read only, a close pending. */
static void wrong_targets(void) {
    rig r = make_rig();
    fo_open o = {.flags = FO_OPEN_READONLY};
    fo_request q = {.kind = FO_OP_WRITE, .length = 4096, .data = r.bytes};
    fo_geometry g;
    fo_stream *s;
    fo_outcome why;
    uint16_t id;
    CHECK_EQ(fo_target_geometry(r.e, FO_MAX_TARGETS, &g), -EBADF);
    CHECK_EQ(fo_target_geometry(r.e, 50, &g), -EBADF);
    CHECK_EQ(fo_target_close(r.e, FO_MAX_TARGETS, SECOND), -EBADF);
    CHECK_EQ(fo_target_close(r.e, 50, SECOND), -EBADF);
    fo_target_forget(r.e, FO_MAX_TARGETS);
    fo_target_forget(r.e, 50);
    CHECK_EQ(fo_target_open(r.e, NULL, &o, SECOND, &id, &why), -EINVAL);
    o.on_slow = FO_SLOW_EJECT + 1;
    CHECK_EQ(fo_target_open(r.e, test_path("limits"), &o, SECOND, &id, &why), -EINVAL);
    o.on_slow = FO_SLOW_WAIT;
    CHECK_EQ(fo_target_open(r.e, test_path("limits"), &o, SECOND, &q.target, &why), 0);
    CHECK_EQ(fo_stream_open(r.e, &q.target, 1, SECOND, &s), -EINVAL); /* for reading only */
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
    CHECK_EQ(q.outcome.err, EBADF);
    r.e->blocks[q.target]->taken = true; /* another caller is closing it */
    CHECK_EQ(fo_target_close(r.e, q.target, SECOND), -EBUSY);
    fo_target_forget(r.e, q.target);
    CHECK_EQ(fo_target_geometry(r.e, q.target, &g), 0);
    r.e->blocks[q.target]->taken = false;
    set_fault(&r, FO_OP_READ, FO_FAULT_DELAY, 10 * (int64_t)SECOND, 1);
    r.e->machine.targets[q.target].readonly = false;
    fo_stream_close(r.s);
    REQUIRE(fo_stream_open(r.e, &q.target, 1, SECOND, &r.s) == 0);
    fo_target_forget(r.e, q.target); /* it goes when the stream has gone */
    CHECK_EQ(fo_stream_open(r.e, &q.target, 1, SECOND, &s), -EINVAL);
    CHECK_EQ(fo_run(r.e, &q, 1, SECOND), 0);
    CHECK_EQ(q.outcome.err, EBADF);
    CHECK_EQ(fo_target_finish(r.e, q.target, 0, SECOND, &why), -EBUSY);
    drop_rig(&r);
}

/* Finished while something is in flight for longer than the caller waits: closed by itself later, and by nobody twice. */
static void finished_too_early(void) {
    rig r = make_rig();
    fo_outcome why;
    fo_fault f = {.nth = 1, .count = 1, .target = r.id, .kind = FO_OP_WRITE, .action = FO_FAULT_DELAY, .value = 100 * (int64_t)SECOND};
    REQUIRE(fo_faults_set(r.e, &f, 1) == 0);
    CHECK_EQ(fo_stream_write(r.s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
    fo_stream_close(r.s);
    CHECK_EQ(fo_target_finish(r.e, r.id, 0, SECOND, &why), -ETIMEDOUT);
    CHECK_EQ(why.phase, FO_OP_WRITE);
    CHECK_EQ(fo_target_finish(r.e, r.id, 0, SECOND, &why), -EBADF); /* its close is on the way */
    CHECK_EQ(fo_target_close(r.e, r.id, 200 * SECOND), 0);
    CHECK_EQ(fo_target_close(r.e, r.id, SECOND), -EBADF);
    r.s = NULL;
    drop_rig(&r);
}

/* A close that hangs in the kernel: whoever comes later is told that it is under way. */
static void closed_too_slowly(void) {
    rig r = make_rig();
    fo_outcome why;
    fo_stream_close(r.s);
    r.s = NULL;
    set_fault(&r, FO_OP_CLOSE, FO_FAULT_DELAY, 100 * (int64_t)SECOND, 1);
    CHECK_EQ(fo_target_close(r.e, r.id, SECOND), -ETIMEDOUT);
    r.e->machine.targets[r.id].close_wanted = false; /* it is not what says so */
    CHECK_EQ(fo_target_finish(r.e, r.id, 0, SECOND, &why), -EBADF);
    CHECK_EQ(fo_faults_advance(r.e, 100 * SECOND), 0);
    CHECK_EQ(fo_target_close(r.e, r.id, SECOND), -EBADF);
    drop_rig(&r);
}

static void small_things(void) {
    rig r = make_rig();
    fo_leg leg;
    uint64_t sums[1];
    CHECK(strcmp(fo_backend_name(FO_BACKEND_FAULTY + 1), "unknown") == 0);
    CHECK_EQ(fo_stream_legs(r.s, &leg, 0), 1);
    CHECK_EQ(fo_stream_place(r.s, &(uint64_t){0}, 4096), 0);
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 100, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sums(r.s, sums, 0), 1); /* how many there are, without any */
    drop_rig(&r);
}

int main(void) {
    test_dir_make();
    RUN(sums_run_out);
    RUN(many_requests);
    RUN(no_control_slot);
    RUN(many_regions);
    RUN(wrong_twice);
    RUN(events_unread);
    RUN(slots_taken);
    RUN(part_of_a_read);
    RUN(wrong_targets);
    RUN(finished_too_early);
    RUN(closed_too_slowly);
    RUN(small_things);
    test_dir_remove();
    return test_end();
}
