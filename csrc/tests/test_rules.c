/*
 * test_rules.c: the state machine alone: single rules at their edges, which the random worlds of test_step.c seldom or never meet.
 */
#include "../fo_step_parts.h"
#include "testing.h"

#define MS 1000000ull
#define SLOT 65536u

typedef struct world {
    fo_machine m;
    uint64_t now;
    fo_submission out[64];
    uint32_t made; /* in flight */
    uint16_t ids[5];
    uint32_t flow;
} world;

static fo_config small_config(void) {
    fo_config cfg;
    fo_config_init(&cfg);
    cfg.slot_size = SLOT;
    cfg.slot_count = 16;
    cfg.max_streams = 2;
    cfg.control_slots = 4;
    cfg.quarantine_slots = 2;
    return cfg;
}

/* At most `room` submissions; those in flight already stay where they are. */
static void step_with_room(world *w, const fo_completion *c, uint32_t n, uint32_t room) {
    uint32_t made;
    fo_step(&w->m, w->now, c, n, w->out + w->made, room, &made);
    w->made += made;
    fo_machine_check(&w->m);
}

static void step(world *w) { step_with_room(w, NULL, 0, 64 - w->made); }

static void answer(world *w, uint32_t index, int64_t result) {
    fo_completion c = {w->out[index].token, result};
    w->out[index] = w->out[--w->made];
    step_with_room(w, &c, 1, 64 - w->made);
}

static world *open_world(uint32_t targets, const fo_open *opt) {
    world *w = calloc(1, sizeof *w);
    fo_config cfg = small_config();
    char reason[160];
    REQUIRE(w != NULL && fo_machine_init(&w->m, &cfg, reason) == 0);
    w->now = 1000 * MS;
    for (uint32_t i = 0; i < targets; i++) {
        fo_geometry g = {.granule = 4096, .depth = 2};
        REQUIRE(fo_machine_target_new(&w->m, &w->ids[i]) == 0);
        fo_machine_target_ready(&w->m, w->ids[i], &g, opt);
    }
    REQUIRE(targets == 0 || fo_machine_stream_open(&w->m, w->ids, targets, &w->flow) == 0);
    return w;
}

static const fo_open plain = {.soft_ns = 50 * MS, .hard_ns = 200 * MS, .size = 1 << 20};

static void drop_world(world *w) {
    fo_machine_free(&w->m);
    free(w);
}

static void put(world *w, uint32_t flow, uint64_t position) {
    uint32_t slot = fo_machine_take(&w->m, flow);
    REQUIRE(slot != FO_NIL);
    fo_machine_publish(&w->m, flow, slot, position, SLOT);
}

static uint32_t request(world *w, uint8_t kind, uint64_t length) {
    fo_request r = {.target = w->ids[0], .kind = kind, .length = length};
    uint32_t slot = fo_machine_take_control(&w->m, w->ids[0]);
    REQUIRE(slot != FO_NIL);
    fo_machine_request(&w->m, slot, &r);
    return slot;
}

static fo_outcome take_outcome(world *w, uint32_t ticket) {
    fo_outcome out = w->m.tickets[ticket].outcome;
    CHECK(w->m.tickets[ticket].done);
    fo_machine_collect(&w->m, ticket);
    return out;
}

/* ---- configurations ---- */

static void bounds_of_the_configuration(void) {
    static const struct {
        size_t at;
        uint64_t value;
        bool wide;
    } bad[] = {
        {offsetof(fo_config, slot_size), 0, false},          {offsetof(fo_config, slot_size), 32768, false},
        {offsetof(fo_config, slot_size), 32 << 20, false},   {offsetof(fo_config, slot_count), 4097, false},
        {offsetof(fo_config, max_streams), 257, false},      {offsetof(fo_config, control_slots), 0, false},
        {offsetof(fo_config, control_slots), 257, false},    {offsetof(fo_config, soft_ns), 0, true},
        {offsetof(fo_config, hard_ns), 0, true},             {offsetof(fo_config, patience_ns), 0, true},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        fo_config cfg = small_config();
        fo_machine m;
        char reason[160] = "";
        if (bad[i].wide) {
            memcpy((char *)&cfg + bad[i].at, &bad[i].value, 8);
        } else {
            memcpy((char *)&cfg + bad[i].at, &bad[i].value, 4); /* little-endian */
        }
        CHECK_EQ(fo_machine_init(&m, &cfg, reason), -EINVAL);
        CHECK(reason[0] != '\0');
    }
}

/* ---- results ---- */

