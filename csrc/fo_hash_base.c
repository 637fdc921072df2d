/*
 * fo_hash_base.c: the hash unit that every CPU of the architecture can run (SSE2 on x86-64, NEON on AArch64): xxhash.h as it
 * is, in a copy loop.
 */
#include "fo_hash.h"

#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

_Static_assert(sizeof(XXH3_state_t) <= sizeof(fo_hash), "fo_hash holds an XXH3 state");
_Static_assert(_Alignof(fo_hash) >= 64, "XXH3 states want cache line alignment");

/* Bytes copied before they are hashed: they are then still in the L2 cache.  128 KiB is the middle of the flat part
 * (64 to 512 KiB: 62 to 66 ms per GiB; 1 MiB steps: 80; a copy pass and then a hash pass: 87). */
#define STEP ((size_t)128 << 10)

static XXH3_state_t *state_of(fo_hash *h) { return (XXH3_state_t *)(void *)h->opaque; }

static void canonical(XXH128_hash_t hash, uint8_t out[FO_DIGEST_SIZE]) {
    XXH128_canonical_t big_endian;
    XXH128_canonicalFromHash(&big_endian, hash);
    memcpy(out, big_endian.digest, FO_DIGEST_SIZE);
}

static void unit_reset64(fo_hash *h) { (void)XXH3_64bits_reset(state_of(h)); }
static void unit_reset128(fo_hash *h) { (void)XXH3_128bits_reset(state_of(h)); }

static uint64_t unit_digest64(const fo_hash *h) {
    return XXH3_64bits_digest((const XXH3_state_t *)(const void *)h->opaque);
}

static void unit_digest128(const fo_hash *h, uint8_t out[FO_DIGEST_SIZE]) {
    canonical(XXH3_128bits_digest((const XXH3_state_t *)(const void *)h->opaque), out);
}

static void unit_add(const void *data, size_t len, fo_hash *sum64, fo_hash *sum128) {
    const unsigned char *p = data;
    while (len != 0) {
        size_t n = len < STEP ? len : STEP;
        if (sum64 != NULL) {
            (void)XXH3_64bits_update(state_of(sum64), p, n);
        }
        if (sum128 != NULL) {
            (void)XXH3_128bits_update(state_of(sum128), p, n);
        }
        p += n;
        len -= n;
    }
}

static void unit_copy(void *dst, const void *src, size_t len, fo_hash *sum64, fo_hash *sum128) {
    unsigned char *to = dst;
    const unsigned char *from = src;
    while (len != 0) {
        size_t n = len < STEP ? len : STEP;
        memcpy(to, from, n);
        unit_add(to, n, sum64, sum128);
        to += n;
        from += n;
        len -= n;
    }
}

static uint64_t unit_once64(const void *data, size_t len) { return XXH3_64bits(data, len); }

static void unit_once128(const void *data, size_t len, uint8_t out[FO_DIGEST_SIZE]) {
    canonical(XXH3_128bits(data, len), out);
}

const fo_hash_unit fo_hash_base = {
    .isa = 0,
    .reset64 = unit_reset64,
    .reset128 = unit_reset128,
    .digest64 = unit_digest64,
    .digest128 = unit_digest128,
    .copy = unit_copy,
    .add = unit_add,
    .once64 = unit_once64,
    .once128 = unit_once128,
};
