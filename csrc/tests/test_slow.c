/*
 * test_slow.c: slow targets, in a small world with a clock.  Each target serves its operations one after the other and takes
 * its own time for each; a client puts slots as fast as the machine gives them, or as it likes.
 */
#include "../fo_step_parts.h"
#include "testing.h"

#define MS 1000000ull
#define SLOT 65536u
#define TARGETS 4u
#define DEPTH 4u
#define PATIENCE (300 * MS)

typedef struct world {
    fo_machine m;
    uint64_t now;
    uint64_t service[TARGETS]; /* per operation; FO_FOREVER: hangs */
    uint64_t free_at[TARGETS]; /* when it ends what it is doing */
    fo_submission queue[TARGETS][64];
    uint32_t queued[TARGETS];
    uint16_t ids[TARGETS];
    uint32_t count, flow;
    uint64_t client_ns, client_at, put, position; /* pause between puts, slots so far */
    fo_event events[256];
    uint32_t event_count;
} world;

static void step(world *w, const fo_completion *c, uint32_t n) {
    fo_submission out[16];
    uint32_t made;
    do {
        fo_step(&w->m, w->now, c, n, out, 16, &made);
        for (uint32_t i = 0; i < made; i++) {
            uint16_t t = out[i].target;
            if (w->queued[t] == 0) {
                w->free_at[t] = w->service[t] == FO_FOREVER ? FO_FOREVER : w->now + w->service[t];
            }
            w->queue[t][w->queued[t]++] = out[i];
            REQUIRE(w->queued[t] <= 64);
        }
        n = 0;
    } while (w->m.want_step);
    fo_machine_check(&w->m);
    w->event_count += fo_machine_events(&w->m, &w->events[w->event_count], 256 - w->event_count);
    REQUIRE(w->event_count < 256);
}

static void finish_one(world *w, uint32_t t) {
    const fo_submission *s = &w->queue[t][0];
    fo_completion c = {s->token, s->kind == FO_OP_WRITE ? (int64_t)s->length : 0};
    memmove(&w->queue[t][0], &w->queue[t][1], --w->queued[t] * sizeof w->queue[t][0]);
    w->free_at[t] = w->service[t] == FO_FOREVER ? FO_FOREVER : w->now + w->service[t];
    step(w, &c, 1);
}

static void client(world *w) {
    const fo_flow *f = &w->m.flows[w->flow];
    while (w->now >= w->client_at && !f->sealed && fo_machine_flow_alive(&w->m, w->flow)) {
        uint32_t slot = fo_machine_take(&w->m, w->flow);
        step(w, NULL, 0);
        if (slot == FO_NIL) {
            return;
        }
        fo_machine_publish(&w->m, w->flow, slot, w->position, SLOT);
        w->position += SLOT;
        w->put++;
        w->client_at = w->now + w->client_ns;
        step(w, NULL, 0);
    }
}

/* Lets time pass, from one thing that happens to the next. */
static void run(world *w, uint64_t ns) {
    uint64_t until = w->now + ns;
    while (true) {
        uint64_t next = fo_machine_deadline(&w->m);
        uint32_t first = TARGETS;
        client(w);
        next = fo_machine_deadline(&w->m);
        if (w->client_at > w->now && !w->m.flows[w->flow].sealed) {
            next = w->client_at < next ? w->client_at : next;
        }
        for (uint32_t t = 0; t < TARGETS; t++) {
            if (w->queued[t] != 0 && w->free_at[t] <= next) {
                next = w->free_at[t];
                first = t;
            }
        }
        if (next > until) {
            w->now = until;
            return;
        }
        w->now = next > w->now ? next : w->now;
        if (first < TARGETS && next == w->free_at[first]) {
            finish_one(w, first);
        } else {
            step(w, NULL, 0);
        }
    }
}

