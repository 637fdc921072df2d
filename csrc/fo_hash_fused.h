/*
 * fo_hash_fused.h: XXH3 and the copy in one loop.  Included by fo_hash_avx2.c and fo_hash_avx512.c, each after it has defined
 * what a vector is; not to be included elsewhere.
 *
 * Why our own loop.  A copy and then a hash of what was copied touch every byte three times: read, write (which first reads
 * the line it overwrites), read again.  Here a stripe is loaded once; the same register is stored to the slot and fed to the
 * hash, so the digest cannot disagree with the slot even if the caller changes its memory meanwhile.  That needs `pin`: to the
 * compiler memory does not change between two looks, and GCC 12 did fold three loads of one stripe into three AVX-512
 * instructions, so the slot got one value and the hash another.  Stores go into the cache: what reads the slot next, once for each target, is
 * mostly a copy too (a device in memory, a page cache, the host of a virtual machine), and finds it there.
 *
 * Why two hashes for the price of one.  The long-input loops of XXH3-64 and XXH3-128 add the same product to their
 * accumulators as long as both stand at the same stripe of their block; they differ in what the accumulators hold.  The digest
 * of an object and the sum of its slot usually do stand together: framing is a multiple of the block.
 *
 * From the published specification of XXH3: blocks of 1,024 bytes = 16 stripes of 64; a scramble ends every block that is
 * followed by at least one more byte; the last stripe is the last 64 bytes, wherever they are.  Inputs of up to one block go
 * to xxhash.h, which also serves as the other unit (fo_hash_base.c) and as the tests' oracle.
 *
 * The including file defines:  vec, LANES (vectors per stripe), load, pin (from here on the value is in a register, and only
 * there), store, add64, product(data, key), swap_halves, scramble_lane(acc, key).
 */
#include <stdbool.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#define STRIPE ((size_t)64)
#define BLOCK ((size_t)1024)
#define STRIPES 16
#define SECRET_SIZE 192
#define LAST_STRIPE_KEY (SECRET_SIZE - 64 - 7)
#define MERGE_LOW 11
#define MERGE_HIGH (SECRET_SIZE - 64 - 11)

#define P32_1 0x9e3779b1ull
#define P32_2 0x85ebca77ull
#define P32_3 0xc2b2ae3dull
#define P64_1 0x9e3779b185ebca87ull
#define P64_2 0xc2b2ae3d27d4eb4full
#define P64_3 0x165667b19e3779f9ull
#define P64_4 0x85ebca77c2b2ae63ull
#define P64_5 0x27d4eb2f165667c5ull

/* Bytes that are copied before another hash, standing elsewhere in its block, finds them in the cache. */
#define CACHE_STEP ((size_t)16 << 10)
#define PREFETCH 2048 /* ahead of the loads: the hardware stops at the caller's 4 KiB pages */

typedef struct running {
    _Alignas(64) uint64_t acc[8];
    unsigned char history[STRIPE]; /* the 64 bytes before `pending`, once there are any */
    unsigned char pending[BLOCK];  /* always at least one byte, as soon as there was one: the end needs it */
    size_t held;
    uint64_t total;
} running;
_Static_assert(sizeof(running) <= sizeof(fo_hash), "fo_hash holds the state of every unit");

static running *state_of(fo_hash *h) { return (running *)(void *)h->opaque; }
static const running *const_state_of(const fo_hash *h) { return (const running *)(const void *)h->opaque; }

/* ---- blocks ---- */

/* n blocks from src: hashed into a and, when there is one, b; copied to dst, unless that is NULL.  Everything that does not depend on
 * the data is a constant at the place of the call, so each call is its own straight loop. */
