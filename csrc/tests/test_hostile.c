/*
 * test_hostile.c: every entry point with arguments that nobody should pass: wild ids, counts, offsets, lengths, kinds and flags.
 *
 * What sits above the core reads superblocks, catalogs and configurations, and passes on numbers that came from there.  The core
 * answers with a status: under ASan and UBSan (make sanitize) nothing may be read, written or computed that is not there.
 * FO_HOSTILE_SECONDS makes it longer; FO_HOSTILE_SEED repeats a run.
 */
#include "fanout.h"
#include "testing.h"

#include <time.h>

#define SLOT ((size_t)64 << 10)
#define SECOND 1000000000ull
#define SIZE (1u << 20)

static uint64_t state;
static uint64_t calls;

/* A number that somebody might believe: limits of widths, of the interface, and of files. */
static uint64_t wild(void) {
    static const uint64_t values[] = {
        0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, 255, 256, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537,
        SIZE - 4096, SIZE, SIZE + 1, INT32_MAX, (uint64_t)INT32_MAX + 1, UINT32_MAX, (uint64_t)UINT32_MAX + 1,
        INT64_MAX - 4095, INT64_MAX, (uint64_t)INT64_MAX + 1, UINT64_MAX - 4095, UINT64_MAX - 1, UINT64_MAX,
    };
    uint64_t r = test_random(&state);
    if (r % 8 == 0) {
        return test_random(&state) >> (r >> 8) % 64;
    }
    return values[(r >> 8) % (sizeof values / sizeof values[0])];
}

static uint16_t wild_target(uint16_t known) {
    return test_random(&state) % 2 == 0 ? known : (uint16_t)wild();
}

/* A small length most of the time: the buffers here are one slot. */
static size_t near_length(void) {
    return (size_t)(wild() % (SLOT + 1));
}

static double now(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void begin(void) {
    const char *seed = getenv("FO_HOSTILE_SEED");
    state = seed != NULL ? strtoull(seed, NULL, 0) : (unsigned long long)time(NULL) * 65537 + (unsigned)getpid();
    printf("FO_HOSTILE_SEED=%llu\n", (unsigned long long)state);
}

/* Whether a case goes on: each has a quarter of the time. */
static bool more(double began) {
    const char *seconds = getenv("FO_HOSTILE_SECONDS");
    calls++;
    return now() - began < (seconds != NULL ? atof(seconds) : 2.0) / 4;
}

static fo_engine *open_engine(uint32_t backend) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 24;
    cfg.max_streams = 4;
    cfg.quarantine_slots = 4;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    return e;
}

static uint16_t open_target(fo_engine *e, const char *name) {
    fo_open o = {.flags = FO_OPEN_REPLACE, .size = SIZE, .depth = 4};
    uint16_t id = 0;
    REQUIRE(fo_target_open(e, test_path(name), &o, SECOND, &id, NULL) == 0);
    return id;
}

/* ---- configurations ---- */

static void wild_configurations(void) {
    double began = now();
    int opened = 0, refused = 0;
    while (more(began) || opened + refused < 100) { /* also where half a second is nothing */
        fo_config cfg;
        fo_engine *e = NULL;
        char reason[160] = "";
        fo_config_init(&cfg);
        cfg.backend = FO_BACKEND_FAULTY;
        for (int n = 0; n < 2; n++) {
            uint64_t value = wild();
            switch (test_random(&state) % 9) {
            case 0: cfg.slot_size = (uint32_t)value; break;
            case 1: cfg.slot_count = (uint32_t)value % 4096; break; /* memory: 4,096 of 16 MiB are only reserved */
            case 2: cfg.max_streams = (uint32_t)value; break;
            case 3: cfg.control_slots = (uint32_t)value; break;
            case 4: cfg.quarantine_slots = (uint32_t)value; break;
            case 5: cfg.backend = value % 4 == 0 ? (uint32_t)value : FO_BACKEND_FAULTY; break;
            case 6: cfg.soft_ns = value; break;
            case 7: cfg.hard_ns = value; break;
            default: cfg.seed = value; break;
            }
        }
        if ((uint64_t)cfg.slot_size * cfg.slot_count > 256u << 20) {
            continue;
        }
        int rc = fo_engine_open(&cfg, reason, &e);
        if (rc == 0) {
            opened++;
            CHECK_EQ(fo_engine_close(e, SECOND), 0);
        } else {
            refused++;
            CHECK(reason[0] != '\0');
            CHECK(memchr(reason, 0, sizeof reason) != NULL);
        }
    }
    CHECK(opened > 0 && refused > 0);
}