/* A backend that claims more than it was given is not believed. */
static void too_many_bytes(void) {
    world *w = open_world(1, &plain);
    fo_completion wild = {UINT64_MAX, 0};
    fo_event ev;
    step_with_room(w, &wild, 1, 64); /* a token that was never given out */
    CHECK_EQ(w->m.strays, 1);
    put(w, w->flow, 0);
    step(w);
    answer(w, 0, SLOT + 1);
    CHECK_EQ(fo_machine_events(&w->m, &ev, 1), 1);
    CHECK_EQ(ev.err, EIO);
    CHECK_EQ(w->m.flows[w->flow].legs[0].completed, 0);
    drop_world(w);
}

/* A read goes on where it stopped; it ends at an odd byte, where the file does. */
static void partial_reads(void) {
    world *w = open_world(1, &plain);
    uint32_t ticket = request(w, FO_OP_READ, SLOT);
    fo_outcome out;
    step(w);
    answer(w, 0, 8192);
    CHECK_EQ(w->out[0].offset, 8192);
    answer(w, 0, 100);
    out = take_outcome(w, ticket);
    CHECK_EQ(out.code, FO_OUTCOME_SHORT);
    CHECK_EQ(out.done, 8292);
    drop_world(w);
}

/* After a failed flush reads are tried again, writes are not. */
static void retries_on_a_closed_target(void) {
    world *w = open_world(1, &plain);
    uint32_t read = request(w, FO_OP_READ, 4096), write = request(w, FO_OP_WRITE, 4096), flush = request(w, FO_OP_FLUSH, 0);
    uint32_t at = 0;
    step(w);
    CHECK_EQ(w->made, 3);
    while (w->out[at].kind != FO_OP_FLUSH) {
        at++;
    }
    answer(w, at, -EIO);
    CHECK_EQ(w->m.targets[w->ids[0]].state, FO_TARGET_FAILED);
    CHECK_EQ(take_outcome(w, flush).err, EIO);
    at = w->out[0].kind == FO_OP_WRITE ? 0 : 1;
    answer(w, at, -EAGAIN);
    CHECK_EQ(take_outcome(w, write).err, EAGAIN);
    answer(w, 0, -EAGAIN);
    CHECK_EQ(w->made, 0);
    w->now += 10 * MS;
    step(w);
    CHECK_EQ(w->made, 1);
    answer(w, 0, 4096);
    CHECK_EQ(take_outcome(w, read).code, FO_OUTCOME_OK);
    drop_world(w);
}

/* A write that the kernel has seen was submitted, also when it waits to be tried again as the flush fails. */
static void seen_before_the_target_closed(void) {
    world *w = open_world(1, &plain);
    uint32_t seen = request(w, FO_OP_WRITE, 2 * 4096), flush = request(w, FO_OP_FLUSH, 0);
    fo_outcome out;
    step(w);
    CHECK_EQ(w->made, 2);
    answer(w, w->out[0].kind == FO_OP_WRITE ? 0 : 1, -EAGAIN);
    answer(w, 0, -EIO);
    CHECK_EQ(take_outcome(w, flush).err, EIO);
    CHECK_EQ(w->made, 0);
    w->now += 10 * MS;
    step(w);
    CHECK_EQ(w->made, 0);
    out = take_outcome(w, seen);
    CHECK_EQ(out.code, FO_OUTCOME_ERROR);
    CHECK_EQ(out.err, EIO);
    CHECK_EQ(out.attempts, 1);
    drop_world(w);
}

/* Every target finds a control slot while another has many, and that one all but the last. */
static void control_slots_are_shared(void) {
    world *w = open_world(2, &plain);
    uint32_t slots[4];
    for (int i = 0; i < 3; i++) {
        slots[i] = fo_machine_take_control(&w->m, w->ids[0]);
        CHECK(slots[i] != FO_NIL);
    }
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[0]), FO_NIL);
    slots[3] = fo_machine_take_control(&w->m, w->ids[1]);
    CHECK(slots[3] != FO_NIL);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[1]), FO_NIL);
    fo_machine_collect(&w->m, slots[0]);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[0]), FO_NIL);
    fo_machine_collect(&w->m, slots[1]);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[0]), slots[1]);
    drop_world(w);
}

/* Requests that hang on several targets have every control slot.  Each other target gets one all the same, out of what hung targets may
 * cost, as long as streams keep theirs; and what is lent counts as lost. */
