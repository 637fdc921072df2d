/*
 * test_step.c: the state machine alone, without any I/O: a random world that tries to break its invariants, and single cases
 * that pin down a rule each.
 *
 * The world keeps its own books.  A slot gets a new epoch whenever it is taken; every completion, late ones included, has to
 * find the epoch that it was submitted with, or a device could have been given another client's bytes.
 */
#include "../fo_step_parts.h"
#include "testing.h"

#define MS 1000000ull
#define WORLD_TARGETS 5u

typedef struct flight {
    fo_submission s;
    uint64_t epoch;
    bool never;
} flight;

typedef struct world {
    fo_machine m;
    bool hurried;
    uint64_t now, random;
    flight flights[8192];
    uint32_t flight_count;
    uint64_t epoch[64];
    uint32_t flows[16], filling[16], flow_count;
    uint64_t position[16];
    uint32_t controls[64], control_count;
    uint64_t errors_injected, errors_seen, late_expected, late_seen, events, detached, laggards, ejected;
} world;

static uint64_t below(world *w, uint64_t n) { return test_random(&w->random) % n; }

static void step(world *w, const fo_completion *c, uint32_t n) {
    fo_submission out[16]; /* small, so that the step has to be called again; in random worlds sometimes later */
    uint32_t made, room;
    do {
        room = !w->hurried || below(w, 8) != 0 ? 16 : (uint32_t)below(w, 3);
        fo_step(&w->m, w->now, c, n, out, room, &made);
        for (uint32_t i = 0; i < made; i++) {
            flight *f = &w->flights[w->flight_count++];
            REQUIRE(w->flight_count < 8192);
            f->s = out[i];
            f->never = below(w, 60) == 0;
            f->epoch = out[i].slot != FO_NIL ? w->epoch[out[i].slot] : 0;
        }
        n = 0;
    } while (w->m.want_step && (!w->hurried || below(w, 8) != 0));
    fo_machine_check(&w->m);
}

static void read_events(world *w) {
    fo_event ev[64];
    uint32_t n;
    while ((n = fo_machine_events(&w->m, ev, 64)) != 0) {
        for (uint32_t i = 0; i < n; i++) {
            w->events++;
            CHECK_EQ(ev[i].seq, w->events); /* none lost, none twice */
            CHECK_EQ(ev[i].version, FO_VERSION);
            w->errors_seen += ev[i].kind == FO_EVENT_FAULT && ev[i].outcome == FO_OUTCOME_ERROR && ev[i].err == EIO;
            w->late_seen += ev[i].kind == FO_EVENT_LATE;
            w->detached += ev[i].kind == FO_EVENT_DETACHED;
            w->laggards += ev[i].kind == FO_EVENT_LAGGARD;
            w->ejected += ev[i].kind == FO_EVENT_EJECTED && ev[i].outcome == FO_OUTCOME_SLOW;
        }
    }
}

static int64_t random_result(world *w, const flight *f) {
    static const int transient[] = {EAGAIN, EINTR, ENOMEM, EBUSY};
    bool data = f->s.kind == FO_OP_WRITE || f->s.kind == FO_OP_READ;
    switch (below(w, 40)) {
    case 0:
        return f->s.kind == FO_OP_CLOSE ? 0 : -EIO;
    case 1:
        return data ? -transient[below(w, 4)] : 0;
    case 2:
        return data ? (int64_t)below(w, f->s.length) + 1 : 0;
    case 3:
        return data && f->s.kind == FO_OP_WRITE ? 0 : (int64_t)(data ? f->s.length : 0);
    default:
        return data ? (int64_t)f->s.length : 0;
    }
}

