/*
 * fo_hash.c: chooses the hash unit.  Debian's static libxxhash has no run-time dispatch, and SSE2 code costs twice what AVX2
 * does, so the choice is made here.
 */
#include "fo_hash.h"

static int runs(uint32_t isa) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (isa == 2) {
        return __builtin_cpu_supports("avx2");
    }
    if (isa == 3) {
        return __builtin_cpu_supports("avx512f");
    }
#endif
    return isa == 0;
}

uint32_t fo_hash_all(const fo_hash_unit *out[], uint32_t max) {
    const fo_hash_unit *const known[] = {&fo_hash_base, fo_hash_avx2, fo_hash_avx512};
    uint32_t n = 0;
    for (uint32_t i = 0; i < 3 && n < max; i++) {
        if (known[i] != NULL && runs(known[i]->isa)) { /* not tested: NULL on other architectures alone */
            out[n++] = known[i];
        }
    }
    return n;
}

const fo_hash_unit *fo_hash_best(void) {
    const fo_hash_unit *units[3] = {0};
    return units[fo_hash_all(units, 3) - 1];
}

void fo_digest(const void *data, size_t len, uint8_t out[FO_DIGEST_SIZE]) {
    fo_hash_best()->once128(data, len, out);
}

uint64_t fo_sum(const void *data, size_t len) { return fo_hash_best()->once64(data, len); }
