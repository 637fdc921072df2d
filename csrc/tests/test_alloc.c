/*
 * test_alloc.c: the n-th allocation fails, once and then for ever, for n = 1, 2, 3 … until a whole life of an engine no longer
 * reaches it.  Each time the caller is told -ENOMEM or everything went well; nothing leaks, neither memory nor descriptors.
 *
 * The allocator is wrapped by the linker (see the Makefile): the core has no switch for it.
 */
#include "fanout.h"
#include "testing.h"

#include <dirent.h>
#include <stdatomic.h>

#define SECOND 1000000000ull
#define SLOT ((size_t)64 << 10)
#define LENGTH ((size_t)200 << 10)
#define BOUND 1000u /* allocations of one life: far more than there are */

static atomic_long live;          /* blocks that were allocated and not freed */
static atomic_uint counted;       /* allocations so far */
static unsigned fail_at, fail_to; /* the 1-based range that fails */
static uint32_t backend;

/* ---- the wrapped allocator ---- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
char *__real_strdup(const char *text);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **p, size_t alignment, size_t size);
char *__wrap_strdup(const char *text);
void __wrap_free(void *p);

static bool refuse(void) {
    unsigned n = atomic_fetch_add(&counted, 1) + 1;
    return n >= fail_at && n <= fail_to;
}

static void *count(void *p) {
    if (p != NULL) {
        atomic_fetch_add(&live, 1);
    }
    return p;
}

void *__wrap_malloc(size_t size) { return refuse() ? NULL : count(__real_malloc(size)); }
void *__wrap_calloc(size_t n, size_t size) { return refuse() ? NULL : count(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return refuse() ? NULL : count(__real_aligned_alloc(alignment, size));
}
char *__wrap_strdup(const char *text) { return refuse() ? NULL : count(__real_strdup(text)); }

int __wrap_posix_memalign(void **p, size_t alignment, size_t size) {
    int rc = refuse() ? ENOMEM : __real_posix_memalign(p, alignment, size);
    if (rc == 0) {
        (void)count(*p);
    }
    return rc;
}

void __wrap_free(void *p) {
    if (p != NULL) {
        atomic_fetch_sub(&live, 1);
    }
    __real_free(p);
}

/* ---- a life ---- */

static int write_all(fo_stream *s, const unsigned char *bytes) {
    uint64_t offsets[2] = {0, 0};
    uint32_t failed = 0;
    size_t taken;
    fo_leg legs[2];
    int rc = fo_stream_place(s, offsets, (uint64_t)1 << 20);
    rc = rc != 0 ? rc : fo_stream_write(s, bytes, LENGTH, 0, 10 * SECOND, &taken, &failed);
    rc = rc != 0 ? rc : fo_stream_seal(s, 10 * SECOND);
    rc = rc != 0 ? rc : fo_stream_sync(s, 10 * SECOND);
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    for (int i = 0; rc == 0 && i < 2; i++) {
        CHECK(legs[i].state == FO_LEG_SYNCED || legs[i].first.err == ENOMEM); /* never a loss without a word */
        rc = legs[i].state == FO_LEG_SYNCED ? 0 : -legs[i].first.err;
    }
    return rc;
}

static int use(fo_engine *e, const unsigned char *bytes) {
    fo_open o = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .size = 1 << 20};
    fo_fault none = {.nth = 1, .target = UINT16_MAX, .kind = FO_OP_TRUNCATE, .action = FO_FAULT_ERRNO, .value = EIO};
    uint16_t ids[2];
    fo_stream *s;
    int rc = backend == FO_BACKEND_FAULTY ? fo_faults_set(e, &none, 1) : 0;
    rc = rc != 0 ? rc : fo_target_open(e, test_path("a"), &o, 10 * SECOND, &ids[0], NULL);
    rc = rc != 0 ? rc : fo_target_open(e, test_path("b"), &o, 10 * SECOND, &ids[1], NULL);
    rc = rc != 0 ? rc : fo_stream_open(e, ids, 2, 10 * SECOND, &s);
    if (rc == 0) {
        rc = write_all(s, bytes);
        fo_stream_close(s);
    }
    return rc;
}

static int life(const unsigned char *bytes) {
    fo_config cfg;
    char reason[160];
    fo_engine *e;
    int rc;
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 32;
    cfg.max_streams = 2;
    rc = fo_engine_open(&cfg, reason, &e);
    if (rc == -EOPNOTSUPP) { /* the backend that was asked for cannot run: for this reason */
        CHECK(strstr(reason, "no memory") != NULL);
        rc = -ENOMEM;
    }
    if (rc == 0) {
        rc = use(e, bytes);
        CHECK_EQ(fo_engine_close(e, 10 * SECOND), 0);
    }
    return rc;
}

static unsigned descriptors(void) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    REQUIRE(d != NULL);
    while (readdir(d) != NULL) {
        n++;
    }
    (void)closedir(d);
    return n;
}

/* Workers let go of an engine a moment after it was closed. */
static void settle(long held, unsigned before) {
    for (int i = 0; i < 2000 && (atomic_load(&live) != held || descriptors() != before); i++) {
        (void)usleep(1000);
    }
    CHECK_EQ(atomic_load(&live), held);
    CHECK_EQ(descriptors(), before);
}

static void loop(bool forever) {
    unsigned char *bytes = test_bytes(LENGTH, 1);
    unsigned before = descriptors(), n = 0;
    long held = atomic_load(&live);
    int rc = 0;
    bool untouched = false;
    while (!untouched && n++ < BOUND) {
        atomic_store(&counted, 0);
        fail_at = n;
        fail_to = forever ? UINT32_MAX : n;
        rc = life(bytes);
        untouched = atomic_load(&counted) < n;
        fail_at = fail_to = 0;
        CHECK(rc == 0 || rc == -ENOMEM);
        settle(held, before);
        if (test_failures != 0) {
            printf("  allocation %u of %s, %s: %d\n", n, fo_backend_name(backend), forever ? "for ever" : "once", rc);
            break;
        }
    }
    CHECK(untouched);
    CHECK_EQ(rc, 0);
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