static void complete_one(world *w, uint32_t index) {
    flight f = w->flights[index];
    const fo_op *op = &w->m.ops[fo_token_index(f.s.token)];
    fo_completion c = {f.s.token, random_result(w, &f)};
    bool orphan = op->state == FO_OP_ORPHAN;
    w->flights[index] = w->flights[--w->flight_count];
    if (f.s.slot != FO_NIL) {
        CHECK_EQ(w->epoch[f.s.slot], f.epoch); /* the slot still holds what was submitted */
    }
    w->late_expected += orphan;
    if (!orphan && op->owner != FO_OWNER_AHEAD &&
        (c.result == -EIO || (c.result == 0 && f.s.kind == FO_OP_WRITE && f.s.slot != FO_NIL))) {
        w->errors_injected++;
    }
    step(w, &c, 1);
    step(w, &c, 1); /* twice the same completion: the second one is a stray (invariant 9) */
}

static void open_target(world *w) {
    fo_geometry g = {.granule = 4096, .depth = (uint32_t)below(w, 6) + 1, .size = 1 << 30, .is_block = below(w, 3) == 0};
    fo_open o = {.soft_ns = 50 * MS,
                 .hard_ns = 200 * MS,
                 .patience_ns = 30 * MS,
                 .on_slow = (uint32_t)below(w, 2),
                 .size = below(w, 2) != 0 ? 1 << 20 : 0};
    uint16_t id;
    if (w->m.targets_open >= WORLD_TARGETS || fo_machine_target_new(&w->m, &id) != 0) {
        return;
    }
    if (below(w, 4) != 0) {
        fo_machine_target_ready(&w->m, id, &g, &o);
        return;
    }
    fo_machine_life(&w->m, id, FO_OP_OPEN, 0, 0); /* and nobody waits for it */
    if (below(w, 2) != 0) {
        step(w, NULL, 0);
    }
    fo_machine_target_abandon(&w->m, id);
}

static uint16_t any_target(world *w) {
    for (int tries = 0; tries < 64; tries++) {
        uint16_t id = (uint16_t)below(w, FO_MAX_TARGETS);
        if (w->m.targets[id].state != FO_TARGET_NONE) {
            return id;
        }
    }
    return UINT16_MAX;
}

static void open_flow(world *w) {
    uint16_t ids[WORLD_TARGETS];
    uint32_t n = 0;
    for (uint16_t i = 0; i < FO_MAX_TARGETS && n < WORLD_TARGETS; i++) {
        if (w->m.targets[i].state == FO_TARGET_ACTIVE && below(w, 3) != 0) {
            ids[n++] = i;
        }
    }
    if (w->flow_count < 16 && n != 0 && fo_machine_stream_open(&w->m, ids, n, &w->flows[w->flow_count]) == 0) {
        uint64_t base[WORLD_TARGETS] = {0};
        for (uint32_t i = 0; i < n; i++) {
            base[i] = below(w, 1000) * 4096 * 256;
        }
        fo_machine_place(&w->m, w->flows[w->flow_count], base);
        fo_machine_keep(&w->m, w->flows[w->flow_count], (uint32_t)below(w, 1u << n));
        w->position[w->flow_count] = 0;
        w->filling[w->flow_count++] = FO_NIL;
    }
}

static void publish(world *w, uint32_t i) {
    uint64_t length = (below(w, 16) + 1) * 4096;
    const fo_flow *f = &w->m.flows[w->flows[i]];
    if (f->sealed || f->aborted || !fo_machine_flow_alive(&w->m, w->flows[i]) ||
        !fo_machine_event_room(&w->m, FO_MAX_LEGS, 0)) {
        return;
    }
    if (w->filling[i] == FO_NIL) {
        w->filling[i] = fo_machine_take(&w->m, w->flows[i]);
        if (w->filling[i] == FO_NIL) {
            uint32_t lost = w->m.in_state[FO_SLOT_QUARANTINED] + w->m.in_state[FO_SLOT_STRANDED];
            CHECK(f->held >= 2 || lost > w->m.cfg.quarantine_slots); /* invariant 8 */
            return;
        }
        w->epoch[w->filling[i]]++;
    }
    fo_machine_publish(&w->m, w->flows[i], w->filling[i], w->position[i], length);
    w->filling[i] = FO_NIL;
    w->position[i] += length;
}