static void control_slots_beside_hung_targets(void) {
    world *w = open_world(5, &plain);
    uint32_t lent[2], lost;
    for (int i = 0; i < 3; i++) {
        CHECK(fo_machine_take_control(&w->m, w->ids[0]) != FO_NIL);
    }
    CHECK(fo_machine_take_control(&w->m, w->ids[1]) != FO_NIL);
    lent[0] = fo_machine_take_control(&w->m, w->ids[2]);
    REQUIRE(lent[0] != FO_NIL);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[2]), FO_NIL);
    lent[1] = fo_machine_take_control(&w->m, w->ids[3]);
    REQUIRE(lent[1] != FO_NIL);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[4]), FO_NIL); /* the reserve is two */
    fo_machine_check(&w->m);
    lost = w->m.free_head; /* one more is: the lag pays */
    w->m.free_head = w->m.slots[lost].next;
    w->m.in_state[FO_SLOT_FREE]--;
    w->m.in_state[FO_SLOT_QUARANTINED]++;
    for (uint32_t i = 0; i < 2 + w->m.lag_limit - 1; i++) {
        CHECK(fo_machine_take(&w->m, w->flow) != FO_NIL);
    }
    CHECK_EQ(fo_machine_take(&w->m, w->flow), FO_NIL);
    fo_machine_collect(&w->m, lent[0]);
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[4]), FO_NIL);
    CHECK(fo_machine_take(&w->m, w->flow) != FO_NIL);
    fo_machine_collect(&w->m, lent[1]);
    CHECK(fo_machine_take_control(&w->m, w->ids[4]) != FO_NIL);
    drop_world(w);
}

/* When the process has not run for an hour, what is in flight and what waits to be tried again have their time before them, and no
 * target is slower for it. */
static void time_that_nobody_saw(void) {
    static const fo_open o = {.soft_ns = 50 * MS, .hard_ns = 100 * MS, .size = 1};
    world *w = open_world(2, &o);
    uint64_t rate;
    uint16_t opening;
    uint32_t at;
    fo_event ev;
    put(w, w->flow, 0);
    step(w);
    CHECK_EQ(w->made, 2);
    w->now += MS;
    answer(w, 0, SLOT);
    put(w, w->flow, SLOT);
    step(w);
    CHECK_EQ(w->made, 3);
    at = w->out[0].target == w->ids[0] ? 0 : 1;
    answer(w, at, -EAGAIN);
    rate = fo_machine_target_rate(&w->m, w->ids[1]);
    REQUIRE(fo_machine_target_new(&w->m, &opening) == 0);
    w->now += 3600000 * MS;
    fo_machine_resume(&w->m, w->now);
    fo_machine_check(&w->m);
    CHECK_EQ(fo_machine_deadline(&w->m) <= w->now, 1); /* the try */
    step(w);
    CHECK_EQ(w->m.event_count, 0);
    CHECK_EQ(w->m.targets[opening].check_ns == FO_FOREVER, 1);
    CHECK(fo_machine_target_rate(&w->m, w->ids[1]) >= rate);
    w->now += 60 * MS;
    step(w);
    CHECK_EQ(fo_machine_events(&w->m, &ev, 1), 1);
    CHECK_EQ(ev.kind, FO_EVENT_SLOW);
    w->now += 60 * MS;
    step(w);
    CHECK_EQ(w->m.targets[w->ids[0]].state, FO_TARGET_DETACHED);
    CHECK_EQ(w->m.targets[w->ids[1]].state, FO_TARGET_DETACHED);
    drop_world(w);
}

/* A deadline of for ever is none: the number of tries is a bound all the same. */
static void tries_are_bounded(void) {
    static const fo_open patient = {.soft_ns = UINT64_MAX, .hard_ns = UINT64_MAX, .patience_ns = UINT64_MAX, .size = 1};
    world *w = open_world(1, &patient);
    uint32_t tries = 0;
    fo_event ev;
    put(w, w->flow, 0);
    step(w);
    while (w->made != 0 && tries < 3 * FO_MAX_RETRIES) {
        answer(w, 0, -EAGAIN);
        w->now += 1000 * MS;
        step(w);
        tries++;
    }
    CHECK_EQ(tries, FO_MAX_RETRIES + 1);
    CHECK_EQ(fo_machine_events(&w->m, &ev, 1), 1);
    CHECK_EQ(ev.err, EAGAIN);
    drop_world(w);
}

/* The end of time is no deadline of anybody. */
static void the_end_of_time(void) {
    static const fo_open patient = {.soft_ns = UINT64_MAX, .hard_ns = UINT64_MAX, .patience_ns = UINT64_MAX, .size = 1};
    world *w = open_world(1, &patient);
    uint16_t opening;
    put(w, w->flow, 0);
    step(w);
    REQUIRE(fo_machine_target_new(&w->m, &opening) == 0);
    w->now = UINT64_MAX;
    step(w);
    CHECK_EQ(w->m.event_count, 0);
    CHECK_EQ(w->m.targets[w->ids[0]].state, FO_TARGET_ACTIVE);
    drop_world(w);
}

/* A soft deadline that is later than the hard one never comes. */
static void soft_after_hard(void) {
    static const fo_open odd = {.soft_ns = 500 * MS, .hard_ns = 100 * MS, .size = 1};
    world *w = open_world(1, &odd);
    put(w, w->flow, 0);
    step(w);
    w->now += 50 * MS;
    w->m.targets[w->ids[0]].check_ns = w->now; /* looked at for another's sake */
    step(w);
    CHECK_EQ(fo_machine_deadline(&w->m), w->now + 50 * MS);
    w->now += 50 * MS;
    step(w);
    CHECK_EQ(w->m.targets[w->ids[0]].state, FO_TARGET_DETACHED);
    drop_world(w);
}

