/*
 * test_hash.c: every hash unit against xxhash's own one-shot functions, compiled here without our pragmas, at lengths around
 * every internal boundary, streamed in pieces of every kind.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <pthread.h>
#include <stdatomic.h>

#include "../fo_hash.h"
#include "testing.h"

static const size_t lengths[] = {0,   1,   2,   3,   4,    8,    9,    16,   17,   128,  129,   240,   241,    255,    256,
                                 257, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 8191, 16384, 16385, 17408,
                                 32768, 33793, 65536, 65537, 131072, 131073, 1000003};

static void expected128(const void *data, size_t n, uint8_t out[16]) {
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, XXH3_128bits(data, n));
    memcpy(out, c.digest, 16);
}

/* What fo_stream does: pieces that stop and start anywhere, a slot that is aligned, an object that began some framing bytes
 * later than its slot.  `skew` 0 and multiples of 1,024 take the fused way, everything else the staggered one. */
static void check_slot(const fo_hash_unit *u, const unsigned char *data, size_t n, size_t skew, size_t piece_max) {
    unsigned char *slot = aligned_alloc(4096, (n + skew + 4096 + 4095) / 4096 * 4096);
    uint64_t seed = n + skew + piece_max;
    uint8_t a[16], b[16];
    fo_hash sum64, sum128;
    REQUIRE(slot != NULL);
    u->reset64(&sum64);
    u->reset128(&sum128);
    u->copy(slot, data, skew, &sum64, NULL);
    for (size_t at = 0; at < n;) {
        size_t piece = 1 + (size_t)(test_random(&seed) % piece_max);
        piece = piece < n - at ? piece : n - at;
        u->copy(slot + skew + at, data + skew + at, piece, &sum64, &sum128);
        at += piece;
    }
    CHECK(memcmp(slot, data, n + skew) == 0);
    CHECK(u->digest64(&sum64) == XXH3_64bits(data, n + skew));
    expected128(data + skew, n, b);
    u->digest128(&sum128, a);
    CHECK(memcmp(a, b, 16) == 0);
    free(slot);
}

static void slots_and_objects(void) {
    static const size_t skews[] = {0, 1024, 4096, 4160, 32, 1, 100, 1000};
    static const size_t pieces[] = {1, 100, 1023, 4096, 70000, 300000};
    const fo_hash_unit *units[3];
    uint32_t n = fo_hash_all(units, 3);
    unsigned char *data = test_bytes(300000, 43);
    for (uint32_t i = 0; i < n; i++) {
        for (size_t k = 0; k < sizeof lengths / sizeof lengths[0] - 1; k++) {
            for (size_t w = 0; w < 8 * 6; w++) {
                if (pieces[w % 6] * 4096 > lengths[k]) {
                    check_slot(units[i], data, lengths[k], skews[w / 6], pieces[w % 6]);
                }
            }
        }
    }
    free(data);
}

static void check_unit(const fo_hash_unit *u, const unsigned char *data, size_t n, uint64_t seed) {
    unsigned char *copy = malloc(n + 1);
    uint8_t a[16], b[16];
    fo_hash sum64, sum128;
    REQUIRE(copy != NULL);
    expected128(data, n, b);
    u->once128(data, n, a);
    CHECK(memcmp(a, b, 16) == 0);
    CHECK(u->once64(data, n) == XXH3_64bits(data, n));
    u->reset64(&sum64);
    u->reset128(&sum128);
    for (size_t at = 0; at < n;) {
        size_t piece = 1 + (size_t)(test_random(&seed) % (seed % 3 == 0 ? 100 : 300000));
        piece = piece < n - at ? piece : n - at;
        if (seed % 5 == 0) {
            u->add(data + at, piece, &sum64, &sum128);
            memcpy(copy + at, data + at, piece);
        } else {
            u->copy(copy + at, data + at, piece, &sum64, &sum128);
        }
        at += piece;
    }
    CHECK(memcmp(copy, data, n) == 0);
    CHECK(u->digest64(&sum64) == XXH3_64bits(data, n));
    u->digest128(&sum128, a);
    CHECK(memcmp(a, b, 16) == 0);
    u->reset128(&sum128);
    u->add(data, n, NULL, &sum128);
    u->digest128(&sum128, a);
    CHECK(memcmp(a, b, 16) == 0);
    free(copy);
}