static world *world_of(const uint64_t *service, const uint32_t *on_slow, uint32_t count) {
    world *w = calloc(1, sizeof *w);
    fo_config cfg;
    char reason[160];
    fo_config_init(&cfg);
    cfg.slot_size = SLOT;
    cfg.slot_count = 2 * 4 + 3 + 8 + 16;
    cfg.max_streams = 4;
    cfg.control_slots = 3;
    cfg.quarantine_slots = 8;
    REQUIRE(w != NULL && fo_machine_init(&w->m, &cfg, reason) == 0);
    w->now = 1000 * MS;
    w->count = count;
    for (uint32_t i = 0; i < count; i++) {
        fo_geometry g = {.granule = 4096, .depth = DEPTH};
        fo_open o = {.soft_ns = 5000 * MS, .hard_ns = 20000 * MS, .patience_ns = PATIENCE, .size = 1 << 20};
        o.on_slow = on_slow[i];
        REQUIRE(fo_machine_target_new(&w->m, &w->ids[i]) == 0 && w->ids[i] == i);
        fo_machine_target_ready(&w->m, w->ids[i], &g, &o);
        w->service[i] = service[i];
    }
    REQUIRE(fo_machine_stream_open(&w->m, w->ids, count, &w->flow) == 0);
    return w;
}

static void done_with(world *w) {
    fo_machine_free(&w->m);
    free(w);
}

static uint32_t told(const world *w, uint8_t kind, uint16_t target) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < w->event_count; i++) {
        n += w->events[i].kind == kind && w->events[i].target == target;
    }
    return n;
}

static const fo_event *event_of(const world *w, uint8_t kind) {
    for (uint32_t i = 0; i < w->event_count; i++) {
        if (w->events[i].kind == kind) {
            return &w->events[i];
        }
    }
    return NULL;
}

static uint8_t state_of(const world *w, uint32_t leg) { return w->m.flows[w->flow].legs[leg].state; }

enum { WAIT = FO_SLOW_WAIT, EJECT = FO_SLOW_EJECT };

/* One target at a tenth of the others' speed: it goes after patience, and the others then run at their own. */
static void crawling_target_is_ejected(void) {
    world *w = world_of((uint64_t[]){MS, MS, 10 * MS}, (uint32_t[]){WAIT, EJECT, EJECT}, 3);
    const fo_event *e;
    fo_leg leg;
    uint64_t before;
    run(w, PATIENCE + 50 * MS); /* the reserve has to fill first */
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 2), 1);
    CHECK_EQ(told(w, FO_EVENT_EJECTED, 2), 1);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 0) + told(w, FO_EVENT_LAGGARD, 1), 0);
    CHECK_EQ(state_of(w, 2), FO_LEG_EJECTED);
    CHECK(w->put < PATIENCE / MS / 10 + 16 + 2 + 60); /* until then it paced them */
    e = event_of(w, FO_EVENT_LAGGARD);
    REQUIRE(e != NULL);
    CHECK_EQ(e->outcome, FO_OUTCOME_SLOW);
    CHECK_EQ(e->cls, FO_CLASS_DEVICE);
    CHECK_EQ(e->err, 0);
    CHECK_EQ(e->strikes, FO_STRIKES);
    CHECK(e->pace >= 90 && e->pace <= 110);
    CHECK(e->length >= 8 * SLOT);
    CHECK(e->lag >= 8);
    fo_machine_leg(&w->m, w->flow, 2, &leg);
    CHECK_EQ(leg.first.code, FO_OUTCOME_SLOW);
    CHECK_EQ(leg.first.length, e->length);
    before = w->put;
    run(w, 1000 * MS);
    CHECK(w->put - before >= 950); /* 1 ms each */
    CHECK_EQ(state_of(w, 0), FO_LEG_ACTIVE);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    done_with(w);
}

/* Told once, and nothing else happens: it paces the stream for as long as it likes. */
static void waiting_target_paces(void) {
    world *w = world_of((uint64_t[]){MS, 10 * MS}, (uint32_t[]){WAIT, WAIT}, 2);
    run(w, 5000 * MS);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 1), 1);
    CHECK_EQ(told(w, FO_EVENT_EJECTED, 1), 0);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    CHECK(w->put <= 500 + 20);
    done_with(w);
}

static void when_all_are_slow_nobody_goes(void) {
    world *w = world_of((uint64_t[]){50 * MS, 50 * MS, 50 * MS}, (uint32_t[]){EJECT, EJECT, EJECT}, 3);
    run(w, 10000 * MS);
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL);
    CHECK(w->put >= 190);
    done_with(w);
}

