/*
 * fo_hash_avx2.c: the fused hash unit for AVX2.  The pragma, not a compiler flag, turns the instructions on, so that every
 * file of the core is built with the same flags; it has to come before any header whose functions are to use them.
 */
#include "fo_hash.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2")
#define XXH_VECTOR 1 /* of xxhash.h we use only the short inputs here, and its secret */

#define LANES 2
typedef __m256i vec;
static inline vec load(const void *p) { return _mm256_loadu_si256((const vec *)p); }
static inline vec pin(vec v) {
    __asm__("" : "+x"(v));
    return v;
}
static inline void store(void *p, vec v) { _mm256_storeu_si256((vec *)p, v); }
static inline vec add64(vec a, vec b) { return _mm256_add_epi64(a, b); }
static inline vec swap_halves(vec v) { return _mm256_shuffle_epi32(v, 0x4e); }
static inline vec high_halves(vec v) { return _mm256_srli_epi64(v, 32); }

static inline vec product(vec data, vec key) {
    vec mixed = _mm256_xor_si256(data, key);
    return _mm256_mul_epu32(mixed, high_halves(mixed));
}

static inline vec scramble_lane(vec acc, vec key) {
    const vec prime = _mm256_set1_epi32((int)0x9e3779b1u);
    vec x = _mm256_xor_si256(_mm256_xor_si256(acc, _mm256_srli_epi64(acc, 47)), key);
    vec high = _mm256_mul_epu32(high_halves(x), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(x, prime), _mm256_slli_epi64(high, 32));
}

#include "fo_hash_fused.h"

static const fo_hash_unit unit = FO_HASH_UNIT(2);
#pragma GCC pop_options
const fo_hash_unit *const fo_hash_avx2 = &unit;
#else
const fo_hash_unit *const fo_hash_avx2 = NULL;
#endif