static inline __attribute__((always_inline)) void blocks(unsigned char *dst, const unsigned char *src, size_t n,
                                                         uint64_t *a, uint64_t *b, bool copy) {
    vec acc_a[LANES], acc_b[LANES];
    for (int k = 0; k < LANES; k++) {
        acc_a[k] = load(a + k * (8 / LANES));
        acc_b[k] = load((b != NULL ? b : a) + k * (8 / LANES));
    }
    for (; n != 0; n--) {
        for (size_t stripe = 0; stripe < STRIPES; stripe++) {
            const unsigned char *key = XXH3_kSecret + stripe * 8;
            __builtin_prefetch(src + PREFETCH);
            for (size_t k = 0; k < LANES; k++) {
                vec data = pin(load(src + k * sizeof(vec)));
                vec more = add64(product(data, load(key + k * sizeof(vec))), swap_halves(data));
                if (copy) {
                    store(dst + k * sizeof(vec), data);
                }
                acc_a[k] = add64(acc_a[k], more);
                if (b != NULL) {
                    acc_b[k] = add64(acc_b[k], more);
                }
            }
            src += STRIPE;
            dst += copy ? STRIPE : 0;
        }
        for (size_t k = 0; k < LANES; k++) {
            vec key = load(XXH3_kSecret + SECRET_SIZE - STRIPE + k * sizeof(vec));
            acc_a[k] = scramble_lane(acc_a[k], key);
            if (b != NULL) {
                acc_b[k] = scramble_lane(acc_b[k], key);
            }
        }
    }
    for (int k = 0; k < LANES; k++) {
        store(a + k * (8 / LANES), acc_a[k]);
        if (b != NULL) {
            store(b + k * (8 / LANES), acc_b[k]);
        }
    }
}

static __attribute__((noinline)) void hash_blocks(const unsigned char *src, size_t n, uint64_t *a) {
    blocks(NULL, src, n, a, NULL, false);
}

static __attribute__((noinline)) void hash_blocks_two(const unsigned char *src, size_t n, uint64_t *a, uint64_t *b) {
    blocks(NULL, src, n, a, b, false);
}

static __attribute__((noinline)) void copy_blocks(unsigned char *dst, const unsigned char *src, size_t n, uint64_t *a) {
    blocks(dst, src, n, a, NULL, true);
}

static __attribute__((noinline)) void copy_blocks_two(unsigned char *dst, const unsigned char *src, size_t n, uint64_t *a,
                                                      uint64_t *b) {
    blocks(dst, src, n, a, b, true);
}

/* ---- streaming ---- */