static void close_flow(world *w, uint32_t i) {
    if (w->filling[i] != FO_NIL) {
        fo_machine_give_back(&w->m, w->filling[i]);
    }
    fo_machine_stream_close(&w->m, w->flows[i]);
    w->flows[i] = w->flows[--w->flow_count];
    w->filling[i] = w->filling[w->flow_count];
    w->position[i] = w->position[w->flow_count];
}

static void request(world *w) {
    static const uint8_t kinds[] = {FO_OP_READ, FO_OP_WRITE, FO_OP_FLUSH, FO_OP_TRUNCATE};
    fo_request r = {.target = any_target(w), .kind = kinds[below(w, 4)], .offset = below(w, 100) * 4096, .length = 4096};
    uint32_t slot = fo_machine_event_room(&w->m, 1, 0) ? fo_machine_take_control(&w->m, r.target) : FO_NIL;
    if (slot != FO_NIL) {
        w->epoch[slot]++;
        fo_machine_request(&w->m, slot, &r);
        w->controls[w->control_count++] = slot;
    }
}

static void collect(world *w) {
    for (uint32_t i = 0; i < w->control_count; i++) {
        if (w->m.tickets[w->controls[i]].done) {
            fo_machine_collect(&w->m, w->controls[i]);
            w->controls[i--] = w->controls[--w->control_count];
        }
    }
}

static void close_a_target(world *w) {
    uint16_t id = any_target(w);
    const fo_target *t;
    if (id == UINT16_MAX) {
        return;
    }
    if (below(w, 8) == 0) { /* its owner has forgotten it */
        fo_machine_target_abandon(&w->m, id);
        return;
    }
    if (fo_machine_target_used(&w->m, id)) {
        return;
    }
    t = &w->m.targets[id];
    if (t->state == FO_TARGET_DETACHED) {
        fo_machine_target_abandon(&w->m, id);
    } else if (t->state != FO_TARGET_CLOSING && fo_machine_target_idle(&w->m, id)) {
        fo_machine_life(&w->m, id, FO_OP_CLOSE, 0, 0);
    }
}

static void act(world *w) {
    uint32_t i = w->flow_count != 0 ? (uint32_t)below(w, w->flow_count) : FO_NIL;
    switch (below(w, 24)) {
    case 0:
        open_target(w);
        break;
    case 1:
        open_flow(w);
        break;
    case 2:
        if (i != FO_NIL && below(w, 4) == 0) {
            fo_machine_seal(&w->m, w->flows[i]);
        }
        break;
    case 3:
        if (i != FO_NIL && below(w, 8) == 0) {
            fo_machine_abort(&w->m, w->flows[i]);
        }
        break;
    case 4:
        if (i != FO_NIL && below(w, 8) == 0) {
            (void)fo_machine_eject(&w->m, w->flows[i], w->m.flows[w->flows[i]].legs[0].target);
        }
        break;
    case 5:
        if (i != FO_NIL && below(w, 3) == 0) {
            close_flow(w, i);
        }
        break;
    case 6:
        request(w);
        break;
    case 7:
        close_a_target(w);
        break;
    case 8:
        w->now += below(w, 20) * MS; /* operations marked `never` reach their deadlines this way */
        break;
    case 9:
        if (below(w, 3) == 0) {
            read_events(w);
        }
        break;
    case 10:
        if (i != FO_NIL && w->filling[i] == FO_NIL && !w->m.flows[w->flows[i]].sealed &&
            !w->m.flows[w->flows[i]].aborted) { /* a client that stalls with a slot in its hands */
            w->filling[i] = fo_machine_take(&w->m, w->flows[i]);
            if (w->filling[i] != FO_NIL) {
                w->epoch[w->filling[i]]++;
            }
        }
        break;
    default:
        if (i != FO_NIL && below(w, 2) == 0) {
            publish(w, i);
        } else if (w->flight_count != 0) {
            uint32_t k = (uint32_t)below(w, w->flight_count);
            const fo_op *op = &w->m.ops[fo_token_index(w->flights[k].s.token)];
            if (!w->flights[k].never || (op->state == FO_OP_ORPHAN && below(w, 5) == 0)) {
                complete_one(w, k);
            }
        }
    }
    collect(w);
    step(w, NULL, 0);
}