/* What does not fit into the caller's array waits for the next step, of every kind. */
static void no_room_for_submissions(void) {
    world *w = open_world(1, &plain);
    (void)request(w, FO_OP_READ, 4096);
    put(w, w->flow, 0);
    step_with_room(w, NULL, 0, 0);
    CHECK(w->made == 0 && w->m.want_step);
    step_with_room(w, NULL, 0, 1);
    CHECK(w->made == 1 && w->out[0].kind == FO_OP_READ && w->m.want_step);
    step_with_room(w, NULL, 0, 1);
    CHECK(w->made == 2 && w->out[1].kind == FO_OP_WRITE);
    answer(w, 1, -EAGAIN);
    w->now += 10 * MS;
    step_with_room(w, NULL, 0, 0);
    CHECK(w->made == 1 && w->m.want_step);
    step(w);
    CHECK_EQ(w->made, 2);
    drop_world(w);
}

/* Behind the end of a disk nothing is submitted, also where the sum of offset and length would wrap. */
static void behind_the_end(void) {
    world *w = open_world(1, &plain);
    fo_event ev;
    w->m.targets[w->ids[0]].capacity = 4096; /* less than one write */
    put(w, w->flow, 0);
    step(w);
    CHECK_EQ(w->made, 0);
    CHECK_EQ(fo_machine_events(&w->m, &ev, 1), 1);
    CHECK_EQ(ev.err, ENOSPC);
    drop_world(w);
}

/* ---- legs ---- */

/* Two streams wait for a retry on one target; one is aborted, and the other's wait goes on. */
static void a_neighbour_is_aborted(void) {
    world *w = open_world(2, &plain);
    uint32_t other;
    fo_event ev[8];
    uint32_t n;
    REQUIRE(fo_machine_stream_open(&w->m, w->ids, 2, &other) == 0);
    put(w, w->flow, 0);
    put(w, other, SLOT);
    step(w);
    CHECK_EQ(w->made, 4);
    answer(w, 0, -EAGAIN);
    answer(w, 0, 4096); /* partial: it goes on at once */
    while (w->made > 2) {
        answer(w, 0, -EAGAIN);
    }
    while (w->made != 0) {
        answer(w, 0, -EAGAIN);
    }
    put(w, w->flow, 4 * SLOT);
    put(w, other, 5 * SLOT);
    fo_machine_abort(&w->m, other);
    n = fo_machine_events(&w->m, ev, 8);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(ev[i].stream == w->m.flows[other].id);
    }
    CHECK_EQ(w->m.flows[w->flow].legs[0].waiting, 1);
    CHECK_EQ(w->m.flows[w->flow].legs[0].queued, 1);
    CHECK_EQ(w->m.flows[other].legs[0].waiting + w->m.flows[other].legs[0].queued, 0);
    drop_world(w);
}

/* A part was written and the rest waits its turn when the stream is aborted: that is a short write, without an errno. */
static void aborted_between_two_parts(void) {
    world *w = open_world(1, &plain);
    fo_completion c;
    fo_event ev;
    put(w, w->flow, 0);
    step(w);
    c = (fo_completion){w->out[0].token, 4096};
    w->made = 0;
    step_with_room(w, &c, 1, 0); /* no room: the rest stays where it is */
    CHECK_EQ(w->m.flows[w->flow].legs[0].waiting, 1);
    fo_machine_abort(&w->m, w->flow);
    CHECK_EQ(fo_machine_events(&w->m, &ev, 1), 1);
    CHECK_EQ(ev.outcome, FO_OUTCOME_SHORT);
    CHECK_EQ(ev.err, 0);
    drop_world(w);
}

/* Ejected from one of two streams: the other's writes in flight there are no strays. */
static void ejected_from_one_stream(void) {
    world *w = open_world(2, &plain);
    uint32_t other;
    REQUIRE(fo_machine_stream_open(&w->m, w->ids, 2, &other) == 0);
    put(w, w->flow, 0);
    put(w, other, SLOT);
    (void)request(w, FO_OP_READ, 4096);
    step(w);
    CHECK_EQ(fo_machine_eject(&w->m, other, w->ids[0]), 0);
    CHECK_EQ(w->m.slots[w->m.ops[w->m.targets[w->ids[0]].inflight.head].slot].strays, 0);
    fo_machine_check(&w->m);
    drop_world(w);
}

/* All legs are gone when the slot is full: it goes back. */
static void nobody_to_publish_to(void) {
    world *w = open_world(1, &plain);
    uint32_t slot = fo_machine_take(&w->m, w->flow);
    CHECK_EQ(fo_machine_eject(&w->m, w->flow, w->ids[0]), 0);
    fo_machine_publish(&w->m, w->flow, slot, 0, SLOT);
    CHECK_EQ(w->m.in_state[FO_SLOT_FREE], 16);
    drop_world(w);
}