static void unit_reset(fo_hash *h) {
    static const uint64_t start[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    running *r = state_of(h);
    memcpy(r->acc, start, sizeof start);
    r->held = 0;
    r->total = 0;
}

/* The pending block is full and more follows: it goes into the accumulators. */
static void consume_pending(running *r) {
    hash_blocks(r->pending, 1, r->acc);
    memcpy(r->history, r->pending + BLOCK - STRIPE, STRIPE);
    r->held = 0;
}

static void hold(running *r, const unsigned char *p, size_t n) {
    memcpy(r->pending + r->held, p, n);
    r->held += n;
}

static void add_one(running *r, const unsigned char *p, size_t len) {
    size_t whole;
    r->total += len;
    if (r->held != 0) {
        size_t n = len < BLOCK - r->held ? len : BLOCK - r->held;
        hold(r, p, n);
        p += n;
        len -= n;
        if (len == 0) {
            return;
        }
        consume_pending(r);
    }
    whole = len == 0 ? 0 : (len - 1) / BLOCK;
    if (whole != 0) {
        hash_blocks(p, whole, r->acc);
        p += whole * BLOCK;
        memcpy(r->history, p - STRIPE, STRIPE);
    }
    hold(r, p, len - whole * BLOCK);
}

static size_t phase(const running *r) { return r->held % BLOCK; }

/* Whole blocks, both hashes at a block boundary: pending is full or empty, and what is consumed now is followed by more. */
static void fused_add(const unsigned char *p, size_t n, running *a, running *b) {
    running *both[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        if (both[i]->held == BLOCK) {
            consume_pending(both[i]);
        }
        both[i]->total += n * BLOCK;
    }
    hash_blocks_two(p, n, a->acc, b->acc);
    memcpy(a->history, p + n * BLOCK - STRIPE, STRIPE);
    memcpy(b->history, a->history, STRIPE);
}

/* As long as both stand at the same place of their blocks, every byte is loaded once; else the second finds it in the cache. */
static void add_two(running *a, running *b, const unsigned char *p, size_t len) {
    size_t head = (BLOCK - phase(a)) % BLOCK;
    if (phase(a) == phase(b) && len > head + BLOCK) {
        size_t whole = (len - head - 1) / BLOCK;
        add_one(a, p, head);
        add_one(b, p, head);
        fused_add(p + head, whole, a, b);
        p += head + whole * BLOCK;
        len -= head + whole * BLOCK;
    }
    while (len != 0) {
        size_t n = len < CACHE_STEP ? len : CACHE_STEP;
        add_one(a, p, n);
        add_one(b, p, n);
        p += n;
        len -= n;
    }
}

static void unit_add(const void *data, size_t len, fo_hash *sum64, fo_hash *sum128) {
    if (sum64 != NULL && sum128 != NULL) {
        add_two(state_of(sum64), state_of(sum128), data, len);
    } else if (sum64 != NULL) {
        add_one(state_of(sum64), data, len);
    } else if (sum128 != NULL) {
        add_one(state_of(sum128), data, len);
    }
}

/* ---- copying ---- */

static void plain_copy(void *dst, const void *src, size_t len, fo_hash *sum64, fo_hash *sum128) {
    memcpy(dst, src, len);
    unit_add(dst, len, sum64, sum128);
}

/* Whole blocks, both hashes at a block boundary: pending is full or empty, and what is consumed now is followed by more. */
static void fused_copy(unsigned char *dst, const unsigned char *src, size_t n, running *a, running *b) {
    if (a->held == BLOCK) {
        consume_pending(a);
    }
    if (b != NULL && b->held == BLOCK) {
        consume_pending(b);
    }
    if (b != NULL) {
        copy_blocks_two(dst, src, n, a->acc, b->acc);
        memcpy(b->history, dst + n * BLOCK - STRIPE, STRIPE);
        b->total += n * BLOCK;
    } else {
        copy_blocks(dst, src, n, a->acc);
    }
    memcpy(a->history, dst + n * BLOCK - STRIPE, STRIPE);
    a->total += n * BLOCK;
}

/* The two hashes stand at different places of their blocks: the copy is fused with the first, the second follows through the
 * cache. */
static void staggered_copy(unsigned char *dst, const unsigned char *src, size_t len, running *a, running *b) {
    while (len > BLOCK) {
        size_t n = (len - 1 < CACHE_STEP ? len - 1 : CACHE_STEP) / BLOCK; /* at least one byte stays for the end */
        if (a->held == BLOCK) {
            consume_pending(a);
        }
        copy_blocks(dst, src, n, a->acc);
        memcpy(a->history, dst + n * BLOCK - STRIPE, STRIPE);
        a->total += n * BLOCK;
        add_one(b, dst, n * BLOCK);
        dst += n * BLOCK;
        src += n * BLOCK;
        len -= n * BLOCK;
    }
    memcpy(dst, src, len);
    add_one(a, dst, len);
    add_one(b, dst, len);
}

static void unit_copy(void *to, const void *from, size_t len, fo_hash *sum64, fo_hash *sum128) {
    unsigned char *dst = to;
    const unsigned char *src = from;
    running *a = sum64 != NULL ? state_of(sum64) : sum128 != NULL ? state_of(sum128) : NULL;
    running *b = sum64 != NULL && sum128 != NULL ? state_of(sum128) : NULL;
    size_t head, whole;
    if (a == NULL) {
        memcpy(dst, src, len);
        return;
    }
    head = (BLOCK - phase(a)) % BLOCK;
    if (len <= head + BLOCK) {
        plain_copy(dst, src, len, sum64, sum128);
        return;
    }
    plain_copy(dst, src, head, sum64, sum128);
    dst += head;
    src += head;
    len -= head;
    if (b != NULL && phase(b) != 0) {
        staggered_copy(dst, src, len, a, b);
        return;
    }
    whole = (len - 1) / BLOCK;
    fused_copy(dst, src, whole, a, b);
    plain_copy(dst + whole * BLOCK, src + whole * BLOCK, len - whole * BLOCK, sum64, sum128);
}

/* ---- the end ---- */

static uint64_t read64(const unsigned char *p) {
    uint64_t x;
    memcpy(&x, p, sizeof x); /* this unit is for little-endian CPUs only */
    return x;
}

static uint64_t merge(const uint64_t acc[8], const unsigned char *key, uint64_t sum) {
    for (int i = 0; i < 4; i++) {
        unsigned __int128 wide = (unsigned __int128)(acc[2 * i] ^ read64(key + 16 * i)) *
                                 (acc[2 * i + 1] ^ read64(key + 16 * i + 8));
        sum += (uint64_t)wide ^ (uint64_t)(wide >> 64);
    }
    sum ^= sum >> 37;
    sum *= 0x165667919e3779f9ull;
    return sum ^ (sum >> 32);
}

static void one_stripe(uint64_t acc[8], const unsigned char *p, const unsigned char *key) {
    for (size_t i = 0; i < 8; i++) {
        uint64_t data = read64(p + 8 * i), mixed = data ^ read64(key + 8 * i);
        acc[i ^ 1] += data;
        acc[i] += (mixed & 0xffffffffu) * (mixed >> 32);
    }
}

/* The accumulators after the last, partial block. */
static void finish(const running *r, uint64_t acc[8]) {
    unsigned char last[STRIPE];
    memcpy(acc, r->acc, 8 * sizeof *acc);
    for (size_t i = 0; i < (r->held - 1) / STRIPE; i++) {
        one_stripe(acc, r->pending + i * STRIPE, XXH3_kSecret + i * 8);
    }
    if (r->held >= STRIPE) {
        memcpy(last, r->pending + r->held - STRIPE, STRIPE);
    } else {
        memcpy(last, r->history + r->held, STRIPE - r->held);
        memcpy(last + STRIPE - r->held, r->pending, r->held);
    }
    one_stripe(acc, last, XXH3_kSecret + LAST_STRIPE_KEY);
}

static uint64_t unit_digest64(const fo_hash *h) {
    const running *r = const_state_of(h);
    uint64_t acc[8];
    if (r->total <= BLOCK) {
        return XXH3_64bits(r->pending, r->total);
    }
    finish(r, acc);
    return merge(acc, XXH3_kSecret + MERGE_LOW, r->total * P64_1);
}

static void canonical(uint64_t high, uint64_t low, uint8_t out[FO_DIGEST_SIZE]) {
    high = __builtin_bswap64(high);
    low = __builtin_bswap64(low);
    memcpy(out, &high, 8);
    memcpy(out + 8, &low, 8);
}

static void unit_digest128(const fo_hash *h, uint8_t out[FO_DIGEST_SIZE]) {
    const running *r = const_state_of(h);
    uint64_t acc[8];
    if (r->total <= BLOCK) {
        XXH128_hash_t hash = XXH3_128bits(r->pending, r->total);
        canonical(hash.high64, hash.low64, out);
        return;
    }
    finish(r, acc);
    canonical(merge(acc, XXH3_kSecret + MERGE_HIGH, ~(r->total * P64_2)),
              merge(acc, XXH3_kSecret + MERGE_LOW, r->total * P64_1), out);
}

static uint64_t unit_once64(const void *data, size_t len) { return XXH3_64bits(data, len); }

static void unit_once128(const void *data, size_t len, uint8_t out[FO_DIGEST_SIZE]) {
    XXH128_hash_t hash = XXH3_128bits(data, len);
    canonical(hash.high64, hash.low64, out);
}

#define FO_HASH_UNIT(number)                                                                       \
    {.isa = (number),                                                                              \
     .reset64 = unit_reset,                                                                        \
     .reset128 = unit_reset,                                                                       \
     .digest64 = unit_digest64,                                                                    \
     .digest128 = unit_digest128,                                                                  \
     .copy = unit_copy,                                                                            \
     .add = unit_add,                                                                              \
     .once64 = unit_once64,                                                                        \
     .once128 = unit_once128}