/* Ejecting a target helps nobody while another that stays is as slow. */
static void ejecting_must_help(void) {
    world *w = world_of((uint64_t[]){MS, 20 * MS, 20 * MS}, (uint32_t[]){WAIT, WAIT, EJECT}, 3);
    run(w, 5000 * MS);
    CHECK_EQ(state_of(w, 2), FO_LEG_ACTIVE);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 2), 0);
    done_with(w);
    w = world_of((uint64_t[]){MS, 20 * MS, 20 * MS}, (uint32_t[]){EJECT, EJECT, WAIT}, 3); /* whoever comes first */
    run(w, 5000 * MS);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 1), 0);
    done_with(w);
}

/* Two slow ones that may go, one fast: both go, and the fast one stays. */
static void several_can_go_but_never_the_last(void) {
    world *w = world_of((uint64_t[]){20 * MS, MS, 20 * MS}, (uint32_t[]){EJECT, EJECT, EJECT}, 3);
    run(w, 3000 * MS);
    CHECK_EQ(state_of(w, 0), FO_LEG_EJECTED);
    CHECK_EQ(state_of(w, 2), FO_LEG_EJECTED);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    w->service[1] = 100 * MS; /* now it crawls itself, alone */
    run(w, 8000 * MS);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 1), 0);
    done_with(w);
}

/* What the stream keeps (a primary) stays, whatever its target's option says; and it is told of. */
static void kept_leg_stays(void) {
    world *w = world_of((uint64_t[]){20 * MS, MS}, (uint32_t[]){EJECT, EJECT}, 2);
    fo_machine_keep(&w->m, w->flow, 1);
    run(w, 3000 * MS);
    CHECK_EQ(told(w, FO_EVENT_LAGGARD, 0), 1);
    CHECK_EQ(state_of(w, 0), FO_LEG_ACTIVE);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    done_with(w);
}

/* A little slower is no reason. */
static void two_thirds_of_the_speed_is_enough(void) {
    world *w = world_of((uint64_t[]){2 * MS, 3 * MS}, (uint32_t[]){EJECT, EJECT}, 2);
    run(w, 5000 * MS);
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    done_with(w);
}

/* Nor is a target that is slower than its peers, but fast enough for the client. */
static void who_holds_up_nobody_stays(void) {
    world *w = world_of((uint64_t[]){MS, 10 * MS}, (uint32_t[]){WAIT, EJECT}, 2);
    w->client_ns = 12 * MS;
    run(w, 5000 * MS);
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    CHECK_EQ(w->m.targets[1].strikes, 0);
    done_with(w);
}

/* A backlog that nobody waits for is no offence, though it was one for a moment. */
static void idle_client_accuses_nobody(void) {
    world *w = world_of((uint64_t[]){MS, 60 * MS}, (uint32_t[]){WAIT, EJECT}, 2);
    run(w, MS);
    CHECK(w->m.flows[w->flow].starved);
    w->client_ns = 10000 * MS; /* one more, and then it has nothing to say for a while */
    run(w, 900 * MS);
    CHECK(w->m.flows[w->flow].legs[1].inflight != 0);
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    done_with(w);
}

/* Hiccups of two thirds of the patience, with pauses between them, add up to nothing. */
static void strikes_decay(void) {
    world *w = world_of((uint64_t[]){MS, MS}, (uint32_t[]){WAIT, EJECT}, 2);
    uint32_t most = 0;
    run(w, 100 * MS);
    for (int i = 0; i < 20; i++) {
        w->service[1] = 40 * MS;
        w->free_at[1] = w->now + 40 * MS;
        run(w, PATIENCE * 2 / 3);
        most = w->m.targets[1].strikes > most ? w->m.targets[1].strikes : most;
        w->service[1] = MS;
        w->free_at[1] = w->now + MS;
        run(w, PATIENCE * 3);
    }
    CHECK(most >= 1 && most < FO_STRIKES); /* it was seen */
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE);
    done_with(w);
}

/* A target that stops answering altogether: gone after patience, long before the soft deadline; its slots are stranded, then
 * quarantined at the hard deadline, and free again when the writes have landed.  Every slot is accounted for all the time. */