/* Faults that were never submitted are told as one while they touch and are alike; another errno is another fault. */
static void faults_that_touch(void) {
    world *w = open_world(1, &plain);
    fo_outcome out = {.code = FO_OUTCOME_NOT_SUBMITTED, .phase = FO_OP_WRITE, .length = SLOT, .err = ECANCELED};
    const fo_op *op;
    put(w, w->flow, 0);
    step(w);
    op = &w->m.ops[fo_token_index(w->out[0].token)];
    fo_event_op(&w->m, FO_EVENT_FAULT, op, &out);
    out.offset = SLOT;
    fo_event_op(&w->m, FO_EVENT_FAULT, op, &out);
    CHECK_EQ(w->m.event_count, 1);
    out.offset = 2 * SLOT;
    out.err = EIO;
    fo_event_op(&w->m, FO_EVENT_FAULT, op, &out);
    CHECK_EQ(w->m.event_count, 2);
    (void)request(w, FO_OP_READ, 4096);
    step(w);
    op = &w->m.ops[fo_token_index(w->out[1].token)]; /* requests are told one by one: each has its caller */
    fo_event_op(&w->m, FO_EVENT_FAULT, op, &out);
    out.offset = 3 * SLOT;
    fo_event_op(&w->m, FO_EVENT_FAULT, op, &out);
    CHECK_EQ(w->m.event_count, 4);
    drop_world(w);
}

/* The number of a stream never is 0, which means that an event belongs to none. */
static void stream_numbers_wrap(void) {
    world *w = open_world(1, &plain);
    uint32_t flow;
    w->m.next_id = UINT32_MAX;
    REQUIRE(fo_machine_stream_open(&w->m, w->ids, 1, &flow) == 0);
    CHECK_EQ(w->m.flows[flow].id, 1);
    drop_world(w);
}

/* ---- admission ---- */

/* Streams that wait for a flush hold a record and no slot: their number is bounded, too. */
static void records_run_out(void) {
    world *w = open_world(1, &plain);
    uint32_t flow, n = 1;
    int rc = 0;
    put(w, w->flow, 0);
    step(w);
    fo_machine_seal(&w->m, w->flow);
    answer(w, 0, SLOT);
    while ((rc = fo_machine_stream_open(&w->m, w->ids, 1, &flow)) == 0 && n < 100) {
        fo_machine_seal(&w->m, flow);
        n++;
    }
    CHECK_EQ(rc, -EAGAIN);
    CHECK_EQ(n, w->m.flow_count);
    CHECK_EQ(w->m.admitted, 0);
    drop_world(w);
}

/* More is lost than was set aside: no slot is left for a stream, a request, or a second stream. */
static void all_slots_lost(void) {
    world *w = open_world(1, &plain);
    uint32_t flow, lost = 0;
    while (w->m.in_state[FO_SLOT_FREE] > 0) { /* as if each belonged to a target that hangs */
        w->m.free_head = w->m.slots[w->m.free_head].next;
        w->m.in_state[FO_SLOT_FREE]--;
        w->m.in_state[FO_SLOT_QUARANTINED]++;
        lost++;
        if (w->m.in_state[FO_SLOT_FREE] == 1) {
            CHECK_EQ(fo_machine_stream_open(&w->m, w->ids, 1, &flow), -EAGAIN);
        }
    }
    CHECK_EQ(lost, 16);
    CHECK(!fo_machine_may_take(&w->m, w->flow));
    CHECK_EQ(fo_machine_take_control(&w->m, w->ids[0]), FO_NIL);
    drop_world(w);
}

/* ---- targets ---- */

/* Its opener has gone: before the open was submitted, while it is under way, and after. */
static void abandoned_while_it_opens(void) {
    for (int when = 0; when < 3; when++) {
        world *w = open_world(0, NULL);
        uint16_t id;
        REQUIRE(fo_machine_target_new(&w->m, &id) == 0);
        fo_machine_life(&w->m, id, FO_OP_OPEN, 0, 0);
        if (when > 0) {
            step(w);
        }
        if (when > 1) {
            answer(w, 0, 0);
        }
        fo_machine_target_abandon(&w->m, id);
        step(w);
        CHECK_EQ(w->made, 1);
        if (when == 1) { /* the open that was under way; then it closes itself */
            CHECK_EQ(w->out[0].kind, FO_OP_OPEN);
            answer(w, 0, 0);
        }
        CHECK_EQ(w->out[0].kind, FO_OP_CLOSE);
        answer(w, 0, 0);
        CHECK_EQ(w->m.targets[id].state, FO_TARGET_NONE);
        drop_world(w);
    }
}

