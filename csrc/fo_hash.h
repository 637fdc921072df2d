/*
 * fo_hash.h: XXH3 of a stream of bytes, and the pass that copies and hashes at once.
 *
 * The code that runs is chosen once per process by what the CPU has.  All variants give the same digests, and the same as
 * every other XXH3 implementation.
 */
#ifndef FO_HASH_H
#define FO_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "fanout.h"

/* State of one running hash: each unit has its own idea of it, and checks that it fits. */
typedef struct fo_hash {
    _Alignas(64) unsigned char opaque[FO_UNFINISHED_SIZE];
} fo_hash;

typedef struct fo_hash_unit {
    uint32_t isa; /* as fo_info.hash_isa */
    void (*reset64)(fo_hash *h);
    void (*reset128)(fo_hash *h);
    uint64_t (*digest64)(const fo_hash *h);
    void (*digest128)(const fo_hash *h, uint8_t out[FO_DIGEST_SIZE]);
    /* Copies len bytes and adds them to the hashes that are not NULL.  The hashes are taken from dst: what lands on the
     * targets and what is summed agree, also when the caller changes src meanwhile. */
    void (*copy)(void *dst, const void *src, size_t len, fo_hash *sum64, fo_hash *sum128);
    /* Adds without copying. */
    void (*add)(const void *data, size_t len, fo_hash *sum64, fo_hash *sum128);
    uint64_t (*once64)(const void *data, size_t len);
    void (*once128)(const void *data, size_t len, uint8_t out[FO_DIGEST_SIZE]);
} fo_hash_unit;

/* The best unit for this CPU. */
const fo_hash_unit *fo_hash_best(void);
/* Every unit that this CPU can run, for tests; returns how many. */
uint32_t fo_hash_all(const fo_hash_unit *out[], uint32_t max);

/* Each NULL where the architecture has no such unit. */
extern const fo_hash_unit fo_hash_base;
extern const fo_hash_unit *const fo_hash_avx2;
extern const fo_hash_unit *const fo_hash_avx512;

#endif