static void every_unit(void) {
    const fo_hash_unit *units[3];
    uint32_t n = fo_hash_all(units, 3);
    unsigned char *data = test_bytes(1000003, 42);
    CHECK(n >= 1);
    for (uint32_t i = 0; i < n; i++) {
        printf("  unit for instructions %u\n", units[i]->isa);
        for (size_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
            for (uint64_t seed = 1; seed <= 6; seed++) {
                check_unit(units[i], data, lengths[k], seed);
            }
        }
    }
    CHECK(fo_hash_best() == units[n - 1]);
    CHECK(fo_hash_all(units, 1) == 1 && units[0] == &fo_hash_base); /* which every CPU has */
    free(data);
}

/* ---- a caller that changes its memory while it is copied ---- */

#ifndef __SANITIZE_THREAD__
enum { SCRIBBLED = 64 << 10, SCRIBBLE_ROUNDS = 4000 };

typedef struct scribble {
    unsigned char *memory;
    atomic_bool stop;
} scribble;

static void *scribbler(void *arg) {
    scribble *s = arg;
    for (unsigned value = 0; !atomic_load_explicit(&s->stop, memory_order_relaxed); value++) {
        memset(s->memory, (int)(value & 0xff), SCRIBBLED);
        __asm__ volatile("" ::: "memory");
    }
    return NULL;
}

/* Breaks if any instruction looks at the caller's memory a second time: the slot would hold one value, the digest another.
 * An AVX-512 build did, because the compiler may load again what it believes not to change. */
static void a_caller_that_scribbles(void) {
    const fo_hash_unit *units[3];
    uint32_t n = fo_hash_all(units, 3);
    unsigned char *slot = aligned_alloc(4096, SCRIBBLED);
    scribble s = {.memory = calloc(1, SCRIBBLED)};
    pthread_t thread;
    REQUIRE(slot != NULL && s.memory != NULL);
    REQUIRE(pthread_create(&thread, NULL, scribbler, &s) == 0);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t split = 0;
        for (uint32_t round = 0; round < SCRIBBLE_ROUNDS; round++) {
            uint8_t seen[16], held[16];
            fo_hash sum64, sum128;
            units[i]->reset64(&sum64);
            units[i]->reset128(&sum128);
            units[i]->copy(slot, s.memory, SCRIBBLED, &sum64, &sum128);
            units[i]->digest128(&sum128, seen);
            expected128(slot, SCRIBBLED, held);
            split += memcmp(seen, held, 16) != 0 || units[i]->digest64(&sum64) != XXH3_64bits(slot, SCRIBBLED);
        }
        CHECK_EQ(split, 0);
    }
    atomic_store(&s.stop, true);
    REQUIRE(pthread_join(thread, NULL) == 0);
    free(s.memory);
    free(slot);
}
#else
static void a_caller_that_scribbles(void) { SKIP("the race is the caller's, and wanted here"); }
#endif

/* The published value for no bytes, in the order in which every tool prints it. */
static void known_digest(void) {
    static const uint8_t empty[16] = {0x99, 0xaa, 0x06, 0xd3, 0x01, 0x47, 0x98, 0xd8,
                                      0x60, 0x01, 0xc3, 0x24, 0x46, 0x8d, 0x49, 0x7f};
    uint8_t out[16];
    fo_digest("", 0, out);
    CHECK(memcmp(out, empty, 16) == 0);
    CHECK(fo_sum("", 0) == 0x2d06800538d394c2ull);
}

int main(void) {
    RUN(known_digest);
    RUN(every_unit);
    RUN(slots_and_objects);
    RUN(a_caller_that_scribbles);
    return test_end();
}