/* ---- targets and requests ---- */

static void wild_opens(void) {
    fo_engine *e = open_engine(FO_BACKEND_FAULTY);
    double began = now();
    static const char *const paths[] = {"a", "b", "", ".", "no/such/directory", "a/b"};
    while (more(began)) {
        /* What a file may grow to is the caller's to say; here it stays small. */
        fo_open o = {.flags = (uint32_t)wild() & 0xff, .depth = (uint32_t)wild(), .size = wild() % (4u << 20),
                     .lock_wait_ns = wild() % 1000, .granule = (uint32_t)wild(), .soft_ns = wild(), .hard_ns = wild()};
        uint16_t id = 0;
        fo_outcome why;
        const char *name = paths[test_random(&state) % (sizeof paths / sizeof paths[0])];
        if (fo_target_open(e, test_path(name), &o, SECOND, &id, &why) == 0) {
            fo_geometry g;
            CHECK_EQ(fo_target_geometry(e, id, &g), 0);
            CHECK(g.granule != 0 && (g.granule & (g.granule - 1)) == 0 && g.granule <= SLOT);
            (void)fo_target_geometry(e, wild_target(id), &g);
            (void)fo_target_finish(e, wild_target(id), (int64_t)(wild() % SIZE), SECOND, &why);
            (void)fo_target_close(e, wild_target(id), SECOND);
            (void)fo_target_close(e, id, SECOND);
        }
    }
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

static void wild_requests(void) {
    fo_engine *e = open_engine(FO_BACKEND_THREADS);
    uint16_t id = open_target(e, "requests");
    unsigned char *buffer = test_bytes(SLOT, 7);
    double began = now();
    while (more(began)) {
        fo_request r[3];
        uint32_t count = (uint32_t)(test_random(&state) % 4);
        for (uint32_t n = 0; n < count; n++) {
            uint8_t kind = (uint8_t)(test_random(&state) % 8 == 0 ? wild() : test_random(&state) % 9);
            /* A length is only what the buffer has, or one that must be refused for its size alone. */
            uint64_t length = test_random(&state) % 4 == 0 ? SLOT + 1 + wild() % (UINT64_MAX - SLOT - 1) : near_length();
            if (kind == FO_OP_ALLOCATE || kind == FO_OP_TRUNCATE) {
                length = near_length();
            }
            r[n] = (fo_request){.target = wild_target(id), .kind = kind, .length = length, .data = buffer};
            r[n].offset = kind == FO_OP_ALLOCATE || kind == FO_OP_TRUNCATE ? near_length() : wild();
            if (kind == FO_OP_WRITE && r[n].offset > 64u << 20 && r[n].offset <= INT64_MAX) {
                r[n].offset %= 64u << 20; /* a sparse file of exabytes helps nobody */
            }
            if (kind == FO_OP_WRITE && length > SLOT) {
                r[n].kind = FO_OP_READ; /* any length may be written; it would be read from the buffer */
            }
        }
        int rc = fo_run(e, r, count, SECOND);
        CHECK(rc <= 0);
        for (uint32_t n = 0; rc == 0 && n < count; n++) {
            CHECK(r[n].outcome.code <= FO_OUTCOME_LATE_ERROR);
            CHECK(r[n].outcome.done <= r[n].length);
        }
    }
    free(buffer);
    (void)fo_target_close(e, id, SECOND);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* ---- streams ---- */

static void one_step(fo_stream *s, uint16_t id, unsigned char *buffer) {
    uint64_t offsets[2] = {wild(), wild()}, sums[4];
    uint8_t digest[FO_DIGEST_SIZE];
    fo_unfinished unfinished = {{0}};
    size_t taken, room;
    uint32_t failed;
    void *lent = NULL;
    fo_leg legs[4];
    switch (test_random(&state) % 14) {
    case 0: (void)fo_stream_place(s, offsets, wild()); break;
    case 1: offsets[0] = offsets[1] = 0; (void)fo_stream_place(s, offsets, SLOT * (wild() % 8)); break;
    case 2: (void)fo_stream_write(s, buffer, near_length(), (uint32_t)wild(), SECOND, &taken, &failed); break;
    case 3: (void)fo_stream_lease(s, (size_t)wild(), SECOND, &lent, &room); break;
    case 4:
        if (fo_stream_lease(s, near_length(), SECOND, &lent, &room) == 0) {
            memset(lent, 1, room);
        }
        break;
    case 5: (void)fo_stream_commit(s, (size_t)wild(), (uint32_t)wild(), &failed); break;
    case 6: (void)fo_stream_commit(s, near_length(), 0, &failed); break;
    case 7: fo_stream_return(s); break;
    case 8: (void)fo_stream_pad(s, SECOND); break;
    case 9: (void)fo_stream_digest(s, digest); (void)fo_stream_suspend(s, &unfinished); (void)fo_stream_resume(s, &unfinished); break;
    case 10: CHECK(fo_stream_sums(s, sums, 4) >= -4096); break;
    case 11: (void)fo_stream_legs(s, legs, 4); break;
    case 12: (void)fo_stream_eject(s, (uint16_t)wild()); (void)fo_stream_position(s); break;
    default: (void)(test_random(&state) % 8 == 0 ? fo_stream_seal(s, SECOND) : fo_stream_pad(s, SECOND)); break;
    }
    (void)id;
}

static void wild_streams(void) {
    fo_engine *e = open_engine(FO_BACKEND_FAULTY);
    uint16_t ids[2] = {open_target(e, "s0"), open_target(e, "s1")};
    unsigned char *buffer = test_bytes(SLOT, 9);
    double began = now();
    while (more(began)) {
        fo_stream *s = NULL;
        uint16_t wanted[2] = {wild_target(ids[0]), wild_target(ids[1])};
        uint32_t count = (uint32_t)(test_random(&state) % 4 == 0 ? wild() : 2);
        fo_event events[8];
        if (count > 2 && count <= FO_MAX_LEGS) {
            count = 2; /* more than the array has */
        }
        if (fo_stream_open(e, wanted, count, SECOND, &s) != 0 && fo_stream_open(e, ids, 2, SECOND, &s) != 0) {
            continue;
        }
        for (int step = 0; step < 24; step++) {
            one_step(s, ids[0], buffer);
            calls++;
        }
        fo_stream_return(s);
        if (test_random(&state) % 2 == 0) {
            (void)fo_stream_abort(s);
            (void)fo_stream_drained(s, SECOND);
        }
        fo_stream_close(s);
        while (fo_events(e, events, 8, 0) > 0) {
        }
        fo_faults_advance(e, SECOND);
    }
    free(buffer);
    (void)fo_engine_close(e, SECOND);
}

int main(void) {
    double began = now();
    begin();
    test_dir_make();
    RUN(wild_configurations);
    RUN(wild_opens);
    RUN(wild_requests);
    RUN(wild_streams);
    test_dir_remove();
    printf("%.0f calls a second\n", (double)calls / (now() - began));
    return test_end();
}
