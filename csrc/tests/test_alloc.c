/*
 * test_alloc.c: the n-th allocation fails, once and then for ever, for n = 1, 2, 3 … until a whole life of an engine no longer
 * reaches it.  Each time the caller is told -ENOMEM or everything went well; nothing leaks, neither memory nor descriptors.
 */
#include "refusing.h"
#include "whole_life.h"

#define BOUND 1000u /* allocations of one life: far more than there are */

static uint32_t backend;

static bool out_of_memory(int err) { return err == ENOMEM; }

static void loop(bool forever) {
    unsigned char *bytes = test_bytes(LENGTH, 1);
    held before = holding();
    unsigned n = 0;
    int rc = 0;
    bool untouched = false;
    while (!untouched && n++ < BOUND) {
        refuse(CALL_ALLOCATE, n, forever ? UINT32_MAX : n, ENOMEM);
        rc = whole_life(backend, bytes, out_of_memory);
        untouched = atomic_load(&refusals[CALL_ALLOCATE].seen) < n;
        allow(CALL_ALLOCATE);
        CHECK(rc == 0 || rc == -ENOMEM || rc == -EOPNOTSUPP);
        CHECK(untouched == (rc == 0)); /* no allocation is made that nobody needs */
        check_nothing_left(before);
        if (test_failures != 0) {
            printf("  allocation %u of %s, %s: %d\n", n, fo_backend_name(backend), forever ? "for ever" : "once", rc);
            break;
        }
    }
    CHECK(untouched);
    printf("  %s, %s: %u allocations failed\n", fo_backend_name(backend), forever ? "for ever" : "once", n - 1);
    free(bytes);
}

static void each_allocation_fails_once(void) { loop(false); }
static void from_each_allocation_on_all_fail(void) { loop(true); }

int main(void) {
    static const uint32_t backends[] = {FO_BACKEND_FAULTY, FO_BACKEND_THREADS, FO_BACKEND_URING};
    test_dir_make();
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++) {
        fo_config cfg;
        char reason[160];
        fo_engine *e;
        backend = backends[i];
        fo_config_init(&cfg);
        cfg.backend = backend;
        if (fo_engine_open(&cfg, reason, &e) != 0) {
            printf("- %s: skipped, %s\n", fo_backend_name(backend), reason);
            continue;
        }
        REQUIRE(fo_engine_close(e, SECOND) == 0);
        RUN(each_allocation_fails_once);
        RUN(from_each_allocation_on_all_fail);
    }
    test_dir_remove();
    return test_end();
}