static void hung_target_strands_its_slots(void) {
    world *w = world_of((uint64_t[]){MS, MS, FO_FOREVER}, (uint32_t[]){WAIT, EJECT, EJECT}, 3);
    uint64_t before;
    run(w, PATIENCE + 50 * MS);
    CHECK_EQ(state_of(w, 2), FO_LEG_EJECTED);
    CHECK_EQ(event_of(w, FO_EVENT_LAGGARD)->pace, 0);
    CHECK_EQ(w->m.in_state[FO_SLOT_STRANDED], DEPTH);
    before = w->put;
    run(w, 1000 * MS);
    CHECK(w->put - before >= 950);
    CHECK_EQ(w->m.in_state[FO_SLOT_STRANDED], DEPTH);
    CHECK_EQ(w->m.in_state[FO_SLOT_QUARANTINED], 0);
    run(w, 20000 * MS);
    CHECK_EQ(told(w, FO_EVENT_DETACHED, 2), 1);
    CHECK_EQ(w->m.in_state[FO_SLOT_STRANDED], 0);
    CHECK_EQ(w->m.in_state[FO_SLOT_QUARANTINED], DEPTH);
    CHECK_EQ(state_of(w, 2), FO_LEG_EJECTED);
    fo_machine_seal(&w->m, w->flow);
    run(w, 100 * MS);
    CHECK_EQ(state_of(w, 0), FO_LEG_SYNCED);
    CHECK_EQ(state_of(w, 1), FO_LEG_SYNCED);
    CHECK_EQ(w->m.in_state[FO_SLOT_FREE], w->m.cfg.slot_count - DEPTH);
    while (w->queued[2] != 0) {
        finish_one(w, 2);
    }
    CHECK_EQ(told(w, FO_EVENT_LATE, 2), DEPTH);
    CHECK_EQ(w->m.in_state[FO_SLOT_FREE], w->m.cfg.slot_count);
    done_with(w);
}

/* Stranded slots are lost to the reserve that is set aside for that, not to anybody's two. */
static void others_keep_their_two(void) {
    world *w = world_of((uint64_t[]){MS, FO_FOREVER}, (uint32_t[]){WAIT, EJECT}, 2);
    uint32_t flows[3];
    run(w, PATIENCE + 50 * MS);
    CHECK_EQ(state_of(w, 1), FO_LEG_EJECTED);
    for (int i = 0; i < 3; i++) {
        REQUIRE(fo_machine_stream_open(&w->m, w->ids, 1, &flows[i]) == 0);
        CHECK(fo_machine_take(&w->m, flows[i]) != FO_NIL);
        CHECK(fo_machine_take(&w->m, flows[i]) != FO_NIL);
    }
    CHECK(fo_machine_take_control(&w->m, w->ids[0]) != FO_NIL);
    fo_machine_check(&w->m);
    done_with(w);
}

/* When more is stranded than was set aside, the lag pays: a stream may hold less, and the others' two are there. */
static void lag_pays_for_what_is_stranded(void) {
    world *w = world_of((uint64_t[]){MS, FO_FOREVER}, (uint32_t[]){WAIT, EJECT}, 2);
    uint32_t flows[3];
    w->m.targets[1].depth = 12; /* more than the reserve of 8 */
    run(w, PATIENCE + 50 * MS);
    CHECK_EQ(w->m.in_state[FO_SLOT_STRANDED], 12);
    w->service[0] = w->free_at[0] = FO_FOREVER; /* now the stream takes all that it may have */
    run(w, 10 * MS);
    CHECK_EQ(w->m.flows[w->flow].held, 2 + 16 - (12 - 8));
    for (int i = 0; i < 3; i++) {
        REQUIRE(fo_machine_stream_open(&w->m, w->ids, 1, &flows[i]) == 0);
        CHECK(fo_machine_take(&w->m, flows[i]) != FO_NIL);
        CHECK(fo_machine_take(&w->m, flows[i]) != FO_NIL);
    }
    for (int i = 0; i < 3; i++) {
        CHECK(fo_machine_take_control(&w->m, (uint16_t)i) != FO_NIL);
    }
    done_with(w);
}