/* It closes itself when nothing is left of any kind, and no stream uses it. */
static void closes_itself_last(void) {
    world *w = open_world(1, &plain);
    uint16_t id = w->ids[0];
    uint32_t read, flush, write;
    put(w, w->flow, 0);
    CHECK(!fo_machine_target_idle(&w->m, id)); /* a write is queued */
    step(w);
    answer(w, 0, SLOT);
    read = request(w, FO_OP_READ, 4096);
    CHECK(!fo_machine_target_idle(&w->m, id)); /* a request is queued */
    step(w);
    CHECK(!fo_machine_target_idle(&w->m, id)); /* or in flight */
    answer(w, 0, 4096);
    fo_machine_collect(&w->m, read);
    flush = request(w, FO_OP_FLUSH, 0);
    CHECK(!fo_machine_target_idle(&w->m, id)); /* somebody waits for a flush */
    step(w);
    answer(w, 0, 0);
    fo_machine_collect(&w->m, flush);
    write = request(w, FO_OP_WRITE, 4096);
    step(w);
    answer(w, 0, -EAGAIN);
    CHECK(!fo_machine_target_idle(&w->m, id)); /* a retry */
    w->now += 10 * MS;
    step(w);
    answer(w, 0, 4096);
    fo_machine_collect(&w->m, write);
    CHECK(fo_machine_target_idle(&w->m, id));
    fo_machine_target_abandon(&w->m, id);
    step(w);
    CHECK_EQ(w->made, 0); /* the stream uses it */
    w->m.want_step = false;
    fo_machine_stream_close(&w->m, w->flow);
    CHECK(w->m.want_step);
    step(w);
    CHECK_EQ(w->out[0].kind, FO_OP_CLOSE);
    CHECK_EQ(fo_machine_target_idle(&w->m, id), 0);
    drop_world(w);
}

/* Also after a failed flush. */
static void failed_target_closes_itself(void) {
    world *w = open_world(1, &plain);
    uint32_t flush = request(w, FO_OP_FLUSH, 0);
    step(w);
    answer(w, 0, -EIO);
    CHECK_EQ(take_outcome(w, flush).err, EIO);
    fo_machine_stream_close(&w->m, w->flow);
    fo_machine_target_abandon(&w->m, w->ids[0]);
    step(w);
    CHECK_EQ(w->out[0].kind, FO_OP_CLOSE);
    drop_world(w);
}

/* The allocation ahead hangs with everything else: nobody is told of it by name. */
static void allocation_hangs(void) {
    static const fo_open growing = {.flags = FO_OPEN_REPLACE, .soft_ns = 500 * MS, .hard_ns = 200 * MS};
    world *w = open_world(1, &growing);
    fo_event ev[4];
    uint32_t n;
    put(w, w->flow, 0);
    step(w);
    CHECK_EQ(w->made, 2);
    answer(w, w->out[0].kind == FO_OP_ALLOCATE ? 0 : 1, 0);
    put(w, w->flow, 100u << 20); /* beyond what is allocated: the second one is asked for later than the write */
    step(w);
    CHECK_EQ(w->made, 3);
    w->now += 200 * MS;
    step(w);
    n = fo_machine_events(&w->m, ev, 4);
    CHECK(n >= 1 && ev[0].kind == FO_EVENT_DETACHED);
    for (uint32_t i = 1; i < n; i++) {
        CHECK(ev[i].phase != FO_OP_ALLOCATE);
    }
    while (w->made != 0) {
        answer(w, 0, 0);
    }
    drop_world(w);
}

/* Requests and streams are refused where a target is not ACTIVE, whatever else it is. */
static void requests_elsewhere(void) {
    world *w = open_world(1, &plain);
    uint16_t opening;
    uint32_t ticket;
    fo_request r = {.kind = FO_OP_READ, .length = 4096};
    REQUIRE(fo_machine_target_new(&w->m, &opening) == 0);
    r.target = opening;
    ticket = fo_machine_take_control(&w->m, opening);
    fo_machine_request(&w->m, ticket, &r);
    CHECK_EQ(take_outcome(w, ticket).err, EBADF);
    w->m.targets[w->ids[0]].readonly = true;
    ticket = request(w, FO_OP_READ, 4096);
    step(w);
    CHECK_EQ(w->made, 1);
    answer(w, 0, 4096);
    CHECK_EQ(take_outcome(w, ticket).code, FO_OUTCOME_OK);
    drop_world(w);
}

/* ---- slowness ---- */

