/*
 * test_ring.c: the io_uring backend alone, driven by this thread in place of the engine's: what happens at the edges of its two
 * queues, and when the kernel takes nothing.
 */
#include "../fo_engine.h"
#include "refusing.h"

#include <sys/eventfd.h>

#define SLOT ((size_t)64 << 10)
#define MS 1000000ull
#define MANY 300u /* more than the submission queue holds, and more than one turn takes */

static held before;

/* An engine without a thread, whose target 0 is a file of one slot. */
static fo_engine *bare_engine(void) {
    fo_engine *e;
    fo_open o = {.depth = 64};
    fo_config cfg;
    char reason[160];
    unsigned char *bytes;
    int fd;
    before = holding();
    bytes = test_bytes(SLOT, 3);
    e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
    fd = open(test_path("ring"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(e != NULL && fd >= 0 && write(fd, bytes, SLOT) == (ssize_t)SLOT);
    free(bytes);
    memset(e, 0, sizeof *e);
    e->refs = 1;
    (void)pthread_mutex_init(&e->mutex, NULL);
    fo_config_init(&cfg);
    cfg.slot_size = SLOT;
    REQUIRE(fo_machine_init(&e->machine, &cfg, reason) == 0);
    REQUIRE(fo_arena_open(&e->arena, (size_t)cfg.slot_count * SLOT, true) == 0);
    e->wake_fd = eventfd(0, EFD_CLOEXEC);
    e->backend = &fo_backend_uring;
    e->blocks[0] = fo_block_new(e, 0, test_path("ring"), &o);
    REQUIRE(e->wake_fd >= 0 && e->blocks[0] != NULL);
    atomic_store(&e->blocks[0]->fd, fd);
    REQUIRE(e->backend->start(e, reason) == 0);
    return e;
}

static void drop_engine(fo_engine *e) {
    e->backend->stop(e);
    (void)close(e->wake_fd);
    (void)close(atomic_load(&e->blocks[0]->fd));
    free(e->blocks[0]->path);
    free(e->blocks[0]);
    fo_arena_close(&e->arena);
    fo_machine_free(&e->machine);
    (void)pthread_mutex_destroy(&e->mutex);
    free(e);
    check_nothing_left(before);
}

static void submit(fo_engine *e, uint32_t first, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        fo_submission s = {.token = first + i, .kind = FO_OP_READ, .length = 4096};
        e->backend->submit(e, &s, 1);
    }
}

/* Takes `expected` completions in bites of `bite`; every token once. */
static void take(fo_engine *e, uint32_t expected, uint32_t bite, int64_t result) {
    static bool seen[2 * MANY];
    fo_completion done[FO_BATCH];
    uint32_t taken = 0;
    memset(seen, 0, sizeof seen);
    for (int turns = 0; taken < expected && turns < 10000; turns++) {
        uint32_t n = e->backend->reap(e, done, bite);
        CHECK(n <= bite);
        for (uint32_t i = 0; i < n; i++) {
            CHECK(!seen[done[i].token]);
            seen[done[i].token] = true;
            CHECK_EQ(done[i].result, result);
        }
        taken += n;
        if (n == 0) {
            e->backend->wait(e, fo_engine_clock(e) + 10 * MS);
        }
    }
    CHECK_EQ(taken, expected);
}

static void wake(fo_engine *e) {
    uint64_t one = 1;
    CHECK_EQ(write(e->wake_fd, &one, sizeof one), (long)sizeof one);
}

/* More than fits is handed over on the way; more than a turn takes is left for the next. */
static void more_than_a_queue_holds(void) {
    fo_engine *e = bare_engine();
    fo_completion done[1];
    submit(e, 0, MANY);
    take(e, MANY, 1, 4096);
    submit(e, 0, MANY);
    take(e, MANY, FO_BATCH, 4096);
    wake(e);
    e->backend->wait(e, FO_FOREVER); /* the wake-up ends it */
    CHECK_EQ(e->backend->reap(e, done, 1), 0);
    e->backend->forget(e, 0);
    e->backend->forget(e, 0);
    drop_engine(e);
}

/* What cannot be handed over comes back as EAGAIN, which the machine tries again, and is never waited for. */
static void kernel_takes_nothing(void) {
    fo_engine *e = bare_engine();
    fo_completion done[FO_BATCH];
    uint32_t failed;
    refuse(CALL_SUBMIT, 1, UINT32_MAX, EAGAIN);
    submit(e, 0, MANY);
    e->backend->wait(e, FO_FOREVER); /* returns: there are failures to tell */
    failed = e->backend->reap(e, done, 10);
    CHECK_EQ(failed, 10);
    failed += e->backend->reap(e, done, FO_BATCH);
    CHECK(failed >= MANY - 256 && failed < MANY);
    CHECK_EQ(done[0].result, -EAGAIN);
    allow(CALL_SUBMIT);
    take(e, MANY - failed, FO_BATCH, 4096);
    drop_engine(e);
}

/* Woken while the queue is full and the kernel takes nothing: the next wake-up is armed later, and none is missed.  On a ring of
 * the kind that older kernels have, which completes by itself. */
static void woken_while_the_kernel_takes_nothing(void) {
    fo_engine *e;
    fo_completion done[FO_BATCH];
    refuse(CALL_RING, 1, 1, EINVAL);
    e = bare_engine();
    allow(CALL_RING);
    e->backend->wait(e, 0); /* hands the read of the eventfd over */
    refuse(CALL_SUBMIT, 1, UINT32_MAX, EAGAIN);
    submit(e, 0, MANY);
    wake(e);
    (void)e->backend->reap(e, done, FO_BATCH);
    (void)e->backend->reap(e, done, FO_BATCH); /* the wake-up among them, and no entry left to wait for the next */
    e->backend->wait(e, FO_FOREVER);           /* so it does not sleep */
    allow(CALL_SUBMIT);
    e->backend->wait(e, 0);
    for (int turns = 0; turns < 1000 && e->backend->reap(e, done, FO_BATCH) != 0; turns++) {
        e->backend->wait(e, 0);
    }
    wake(e);
    e->backend->wait(e, FO_FOREVER);
    drop_engine(e);
}

/* Many in flight that never end, and only one that does: who waits for several settles for it, and for a wake-up. */
static void few_complete(void) {
    fo_engine *e;
    fo_open o = {.depth = 64};
    fo_completion done[FO_BATCH];
    fo_submission s = {.target = 1, .kind = FO_OP_READ, .length = SLOT};
    uint64_t began;
    int ends[2];
    e = bare_engine();
    REQUIRE(pipe(ends) == 0);
    e->blocks[1] = fo_block_new(e, 1, "pipe", &o);
    REQUIRE(e->blocks[1] != NULL);
    atomic_store(&e->blocks[1]->fd, ends[0]);
    for (s.token = 0; s.token < 16; s.token++) {
        e->backend->submit(e, &s, 1);
    }
    submit(e, 16, 1);
    began = fo_engine_clock(e);
    e->backend->wait(e, began + 60000 * MS);
    CHECK_EQ(e->backend->reap(e, done, FO_BATCH), 1);
    CHECK_EQ(done[0].token, 16);
    wake(e);
    e->backend->wait(e, began + 60000 * MS);
    CHECK_EQ(e->backend->reap(e, done, FO_BATCH), 0);
    CHECK(fo_engine_clock(e) - began < 30000 * MS);
    (void)close(ends[1]);
    take(e, 16, FO_BATCH, 0);
    e->backend->forget(e, 1);
    (void)close(ends[0]);
    free(e->blocks[1]->path);
    free(e->blocks[1]);
    drop_engine(e);
}

/* The same on a kernel that cannot wait for several with a patience for one. */
static void few_complete_on_an_older_kernel(void) {
    features_without = 1u << 15;
    refuse(CALL_RING, 1, 1, LIE);
    few_complete();
    allow(CALL_RING);
    features_without = UINT32_MAX;
}

/* Without registered files and memory: plain addresses and descriptors do. */
static void nothing_registered(void) {
    fo_engine *e;
    fo_submission s = {.token = 1, .kind = FO_OP_WRITE, .length = 4096};
    refuse(CALL_BUFFERS, 1, 1, ENOMEM);
    refuse(CALL_FILE, 1, UINT32_MAX, EINVAL);
    e = bare_engine();
    CHECK_EQ(e->registered, 0);
    CHECK(strstr(e->reason, "RLIMIT_MEMLOCK") != NULL);
    submit(e, 0, 1);
    e->backend->submit(e, &s, 1);
    take(e, 2, FO_BATCH, 4096);
    e->backend->forget(e, 0);
    allow(CALL_BUFFERS);
    allow(CALL_FILE);
    drop_engine(e);
}

int main(void) {
    struct io_uring ring;
    int rc = io_uring_queue_init(8, &ring, 0);
    if (rc != 0) {
        printf("skipped, no io_uring here: %s\n", strerror(-rc));
        return 77;
    }
    io_uring_queue_exit(&ring);
    test_dir_make();
    RUN(more_than_a_queue_holds);
    RUN(kernel_takes_nothing);
    RUN(woken_while_the_kernel_takes_nothing);
    RUN(few_complete);
    RUN(few_complete_on_an_older_kernel);
    RUN(nothing_registered);
    test_dir_remove();
    return test_end();
}