/* Everything ends: nothing may be left over. */
static void wind_down(world *w) {
    while (w->flow_count != 0) {
        close_flow(w, 0);
    }
    for (int rounds = 0; rounds < 4000 && (w->flight_count != 0 || w->m.targets_open != 0); rounds++) {
        for (uint16_t id = 0; id < FO_MAX_TARGETS; id++) {
            const fo_target *t = &w->m.targets[id];
            if (t->state == FO_TARGET_DETACHED && !t->close_wanted) {
                fo_machine_target_abandon(&w->m, id);
            } else if ((t->state == FO_TARGET_ACTIVE || t->state == FO_TARGET_FAILED) &&
                       fo_machine_target_idle(&w->m, id)) {
                fo_machine_life(&w->m, id, FO_OP_CLOSE, 0, 0);
            }
        }
        w->now += 10 * MS;
        step(w, NULL, 0);
        read_events(w);
        if (w->flight_count != 0) {
            complete_one(w, (uint32_t)below(w, w->flight_count));
        }
        collect(w);
    }
    read_events(w);
    CHECK_EQ(w->flight_count, 0);
    CHECK_EQ(w->m.targets_open, 0);
    CHECK_EQ(w->m.flows_open, 0);
    CHECK_EQ(w->control_count, 0);
    CHECK_EQ(w->m.in_state[FO_SLOT_FREE], w->m.cfg.slot_count);
    CHECK_EQ(w->m.live_ops, 0);
    CHECK_EQ(w->m.event_count, 0);
    CHECK_EQ(w->late_seen, w->late_expected);
    CHECK_EQ(w->errors_seen, w->errors_injected); /* every fault once */
}

static fo_config small_config(void) {
    fo_config cfg;
    fo_config_init(&cfg);
    cfg.slot_size = 65536;
    cfg.slot_count = 28;
    cfg.max_streams = 4;
    cfg.control_slots = 3;
    cfg.quarantine_slots = 8;
    return cfg;
}

static uint64_t covered[7]; /* a random test that reaches nothing proves nothing */

static void random_world(uint64_t seed) {
    world *w = calloc(1, sizeof *w);
    fo_config cfg = small_config();
    char reason[160];
    int before = test_failures;
    REQUIRE(w != NULL);
    w->random = seed;
    w->hurried = true;
    w->now = 1000 * MS;
    REQUIRE(fo_machine_init(&w->m, &cfg, reason) == 0);
    for (int i = 0; i < 4000; i++) {
        act(w);
    }
    wind_down(w);
    covered[0] += w->m.completions;
    covered[1] += w->late_seen;
    covered[2] += w->errors_seen;
    covered[3] += w->m.retries;
    covered[4] += w->detached;
    covered[5] += w->laggards;
    covered[6] += w->ejected;
    if (test_failures != before) {
        printf("  seed %llu\n", (unsigned long long)seed);
    }
    fo_machine_free(&w->m);
    free(w);
}