/* The shortest patience, one that overflows, and a clock that has not moved. */
static void patience_at_its_edges(void) {
    static const fo_open hasty = {.soft_ns = 10 * MS, .hard_ns = 1000 * MS, .patience_ns = 1, .size = 1};
    static const fo_open endless = {.soft_ns = 10 * MS, .hard_ns = 1000 * MS, .patience_ns = UINT64_MAX, .size = 1};
    for (int i = 0; i < 3; i++) { /* the last time at the end of time */
        world *w = open_world(2, i == 0 ? &hasty : &endless);
        uint16_t slow = w->ids[0];
        uint32_t at;
        w->now = i == 2 ? UINT64_MAX - 100 * MS : w->now;
        put(w, w->flow, 0);
        step(w);
        at = w->out[0].target == slow ? 1 : 0;
        answer(w, at, SLOT); /* the peer is through */
        CHECK_EQ(fo_machine_target_strikes(&w->m, slow, 0), 0);
        w->now += 10 * MS;
        for (int looks = 0; looks < 4; looks++) {
            step(w);
            w->now += 1;
        }
        CHECK_EQ(w->m.targets[slow].strikes, i == 0 ? FO_STRIKES : 1);
        CHECK_EQ(fo_machine_target_strikes(&w->m, slow, 0), w->m.targets[slow].strikes);
        CHECK(i == 0 || w->m.targets[slow].watch_ns - w->now > 50 * MS);
        drop_world(w);
    }
}

/* A laggard by age may have been the faster one: its pace is a number with an end. */
static void fast_and_late(void) {
    static const fo_open hasty = {.soft_ns = 10 * MS, .hard_ns = 1000 * MS, .patience_ns = 3, .size = 1};
    world *w = open_world(2, &hasty);
    uint16_t slow = w->ids[0];
    fo_event ev[8];
    uint32_t n, told = 0;
    w->m.targets[slow].pace_bytes = UINT32_MAX;
    put(w, w->flow, 0);
    step(w);
    w->now += 10 * MS;
    answer(w, w->out[0].target == slow ? 1 : 0, SLOT);
    w->m.targets[w->ids[1]].pace_bytes = 0; /* as if it had crept */
    for (int looks = 0; looks < 4; looks++) {
        step(w);
        w->now += 1;
    }
    n = fo_machine_events(&w->m, ev, 8);
    for (uint32_t i = 0; i < n; i++) {
        if (ev[i].kind == FO_EVENT_LAGGARD) {
            told++;
            CHECK_EQ(ev[i].pace, UINT16_MAX);
        }
    }
    CHECK_EQ(told, 1);
    drop_world(w);
}

/* Asking again and again for a slot is one reason to look, not many. */
static void starving_twice(void) {
    world *w = open_world(2, &plain);
    uint16_t slow = w->ids[0];
    uint32_t n = 0;
    while (fo_machine_may_take(&w->m, w->flow)) {
        put(w, w->flow, n++ * SLOT);
        step(w);
        for (uint32_t i = 0; i < w->made; i++) {
            if (w->out[i].target != slow) {
                answer(w, i, SLOT);
                i = UINT32_MAX; /* from the start */
            }
        }
    }
    CHECK_EQ(fo_machine_take(&w->m, w->flow), FO_NIL);
    CHECK(w->m.targets[slow].watch_wanted);
    w->m.want_step = false;
    CHECK_EQ(fo_machine_take(&w->m, w->flow), FO_NIL);
    CHECK(!w->m.want_step);
    drop_world(w);
}

/* Room for the events of a slot is taken with the slot: two streams that ask in turn are not promised the same. */
static void room_is_promised_once(void) {
    fo_open o = {0};
    world *w = open_world(2, &o);
    fo_machine *m = &w->m;
    uint32_t slot, cap = m->event_cap;
    m->event_cap = m->event_count + m->targets_open * FO_EVENTS_PER_TARGET + m->live_legs * FO_EVENTS_PER_LEG +
                   FO_MAX_LEGS * FO_EVENTS_PER_OP; /* as if all others were unread */
    CHECK(fo_machine_event_room(m, FO_MAX_LEGS, 0));
    slot = fo_machine_take(m, w->flow);
    CHECK(!fo_machine_event_room(m, 1, 0));
    fo_machine_check(m);
    fo_machine_publish(m, w->flow, slot, 0, SLOT);
    fo_machine_check(m);
    m->event_cap = cap;
    fo_machine_free(m);
    free(w);
}

/* So is that of a request, whose bytes are copied between the two. */
static void room_of_a_request_is_promised_once(void) {
    world *w = open_world(1, &plain);
    fo_machine *m = &w->m;
    fo_request r = {.target = w->ids[0], .kind = FO_OP_WRITE, .length = SLOT};
    uint32_t slot, cap = m->event_cap;
    m->event_cap = m->event_count + m->targets_open * FO_EVENTS_PER_TARGET + m->live_legs * FO_EVENTS_PER_LEG +
                   FO_EVENTS_PER_OP;
    CHECK(fo_machine_event_room(m, 1, 0));
    slot = fo_machine_take_control(m, w->ids[0]);
    CHECK(!fo_machine_event_room(m, 1, 0));
    fo_machine_check(m);
    fo_machine_request(m, slot, &r);
    fo_machine_check(m);
    step(w);
    CHECK(!fo_machine_event_room(m, 1, 0));
    answer(w, 0, SLOT);
    CHECK(fo_machine_event_room(m, 1, 0));
    fo_machine_collect(m, slot);
    r.offset = 1; /* refused: no operation comes of it */
    slot = fo_machine_take_control(m, w->ids[0]);
    fo_machine_request(m, slot, &r);
    fo_machine_collect(m, slot);
    CHECK(fo_machine_event_room(m, 1, 0));
    m->event_cap = cap;
    drop_world(w);
}

