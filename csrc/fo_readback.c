/*
 * fo_readback.c: reading back what a stream wrote, and comparing its sums.
 *
 * A flush says that the device has the bytes; it does not say which.  Here they are read again, straight from the target where
 * it was opened with O_DIRECT, into control slots and nowhere else, and summed where they lie.  Several regions are read side
 * by side, block by block, so that the slowest target does not wait for the others to be done.
 */
#include "fo_engine.h"

#include <errno.h>
#include <string.h>

#define BATCH 64u

typedef struct batch {
    fo_request requests[BATCH];
    uint32_t region[BATCH];
    uint32_t count;
} batch;

static void compare(fo_readback *region, const fo_request *r, uint32_t slot_size) {
    fo_outcome outcome = r->outcome;
    if (outcome.code == FO_OUTCOME_OK && r->sum != region->sums[(r->offset - region->offset) / slot_size]) {
        outcome.code = FO_OUTCOME_MISMATCH;
        outcome.err = EILSEQ;
        outcome.cls = (uint8_t)fo_classify(EILSEQ);
    }
    if (outcome.code == FO_OUTCOME_OK) {
        region->outcome.done += r->length;
    } else if (region->outcome.code == FO_OUTCOME_OK) {
        region->outcome = outcome;
    } else {
        region->outcome.more++;
    }
}

static int run_batch(fo_engine *e, fo_readback *regions, batch *b, uint64_t timeout_ns) {
    int rc = b->count != 0 ? fo_run(e, b->requests, b->count, timeout_ns) : 0;
    for (uint32_t i = 0; rc == 0 && i < b->count; i++) {
        compare(&regions[b->region[i]], &b->requests[i], e->machine.cfg.slot_size);
    }
    b->count = 0;
    return rc;
}

static void add(batch *b, const fo_readback *regions, uint32_t region, uint64_t at, uint32_t slot_size) {
    const fo_readback *r = &regions[region];
    uint64_t left = r->length - at;
    b->requests[b->count] = (fo_request){
        .target = r->target,
        .kind = FO_OP_READ,
        .offset = r->offset + at,
        .length = left < slot_size ? left : slot_size,
    };
    b->region[b->count++] = region;
}

int fo_read_back(fo_engine *e, fo_readback *regions, uint32_t count, uint64_t timeout_ns) {
    uint32_t slot_size = e->machine.cfg.slot_size; /* fixed at open */
    uint64_t longest = 0;
    batch b;
    int rc = 0;
    b.count = 0;
    for (uint32_t i = 0; i < count; i++) {
        memset(&regions[i].outcome, 0, sizeof regions[i].outcome);
        regions[i].outcome.phase = FO_OP_READ;
        regions[i].outcome.offset = regions[i].offset;
        regions[i].outcome.length = regions[i].length;
        longest = regions[i].length > longest ? regions[i].length : longest;
    }
    for (uint64_t at = 0; rc == 0 && at < longest; at += slot_size) {
        for (uint32_t i = 0; rc == 0 && i < count; i++) {
            if (at < regions[i].length && regions[i].outcome.code == FO_OUTCOME_OK) {
                add(&b, regions, i, at, slot_size);
                rc = b.count == BATCH ? run_batch(e, regions, &b, timeout_ns) : 0;
            }
        }
    }
    return rc == 0 ? run_batch(e, regions, &b, timeout_ns) : rc;
}