static void random_worlds(void) {
    const char *fixed = getenv("FO_SEED");
    uint64_t first = fixed != NULL ? strtoull(fixed, NULL, 10) : (uint64_t)getpid() * 1000;
    uint64_t count = fixed != NULL ? 1 : 40;
    printf("  seeds %llu..%llu (FO_SEED repeats one)\n", (unsigned long long)first,
           (unsigned long long)(first + count - 1));
    (void)fflush(stdout); /* an assertion would take it along */
    for (uint64_t i = 0; i < count; i++) {
        random_world(first + i);
    }
    if (fixed == NULL) {
        printf("  %llu completions, %llu late, %llu errors, %llu retries, %llu detached, %llu laggards, %llu ejected\n",
               (unsigned long long)covered[0], (unsigned long long)covered[1], (unsigned long long)covered[2],
               (unsigned long long)covered[3], (unsigned long long)covered[4], (unsigned long long)covered[5],
               (unsigned long long)covered[6]);
        for (int i = 0; i < 7; i++) {
            CHECK(covered[i] > (i < 5 ? 100u : 10u));
        }
    }
}

/* ---- single rules ---- */

static world *one_target_world(uint32_t targets, uint32_t *flow, uint16_t *ids) {
    world *w = calloc(1, sizeof *w);
    fo_config cfg = small_config();
    char reason[160];
    REQUIRE(w != NULL && fo_machine_init(&w->m, &cfg, reason) == 0);
    w->now = 1000 * MS;
    w->random = 1;
    for (uint32_t i = 0; i < targets; i++) {
        fo_geometry g = {.granule = 4096, .depth = 4};
        fo_open o = {.soft_ns = 50 * MS, .hard_ns = 200 * MS, .size = 1 << 20};
        REQUIRE(fo_machine_target_new(&w->m, &ids[i]) == 0);
        fo_machine_target_ready(&w->m, ids[i], &g, &o);
    }
    REQUIRE(fo_machine_stream_open(&w->m, ids, targets, flow) == 0);
    return w;
}

static void put(world *w, uint32_t flow, uint64_t position) {
    uint32_t slot = fo_machine_take(&w->m, flow);
    REQUIRE(slot != FO_NIL);
    fo_machine_publish(&w->m, flow, slot, position, 65536);
    step(w, NULL, 0);
}

static void answer(world *w, uint32_t index, int64_t result) {
    fo_completion c = {w->flights[index].s.token, result};
    w->flights[index] = w->flights[--w->flight_count];
    step(w, &c, 1);
}

static void done_with(world *w) {
    fo_machine_free(&w->m);
    free(w);
}

/* A flush that was issued before a write completed must not vouch for it. */
static void flush_vouches_only_for_the_past(void) {
    uint32_t a, b;
    uint16_t ids[1];
    world *w = one_target_world(1, &a, ids);
    fo_leg leg;
    REQUIRE(fo_machine_stream_open(&w->m, ids, 1, &b) == 0);
    put(w, a, 0);
    put(w, b, 65536);
    answer(w, 0, 65536);
    fo_machine_seal(&w->m, a);
    step(w, NULL, 0); /* b's write and a's flush are now in flight */
    CHECK_EQ(w->flight_count, 2);
    CHECK_EQ(w->flights[1].s.kind, FO_OP_FLUSH);
    answer(w, 0, 65536); /* b completes while the flush is under way */
    fo_machine_seal(&w->m, b);
    step(w, NULL, 0);
    CHECK_EQ(w->flight_count, 1); /* no second flush beside the first */
    answer(w, 0, 0);
    fo_machine_leg(&w->m, a, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_SYNCED);
    fo_machine_leg(&w->m, b, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_ACTIVE);
    CHECK_EQ(leg.synced, 0);
    CHECK_EQ(w->flight_count, 1); /* b's own flush */
    answer(w, 0, 0);
    fo_machine_leg(&w->m, b, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_SYNCED);
    done_with(w);
}

