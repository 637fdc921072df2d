/*
 * fo_hash_avx512.c: the fused hash unit for AVX-512: a stripe is one register, and a store fills one cache line.
 */
#include "fo_hash.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx512f")
#define XXH_VECTOR 1 /* of xxhash.h we use only the short inputs here, and its secret */

#define LANES 1
typedef __m512i vec;
static inline vec load(const void *p) { return _mm512_loadu_si512(p); }
static inline vec pin(vec v) {
    __asm__("" : "+v"(v));
    return v;
}
static inline void store(void *p, vec v) { _mm512_storeu_si512(p, v); }
static inline vec add64(vec a, vec b) { return _mm512_add_epi64(a, b); }
static inline vec swap_halves(vec v) { return _mm512_shuffle_epi32(v, (_MM_PERM_ENUM)0x4e); }
static inline vec high_halves(vec v) { return _mm512_srli_epi64(v, 32); }

static inline vec product(vec data, vec key) {
    vec mixed = _mm512_xor_si512(data, key);
    return _mm512_mul_epu32(mixed, high_halves(mixed));
}

static inline vec scramble_lane(vec acc, vec key) {
    const vec prime = _mm512_set1_epi32((int)0x9e3779b1u);
    vec x = _mm512_xor_si512(_mm512_xor_si512(acc, _mm512_srli_epi64(acc, 47)), key);
    vec high = _mm512_mul_epu32(high_halves(x), prime);
    return _mm512_add_epi64(_mm512_mul_epu32(x, prime), _mm512_slli_epi64(high, 32));
}

#include "fo_hash_fused.h"

static const fo_hash_unit unit = FO_HASH_UNIT(3);
#pragma GCC pop_options
const fo_hash_unit *const fo_hash_avx512 = &unit;
#else
const fo_hash_unit *const fo_hash_avx512 = NULL;
#endif