/* Let go while its flush waits for room among the submissions: that was never tried, and nothing fails for it a second time. */
static void let_go_before_its_flush(void) {
    world *w = open_world(1, &plain);
    fo_leg leg;
    uint32_t reading;
    put(w, w->flow, 0);
    step(w);
    answer(w, 0, SLOT);
    reading = request(w, FO_OP_READ, 4096);
    step(w);
    fo_machine_seal(&w->m, w->flow);
    step_with_room(w, NULL, 0, 0);
    CHECK_EQ(w->m.targets[w->ids[0]].control.count, 1);
    w->now += 200 * MS;
    step(w);
    CHECK_EQ(w->m.targets[w->ids[0]].state, FO_TARGET_DETACHED);
    CHECK_EQ(take_outcome(w, reading).code, FO_OUTCOME_TIMED_OUT);
    fo_machine_leg(&w->m, w->flow, 0, &leg);
    CHECK_EQ(leg.first.code, FO_OUTCOME_DETACHED);
    CHECK_EQ(leg.first.phase, FO_OP_FLUSH);
    CHECK_EQ(w->m.targets[w->ids[0]].flush_issued, 0);
    drop_world(w);
}

/* Each of its parts is late.  Told each time it would take more of the ring than an operation has there (invariant 7). */
static void late_in_every_part(void) {
    world *w = open_world(1, &plain);
    fo_event events[64];
    uint32_t n, told = 0;
    put(w, w->flow, 0);
    step(w);
    for (uint32_t part = 0; part <= FO_MAX_RESUMES; part++) {
        w->now += 60 * MS;
        step(w);
        CHECK_EQ(w->m.targets[w->ids[0]].judged_ns, w->now); /* it is looked at as often as it is late */
        answer(w, 0, 4096);
    }
    n = fo_machine_events(&w->m, events, 64);
    for (uint32_t i = 0; i < n; i++) {
        told += events[i].kind == FO_EVENT_SLOW ? 1 : 0;
    }
    CHECK_EQ(told, 1);
    CHECK_EQ(n, 2);
    CHECK_EQ(events[n - 1].outcome, FO_OUTCOME_SHORT);
    drop_world(w);
}

/* To the kernel an offset of -1 is wherever the file stands. */
static void behind_every_file(void) {
    world *w = open_world(1, &plain);
    fo_request r = {.target = w->ids[0], .kind = FO_OP_WRITE, .length = 1, .offset = UINT64_MAX};
    uint32_t slot = fo_machine_take_control(&w->m, w->ids[0]);
    w->m.targets[w->ids[0]].granule = 1;
    fo_machine_request(&w->m, slot, &r);
    step(w);
    CHECK_EQ(w->made, 0);
    CHECK_EQ(take_outcome(w, slot).err, EINVAL);
    drop_world(w);
}

int main(void) {
    RUN(bounds_of_the_configuration);
    RUN(too_many_bytes);
    RUN(partial_reads);
    RUN(retries_on_a_closed_target);
    RUN(seen_before_the_target_closed);
    RUN(control_slots_are_shared);
    RUN(control_slots_beside_hung_targets);
    RUN(time_that_nobody_saw);
    RUN(tries_are_bounded);
    RUN(the_end_of_time);
    RUN(soft_after_hard);
    RUN(no_room_for_submissions);
    RUN(behind_the_end);
    RUN(a_neighbour_is_aborted);
    RUN(aborted_between_two_parts);
    RUN(ejected_from_one_stream);
    RUN(nobody_to_publish_to);
    RUN(faults_that_touch);
    RUN(stream_numbers_wrap);
    RUN(records_run_out);
    RUN(all_slots_lost);
    RUN(abandoned_while_it_opens);
    RUN(closes_itself_last);
    RUN(failed_target_closes_itself);
    RUN(allocation_hangs);
    RUN(requests_elsewhere);
    RUN(patience_at_its_edges);
    RUN(fast_and_late);
    RUN(starving_twice);
    RUN(room_is_promised_once);
    RUN(room_of_a_request_is_promised_once);
    RUN(let_go_before_its_flush);
    RUN(late_in_every_part);
    RUN(behind_every_file);
    return test_end();
}