/* A failed flush takes down every leg with unsynced bytes, also of a stream that never asked for it, and is not retried. */
static void failed_flush_is_final(void) {
    uint32_t a, b;
    uint16_t ids[1];
    world *w = one_target_world(1, &a, ids);
    fo_leg leg;
    fo_request r = {.target = ids[0], .kind = FO_OP_FLUSH};
    uint32_t slot;
    REQUIRE(fo_machine_stream_open(&w->m, ids, 1, &b) == 0);
    put(w, a, 0);
    put(w, b, 65536);
    answer(w, 0, 65536);
    answer(w, 0, 65536);
    fo_machine_seal(&w->m, a);
    step(w, NULL, 0);
    answer(w, 0, -EIO);
    for (int i = 0; i < 2; i++) {
        fo_machine_leg(&w->m, i == 0 ? a : b, 0, &leg);
        CHECK_EQ(leg.state, FO_LEG_FAILED);
        CHECK_EQ(leg.first.code, FO_OUTCOME_ERROR);
        CHECK_EQ(leg.first.phase, FO_OP_FLUSH);
        CHECK_EQ(leg.first.err, EIO);
        CHECK_EQ(leg.synced, 0);
    }
    CHECK_EQ(w->m.targets[ids[0]].state, FO_TARGET_FAILED);
    CHECK_EQ(w->flight_count, 0);
    slot = fo_machine_take_control(&w->m, ids[0]);
    fo_machine_request(&w->m, slot, &r);
    step(w, NULL, 0);
    CHECK_EQ(w->flight_count, 0);
    CHECK(w->m.tickets[slot].done);
    CHECK_EQ(w->m.tickets[slot].outcome.code, FO_OUTCOME_NOT_SUBMITTED);
    fo_machine_collect(&w->m, slot);
    slot = fo_machine_take_control(&w->m, ids[0]); /* reads go on */
    r = (fo_request){.target = ids[0], .kind = FO_OP_READ, .length = 4096};
    fo_machine_request(&w->m, slot, &r);
    step(w, NULL, 0);
    CHECK_EQ(w->flight_count, 1);
    done_with(w);
}