/* A flush that does not come back, when the peers have synced: by age, so after the soft deadline and two more looks. */
static void slow_flush_is_found_by_age(void) {
    world *w = world_of((uint64_t[]){MS, MS}, (uint32_t[]){WAIT, EJECT}, 2);
    run(w, 20 * MS);
    fo_machine_seal(&w->m, w->flow);
    while (w->queued[1] == 0 || w->queue[1][0].kind != FO_OP_FLUSH) {
        run(w, MS / 2);
    }
    w->service[1] = FO_FOREVER;
    w->free_at[1] = FO_FOREVER;
    run(w, 5000 * MS);
    CHECK_EQ(state_of(w, 0), FO_LEG_SYNCED);
    CHECK_EQ(told(w, FO_EVENT_SLOW, 1), 1);
    CHECK_EQ(state_of(w, 1), FO_LEG_ACTIVE); /* one strike so far */
    run(w, PATIENCE);
    CHECK_EQ(state_of(w, 1), FO_LEG_EJECTED);
    CHECK(event_of(w, FO_EVENT_LAGGARD)->latency_ns >= 5000 * MS);
    CHECK_EQ(w->m.targets[1].state, FO_TARGET_ACTIVE);
    run(w, 20000 * MS);
    CHECK_EQ(w->m.targets[1].state, FO_TARGET_DETACHED); /* the hard deadline is another matter */
    done_with(w);
}

/* Under `wait` age leads to nothing but the event and, in the end, the hard deadline. */
static void hard_deadline_takes_also_the_last(void) {
    world *w = world_of((uint64_t[]){FO_FOREVER, FO_FOREVER}, (uint32_t[]){WAIT, EJECT}, 2);
    run(w, 20001 * MS);
    CHECK(event_of(w, FO_EVENT_LAGGARD) == NULL); /* nobody was better */
    CHECK_EQ(told(w, FO_EVENT_DETACHED, 0), 1);
    CHECK_EQ(told(w, FO_EVENT_DETACHED, 1), 1);
    CHECK(!fo_machine_flow_alive(&w->m, w->flow));
    done_with(w);
}

/* The caller's own eject gives the slots back in the same way. */
static void eject_by_hand_strands_too(void) {
    world *w = world_of((uint64_t[]){MS, FO_FOREVER}, (uint32_t[]){WAIT, WAIT}, 2);
    run(w, 50 * MS);
    CHECK_EQ(w->m.flows[w->flow].held, 2 + 16);
    CHECK(w->m.lagging != 0);
    CHECK_EQ(fo_machine_eject(&w->m, w->flow, 1), 0);
    fo_machine_check(&w->m);
    CHECK_EQ(w->m.in_state[FO_SLOT_STRANDED], DEPTH);
    CHECK_EQ(w->m.lagging, 0);
    CHECK_EQ(w->m.flows[w->flow].legs[1].first.code, FO_OUTCOME_NOT_SUBMITTED);
    run(w, 100 * MS);
    CHECK(w->put >= 18 + 95);
    done_with(w);
}

/* Nothing is timed while nothing is wrong: a healthy stream at full speed leaves no look pending. */
static void healthy_streams_are_not_looked_at(void) {
    world *w = world_of((uint64_t[]){MS, MS, MS}, (uint32_t[]){WAIT, EJECT, EJECT}, 3);
    uint32_t watched = 0;
    for (int i = 0; i < 500; i++) {
        run(w, 2 * MS);
        for (uint32_t t = 0; t < w->count; t++) {
            watched += w->m.targets[t].watch_ns != FO_FOREVER;
            CHECK_EQ(w->m.targets[t].strikes, 0);
        }
    }
    CHECK_EQ(watched, 0);
    CHECK(w->m.flows[w->flow].starved); /* it was limited by its targets all the time */
    CHECK(fo_machine_target_rate(&w->m, 0) > SLOT * 950ull && fo_machine_target_rate(&w->m, 0) < SLOT * 1050ull);
    CHECK(w->m.targets[0].latency_ns >= 3 * MS && w->m.targets[0].latency_ns <= DEPTH * MS + MS);
    done_with(w);
}

int main(void) {
    RUN(crawling_target_is_ejected);
    RUN(waiting_target_paces);
    RUN(when_all_are_slow_nobody_goes);
    RUN(ejecting_must_help);
    RUN(several_can_go_but_never_the_last);
    RUN(kept_leg_stays);
    RUN(two_thirds_of_the_speed_is_enough);
    RUN(who_holds_up_nobody_stays);
    RUN(idle_client_accuses_nobody);
    RUN(strikes_decay);
    RUN(hung_target_strands_its_slots);
    RUN(others_keep_their_two);
    RUN(lag_pays_for_what_is_stranded);
    RUN(slow_flush_is_found_by_age);
    RUN(hard_deadline_takes_also_the_last);
    RUN(eject_by_hand_strands_too);
    RUN(healthy_streams_are_not_looked_at);
    return test_end();
}