/* One leg's error: its queue is dropped and told as one event, the other leg does not notice. */
static void error_stays_on_its_leg(void) {
    uint32_t flow;
    uint16_t ids[2];
    world *w = one_target_world(2, &flow, ids);
    fo_leg leg;
    fo_event ev[8];
    w->m.targets[ids[0]].depth = 1;
    for (uint64_t i = 0; i < 4; i++) {
        put(w, flow, i * 65536);
    }
    CHECK_EQ(w->flight_count, 1 + 4);
    for (uint32_t i = 0; i < w->flight_count; i++) {
        if (w->flights[i].s.target == ids[0]) {
            answer(w, i, -ENOSPC);
            break;
        }
    }
    CHECK_EQ(fo_machine_events(&w->m, ev, 8), 2);
    CHECK_EQ(ev[0].outcome, FO_OUTCOME_ERROR);
    CHECK_EQ(ev[0].err, ENOSPC);
    CHECK_EQ(ev[0].cls, FO_CLASS_SPACE);
    CHECK_EQ(ev[0].offset, 0);
    CHECK_EQ(ev[1].outcome, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(ev[1].offset, 65536);
    CHECK_EQ(ev[1].length, 3 * 65536);
    CHECK_EQ(ev[1].merged, 3);
    fo_machine_leg(&w->m, flow, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    CHECK_EQ(leg.submitted, 65536);
    CHECK_EQ(leg.completed, 0);
    CHECK_EQ(leg.first.more, 3);
    while (w->flight_count != 0) {
        answer(w, 0, 65536);
    }
    fo_machine_leg(&w->m, flow, 1, &leg);
    CHECK_EQ(leg.state, FO_LEG_ACTIVE);
    CHECK_EQ(leg.completed, 4 * 65536);
    CHECK_EQ(w->m.in_state[FO_SLOT_FREE], w->m.cfg.slot_count);
    done_with(w);
}

/* Soft deadline: one event per operation.  Hard deadline: the target goes, its slots stay, the late one changes nothing. */
static void deadlines(void) {
    uint32_t flow;
    uint16_t ids[2];
    world *w = one_target_world(2, &flow, ids);
    fo_event ev[8];
    fo_leg leg;
    put(w, flow, 0);
    answer(w, w->flights[0].s.target == ids[1] ? 0 : 1, 65536);
    CHECK_EQ(fo_machine_deadline(&w->m), w->now + 50 * MS);
    w->now += 50 * MS;
    step(w, NULL, 0);
    w->now += 50 * MS;
    step(w, NULL, 0);
    CHECK_EQ(fo_machine_events(&w->m, ev, 8), 1);
    CHECK_EQ(ev[0].kind, FO_EVENT_SLOW);
    CHECK_EQ(ev[0].target, ids[0]);
    CHECK_EQ(fo_machine_deadline(&w->m), w->now + 100 * MS);
    w->now += 100 * MS;
    step(w, NULL, 0);
    CHECK_EQ(fo_machine_events(&w->m, ev, 8), 1);
    CHECK_EQ(ev[0].kind, FO_EVENT_DETACHED);
    CHECK_EQ(ev[0].outcome, FO_OUTCOME_TIMED_OUT);
    CHECK_EQ(ev[0].err, ETIMEDOUT);
    CHECK_EQ(ev[0].latency_ns, 200 * MS);
    CHECK_EQ(w->m.in_state[FO_SLOT_QUARANTINED], 1);
    fo_machine_leg(&w->m, flow, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    CHECK_EQ(leg.drained, 0);
    CHECK(fo_machine_flow_drained(&w->m, flow)); /* on every attached target */
    answer(w, 0, 65536);
    CHECK_EQ(fo_machine_events(&w->m, ev, 8), 1);
    CHECK_EQ(ev[0].kind, FO_EVENT_LATE);
    CHECK_EQ(ev[0].outcome, FO_OUTCOME_LATE_OK);
    fo_machine_leg(&w->m, flow, 0, &leg);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    CHECK_EQ(leg.completed, 0); /* a late success turns no miss into a hit */
    CHECK_EQ(leg.drained, 1);
    CHECK_EQ(w->m.in_state[FO_SLOT_QUARANTINED], 0);
    CHECK_EQ(w->m.targets[ids[0]].state, FO_TARGET_DETACHED);
    done_with(w);
}

/* A partial write goes on from the last boundary of the granule, eight times, then it is SHORT. */
static void partial_writes(void) {
    uint32_t flow;
    uint16_t ids[1];
    world *w = one_target_world(1, &flow, ids);
    fo_event ev[4];
    put(w, flow, 0);
    answer(w, 0, 5000);
    CHECK_EQ(w->flights[0].s.offset, 4096);
    CHECK_EQ(w->flights[0].s.length, 65536 - 4096);
    CHECK_EQ(w->flights[0].s.skip, 4096);
    answer(w, 0, 65536 - 4096);
    CHECK_EQ(w->m.flows[flow].legs[0].completed, 65536);
    put(w, flow, 65536);
    for (int i = 0; i < 8; i++) {
        answer(w, 0, 100);
        CHECK_EQ(w->flight_count, 1);
    }
    answer(w, 0, 100);
    CHECK_EQ(w->flight_count, 0);
    CHECK_EQ(fo_machine_events(&w->m, ev, 4), 1);
    CHECK_EQ(ev[0].outcome, FO_OUTCOME_SHORT);
    CHECK_EQ(ev[0].done, 100);
    CHECK_EQ(ev[0].attempts, 9);
    done_with(w);
}

static void transient_errors(void) {
    uint32_t flow;
    uint16_t ids[1];
    world *w = one_target_world(1, &flow, ids);
    uint64_t pause = MS;
    fo_event ev[4];
    put(w, flow, 0);
    for (int i = 0; i < 7; i++) {
        answer(w, 0, -EAGAIN);
        CHECK_EQ(w->flight_count, 0);
        CHECK(fo_machine_deadline(&w->m) <= w->now + pause); /* an older check may come first; it finds nothing */
        w->now += pause;
        pause *= 2;
        step(w, NULL, 0);
        CHECK_EQ(w->flight_count, 1);
    }
    answer(w, 0, -EBUSY); /* the next try would be past the deadline of 200 ms */
    CHECK_EQ(w->flight_count, 0);
    CHECK_EQ(fo_machine_events(&w->m, ev, 4), 1);
    CHECK_EQ(ev[0].err, EBUSY);
    CHECK_EQ(ev[0].cls, FO_CLASS_TRANSIENT);
    CHECK_EQ(w->m.targets[ids[0]].state, FO_TARGET_ACTIVE);
    done_with(w);
}

/* With everything lost to a hung target, other streams still have their two slots. */
static void two_slots_are_kept(void) {
    uint32_t flow, other;
    uint16_t ids[1];
    world *w = one_target_world(1, &flow, ids);
    uint32_t taken = 0;
    for (uint64_t i = 0; i < 28; i++) {
        uint32_t slot = fo_machine_take(&w->m, flow);
        if (slot != FO_NIL) {
            fo_machine_publish(&w->m, flow, slot, i * 65536, 65536);
            taken++;
        }
    }
    step(w, NULL, 0);
    CHECK_EQ(taken, 2 + (28 - 8 - 3 - 8)); /* its own two, and all of the lag */
    REQUIRE(fo_machine_stream_open(&w->m, ids, 1, &other) == 0);
    CHECK(fo_machine_take(&w->m, other) != FO_NIL);
    CHECK(fo_machine_take(&w->m, other) != FO_NIL);
    CHECK(fo_machine_take(&w->m, other) == FO_NIL);
    CHECK(fo_machine_take_control(&w->m, ids[0]) != FO_NIL);
    done_with(w);
}

/* Unread events stop the writers before one could be lost. */
static void full_event_ring(void) {
    uint32_t flow;
    uint16_t ids[1];
    world *w = one_target_world(1, &flow, ids);
    uint32_t rounds = 0;
    while (fo_machine_event_room(&w->m, 1, 1) && rounds < 1000000) {
        uint32_t extra;
        REQUIRE(fo_machine_stream_open(&w->m, ids, 1, &extra) == 0);
        put(w, extra, 0);
        answer(w, 0, -EIO);
        fo_machine_stream_close(&w->m, extra);
        step(w, NULL, 0);
        rounds++;
    }
    CHECK(rounds >= FO_EVENT_MARGIN / 2 && rounds < 1000000);
    CHECK_EQ(w->m.event_count >= rounds, 1);
    done_with(w);
}

static void bad_configs(void) {
    fo_config cfg = small_config();
    fo_machine m;
    char reason[160];
    cfg.slot_size = 100000;
    CHECK_EQ(fo_machine_init(&m, &cfg, reason), -EINVAL);
    CHECK(strstr(reason, "slot_size") != NULL);
    cfg = small_config();
    cfg.slot_count = 18;
    CHECK_EQ(fo_machine_init(&m, &cfg, reason), -EINVAL);
    CHECK(strstr(reason, "slot_count") != NULL);
    cfg = small_config();
    cfg.max_streams = 0;
    CHECK_EQ(fo_machine_init(&m, &cfg, reason), -EINVAL);
    cfg = small_config();
    cfg.hard_ns = 0;
    CHECK_EQ(fo_machine_init(&m, &cfg, reason), -EINVAL);
}

int main(void) {
    RUN(bad_configs);
    RUN(flush_vouches_only_for_the_past);
    RUN(failed_flush_is_final);
    RUN(error_stays_on_its_leg);
    RUN(deadlines);
    RUN(partial_writes);
    RUN(transient_errors);
    RUN(two_slots_are_kept);
    RUN(full_event_ring);
    RUN(random_worlds);
    return test_end();
}
