/*
 * test_dead.c: every call on an engine that is no more: in a forked child, after the close, and closed under a caller who waits.
 */
#include "../fo_engine.h"
#include "../fo_stream.h"
#include "refusing.h"

#include <sys/wait.h>

#define SLOT ((size_t)64 << 10)
#define SECOND 1000000000ull

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define end_child _exit /* what the parent holds is no leak of the child */
#else
#define end_child exit /* counts for `make coverage` */
#endif

static held nothing; /* when nothing is open */

typedef struct rig {
    fo_engine *e;
    uint16_t id;
    fo_stream *s, *other;
    unsigned char *bytes;
} rig;

static fo_engine *open_engine(uint32_t backend) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 16;
    cfg.max_streams = 2;
    cfg.quarantine_slots = 4;
    cfg.control_slots = 1;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    return e;
}

static rig make_rig_without_streams(uint32_t backend) {
    rig r = {.e = open_engine(backend), .bytes = test_bytes(16 * SLOT, 1)};
    fo_open o = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .size = 1 << 20, .depth = 2};
    REQUIRE(fo_target_open(r.e, test_path("dead"), &o, SECOND, &r.id, NULL) == 0);
    return r;
}

static rig make_rig(uint32_t backend) {
    rig r = make_rig_without_streams(backend);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &r.s) == 0);
    REQUIRE(fo_stream_open(r.e, &r.id, 1, SECOND, &r.other) == 0);
    return r;
}

/* ---- every call ---- */

static void every_call(rig *r, int expected) {
    fo_open o = {.flags = FO_OPEN_REPLACE};
    fo_request request = {.target = r->id, .kind = FO_OP_FLUSH};
    fo_readback region = {.target = r->id};
    fo_fault fault = {.nth = 1};
    uint64_t offset = 0, sums[1];
    uint8_t digest[FO_DIGEST_SIZE];
    fo_unfinished unfinished = {{0}};
    fo_geometry geometry;
    fo_event event;
    fo_outcome why;
    fo_stream *s;
    uint16_t id;
    void *lent;
    size_t room;
    CHECK_EQ(fo_target_open(r->e, "x", &o, SECOND, &id, &why), expected);
    CHECK_EQ(why.code, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(why.err, -expected);
    CHECK_EQ(fo_target_geometry(r->e, r->id, &geometry), expected);
    CHECK_EQ(fo_target_finish(r->e, r->id, 0, SECOND, &why), expected);
    CHECK_EQ(fo_target_close(r->e, r->id, SECOND), expected);
    fo_target_forget(r->e, r->id);
    CHECK_EQ(fo_run(r->e, &request, 1, SECOND), expected);
    CHECK_EQ(fo_read_back(r->e, &region, 1, SECOND), 0); /* nothing to read: nobody is asked */
    region.length = 4096;
    region.sums = sums;
    CHECK_EQ(fo_read_back(r->e, &region, 1, SECOND), expected);
    CHECK_EQ(fo_events(r->e, &event, 1, SECOND), expected);
    CHECK_EQ(fo_event_fd(r->e), expected);
    CHECK_EQ(fo_watch(r->e, 1), expected);
    fo_unwatch(r->e, 1);
    CHECK_EQ(fo_faults_set(r->e, &fault, 1), expected);
    CHECK_EQ(fo_faults_advance(r->e, 1), expected);
    CHECK_EQ(fo_faults_release(r->e, r->id), expected);
    CHECK_EQ(fo_faults_journal(r->e, -1), expected);
    CHECK_EQ(fo_faults_power(r->e, 0), expected);
    CHECK_EQ(fo_stream_open(r->e, &r->id, 1, SECOND, &s), expected);
    CHECK_EQ(fo_stream_keep(r->s, 1), expected);
    CHECK_EQ(fo_stream_place(r->s, &offset, 4096), expected);
    CHECK_EQ(fo_stream_write(r->s, r->bytes, 1, 0, SECOND, NULL, NULL), expected);
    CHECK_EQ(fo_stream_lease(r->s, 1, SECOND, &lent, &room), expected);
    CHECK_EQ(fo_stream_pad(r->s, SECOND), expected);
    CHECK_EQ(fo_stream_digest(r->s, digest), expected);
    CHECK_EQ(fo_stream_suspend(r->s, &unfinished), expected);
    CHECK_EQ(fo_stream_resume(r->s, &unfinished), expected);
    CHECK_EQ(fo_stream_sums(r->s, sums, 1), expected);
    CHECK_EQ(fo_stream_prove(r->s), expected);
    CHECK_EQ(fo_stream_media(r->s, sums, 1), expected);
    CHECK_EQ(fo_stream_seal(r->s, SECOND), expected);
    CHECK_EQ(fo_stream_sync(r->s, SECOND), expected);
    CHECK_EQ(fo_stream_eject(r->s, r->id), expected);
    CHECK_EQ(fo_stream_drained(r->s, SECOND), expected);
    CHECK_EQ(fo_engine_close(r->e, SECOND), expected);
}

static void in_a_forked_child(void) {
    rig r = make_rig(FO_BACKEND_THREADS);
    void *lent;
    size_t room;
    int status = -1;
    pid_t child;
    CHECK(fo_event_fd(r.e) >= 0);
    CHECK_EQ(fo_stream_lease(r.other, 1, SECOND, &lent, &room), 0);
    (void)fflush(stdout);
    child = fork();
    if (child == 0) {
        fo_info info;
        fo_leg leg;
        CHECK_EQ(fo_engine_dead(r.e), 1);
        CHECK_EQ(fo_now(r.e), 0);
        fo_engine_look(r.e);
        fo_engine_info(r.e, &info);
        CHECK_EQ(info.dead, 1);
        CHECK_EQ(fo_stream_legs(r.s, &leg, 1), -EOWNERDEAD);
        CHECK_EQ(fo_stream_abort(r.s), -EOWNERDEAD);
        CHECK_EQ(fo_stream_commit(r.other, 1, 0, NULL), -EOWNERDEAD);
        fo_stream_return(r.other);
        every_call(&r, -EOWNERDEAD);
        fo_stream_close(r.s);
        end_child(test_failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK_EQ(fo_engine_dead(r.e), 0);
    CHECK_EQ(fo_stream_commit(r.other, 1, 0, NULL), 0);
    fo_stream_close(r.s);
    fo_stream_close(r.other);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
}

/* A handle outlives the engine: it says what happened, and that there will be no more. */
static void after_the_close(void) {
    static const uint32_t backends[] = {FO_BACKEND_THREADS, FO_BACKEND_FAULTY};
    for (int i = 0; i < 2; i++) {
        rig r = make_rig(backends[i]);
        fo_engine *second = open_engine(FO_BACKEND_FAULTY);
        fo_leg leg;
        void *lent;
        size_t room;
        CHECK_EQ(fo_stream_lease(r.other, 10, SECOND, &lent, &room), 0);
        CHECK_EQ(fo_engine_close(r.e, FO_FOREVER), 0); /* the first of two in the list of engines */
        CHECK_EQ(fo_engine_close(second, FO_FOREVER), 0);
        every_call(&r, -ESHUTDOWN);
        CHECK(backends[i] == FO_BACKEND_FAULTY ? fo_now(r.e) == 0 : fo_now(r.e) != 0);
        CHECK_EQ(fo_stream_abort(r.s), 0); /* the close has */
        CHECK_EQ(fo_stream_legs(r.s, &leg, 1), 1);
        CHECK_EQ(leg.state, FO_LEG_FAILED);
        fo_stream_close(r.other);
        CHECK_EQ(fo_stream_commit(r.other, 10, 0, NULL), -EINVAL); /* lent to a stream that is closed: only to be given back */
        fo_stream_return(r.other);
        fo_stream_close(r.s);
        free(r.bytes);
        check_nothing_left(nothing);
    }
}

/* ---- under a caller who waits ---- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static atomic_bool at_the_gate;

static void wait_at_the_gate(void) {
    atomic_store(&at_the_gate, true);
    (void)pthread_mutex_lock(&gate);
    (void)pthread_mutex_unlock(&gate);
}

static void shut_the_gate(void) {
    atomic_store(&at_the_gate, false);
    (void)pthread_mutex_lock(&gate);
    atomic_store(&before_write, wait_at_the_gate);
    atomic_store(&before_open, wait_at_the_gate);
    atomic_store(&before_flush, wait_at_the_gate);
}

/* Whoever has not begun yet would be called back, and hang nobody. */
static void see_one_at_the_gate(void) {
    while (!atomic_load(&at_the_gate)) {
        (void)usleep(100);
    }
}

static void lift_the_hooks(void) {
    atomic_store(&before_write, NULL);
    atomic_store(&before_open, NULL);
    atomic_store(&before_flush, NULL);
}

static void open_the_gate(void) {
    lift_the_hooks();
    (void)pthread_mutex_unlock(&gate);
}

typedef struct waiter {
    rig *r;
    int (*wait)(rig *r);
    int rc;
    pthread_t thread;
} waiter;

static void *waiter_main(void *arg) {
    waiter *w = arg;
    w->rc = w->wait(w->r);
    return NULL;
}

/* Runs it in a thread, until it waits inside. */
static void begin_waiting(waiter *w, rig *r, int (*wait)(rig *r)) {
    uint32_t inside = 0;
    *w = (waiter){.r = r, .wait = wait};
    REQUIRE(pthread_create(&w->thread, NULL, waiter_main, w) == 0);
    for (int i = 0; i < 10000 && inside == 0; i++) {
        (void)pthread_mutex_lock(&r->e->mutex);
        inside = r->e->slots_waiting + r->e->state_waiting;
        (void)pthread_mutex_unlock(&r->e->mutex);
        (void)usleep(100);
    }
    CHECK(inside != 0);
}

static int end_waiting(waiter *w) {
    REQUIRE(pthread_join(w->thread, NULL) == 0);
    return w->rc;
}

static int wait_for_an_event(rig *r) {
    fo_event event;
    int n = fo_events(r->e, &event, 1, FO_FOREVER); /* the streams' abortion may be one */
    return n > 0 ? 0 : n;
}
static int wait_to_be_admitted(rig *r) {
    fo_stream *s;
    return fo_stream_open(r->e, &r->id, 1, FO_FOREVER, &s);
}
static int wait_for_a_slot(rig *r) { return fo_stream_write(r->s, r->bytes, 16 * SLOT, 0, FO_FOREVER, NULL, NULL); }
static int wait_for_the_sync(rig *r) { return fo_stream_sync(r->s, FO_FOREVER); }
static int wait_until_drained(rig *r) { return fo_stream_drained(r->s, FO_FOREVER); }
static int wait_for_a_write(rig *r) {
    fo_request request = {.target = r->id, .kind = FO_OP_WRITE, .length = 4096, .data = r->bytes};
    int rc = fo_run(r->e, &request, 1, FO_FOREVER);
    return rc == 0 && request.outcome.code != FO_OUTCOME_OK ? -request.outcome.err : rc;
}

static void closed_under_a_caller(void) {
    static const struct {
        int (*wait)(rig *r);
        bool hung; /* something of the stream hangs meanwhile */
        int rc;
    } cases[] = {
        {wait_for_an_event, false, 0},
        {wait_to_be_admitted, false, -ESHUTDOWN},
        {wait_to_be_admitted, true, -ESHUTDOWN},
        {wait_for_a_slot, true, -ESHUTDOWN},
        {wait_for_the_sync, true, -ECANCELED},
        {wait_until_drained, true, -ETIMEDOUT},
        {wait_for_a_write, true, -ETIMEDOUT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rig r = make_rig(FO_BACKEND_THREADS);
        waiter w;
        if (cases[i].hung) {
            shut_the_gate();
            CHECK_EQ(fo_stream_write(r.s, r.bytes, SLOT, 0, SECOND, NULL, NULL), 0);
            see_one_at_the_gate();
        }
        begin_waiting(&w, &r, cases[i].wait);
        CHECK_EQ(fo_engine_close(r.e, cases[i].hung ? SECOND / 100 : 20 * SECOND), cases[i].hung ? -ETIMEDOUT : 0);
        CHECK_EQ(end_waiting(&w), cases[i].rc);
        if (cases[i].hung) {
            open_the_gate();
        }
        fo_stream_close(r.s);
        fo_stream_close(r.other);
        free(r.bytes);
        check_nothing_left(nothing);
        if (test_failures != 0) {
            printf("  case %zu\n", i);
            return;
        }
    }
}

static int wait_for_an_open(rig *r) {
    fo_open o = {.flags = FO_OPEN_REPLACE};
    uint16_t id;
    return fo_target_open(r->e, test_path("opened"), &o, FO_FOREVER, &id, NULL);
}
static int wait_for_the_close(rig *r) { return fo_target_close(r->e, r->id, FO_FOREVER); }
static int wait_for_the_finish(rig *r) { return fo_target_finish(r->e, r->id, 100, FO_FOREVER, NULL); }

/* Where no stream is open. */
static void closed_under_a_target(void) {
    static int (*const waits[])(rig *) = {wait_for_an_event, wait_for_an_open, wait_for_the_finish, wait_for_the_close,
                                          wait_for_the_finish};
    enum { BESIDE_A_WRITE = 3 }; /* from there on; the finish before it hangs in its own flush */
    for (size_t i = 0; i < sizeof waits / sizeof waits[0]; i++) {
        rig r = make_rig_without_streams(FO_BACKEND_THREADS);
        waiter writing, w;
        shut_the_gate();
        if (i >= BESIDE_A_WRITE) {
            begin_waiting(&writing, &r, wait_for_a_write);
        }
        begin_waiting(&w, &r, waits[i]);
        if (waits[i] == wait_for_an_open) { /* what is being opened is nobody's yet */
            fo_geometry g;
            CHECK_EQ(fo_target_close(r.e, 1, 0), -EBADF);
            CHECK_EQ(fo_target_geometry(r.e, 1, &g), 0);
            CHECK_EQ(g.state, FO_TARGET_OPENING);
        }
        while (i >= BESIDE_A_WRITE) { /* both are inside */
            bool both;
            (void)pthread_mutex_lock(&r.e->mutex);
            both = r.e->state_waiting == 2;
            (void)pthread_mutex_unlock(&r.e->mutex);
            if (both) {
                break;
            }
            (void)usleep(100);
        }
        CHECK_EQ(fo_engine_close(r.e, i == 0 ? 20 * SECOND : SECOND / 100), i == 0 ? 0 : -ETIMEDOUT);
        CHECK_EQ(end_waiting(&w), i == 0 ? 0 : -ETIMEDOUT);
        CHECK(i < BESIDE_A_WRITE || end_waiting(&writing) == -ETIMEDOUT);
        open_the_gate();
        free(r.bytes);
        check_nothing_left(nothing);
    }
}

/* Who was to wait for a lock for a long time is given up, and does not wait on with nobody to have it. */
static void given_up_at_a_lock(void) {
    rig r = make_rig_without_streams(FO_BACKEND_THREADS);
    fo_engine *second = open_engine(FO_BACKEND_THREADS);
    fo_open o = {.flags = FO_OPEN_LOCK, .lock_wait_ns = 1000 * SECOND};
    uint16_t id;
    CHECK_EQ(fo_target_open(second, test_path("dead"), &o, SECOND / 10, &id, NULL), -ETIMEDOUT);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0); /* the first of two in the list of engines */
    CHECK_EQ(fo_engine_close(second, 20 * SECOND), 0);
    free(r.bytes);
    check_nothing_left(nothing);
}

/* No stream begins on a target that is being finished: it would go on when that is gone. */
static void opened_while_it_is_finished(void) {
    rig r = make_rig_without_streams(FO_BACKEND_THREADS);
    waiter finishing;
    fo_stream *s;
    shut_the_gate();
    begin_waiting(&finishing, &r, wait_for_the_finish);
    CHECK_EQ(fo_stream_open(r.e, &r.id, 1, SECOND, &s), -EINVAL);
    open_the_gate();
    CHECK_EQ(end_waiting(&finishing), 0);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
    check_nothing_left(nothing);
}

static int wait_for_the_end(rig *r) { return fo_engine_close(r->e, FO_FOREVER); }

/* The open succeeds when the engine is about to end: it is closed again, and the end waits for that. */
static void opened_too_late(void) {
    rig r = make_rig_without_streams(FO_BACKEND_THREADS);
    waiter opening, closing_it;
    bool closing_now = false;
    shut_the_gate();
    begin_waiting(&opening, &r, wait_for_an_open);
    closing_it = (waiter){.r = &r, .wait = wait_for_the_end};
    REQUIRE(pthread_create(&closing_it.thread, NULL, waiter_main, &closing_it) == 0);
    while (!closing_now) {
        (void)pthread_mutex_lock(&r.e->mutex);
        closing_now = r.e->closing;
        (void)pthread_mutex_unlock(&r.e->mutex);
        (void)usleep(100);
    }
    open_the_gate();
    CHECK_EQ(end_waiting(&opening), -ESHUTDOWN);
    CHECK_EQ(end_waiting(&closing_it), 0);
    free(r.bytes);
    check_nothing_left(nothing);
}

/* A fork waits for an open that is under way, but not for one that hangs. */
static void fork_beside_an_open_that_hangs(void) {
    rig r = make_rig_without_streams(FO_BACKEND_THREADS);
    waiter w;
    pid_t child;
    int status = -1;
    shut_the_gate();
    begin_waiting(&w, &r, wait_for_an_open);
    see_one_at_the_gate();
    (void)fflush(stdout);
    child = fork();
    if (child == 0) {
        lift_the_hooks(); /* what counts for `make coverage` opens, too */
        end_child(fo_engine_dead(r.e) == 1 ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    open_the_gate();
    CHECK_EQ(end_waiting(&w), 0);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
    check_nothing_left(nothing);
}

/* Descriptors of this process that lead to what begins so. */
static unsigned leading_to(const char *begin) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    const struct dirent *entry;
    REQUIRE(d != NULL);
    while ((entry = readdir(d)) != NULL) {
        char link[512], target[512] = "";
        (void)snprintf(link, sizeof link, "/proc/self/fd/%s", entry->d_name);
        (void)!readlink(link, target, sizeof target - 1);
        n += strncmp(target, begin, strlen(begin)) == 0 ? 1 : 0;
    }
    (void)closedir(d);
    return n;
}

/* What a close has left behind is no child's either: it would hold the lock when the write has ended long ago. */
static void fork_after_a_close_that_left_a_write(void) {
    rig r = make_rig_without_streams(FO_BACKEND_THREADS);
    waiter writing;
    pid_t child;
    int status = -1;
    shut_the_gate();
    begin_waiting(&writing, &r, wait_for_a_write);
    CHECK_EQ(fo_engine_close(r.e, SECOND / 100), -ETIMEDOUT);
    CHECK_EQ(end_waiting(&writing), -ETIMEDOUT);
    CHECK_EQ(leading_to(test_path("dead")), 1);
    (void)fflush(stdout);
    child = fork();
    if (child == 0) {
        lift_the_hooks();
        end_child(leading_to(test_path("dead")) == 0 ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    open_the_gate();
    free(r.bytes);
    check_nothing_left(nothing);
}

/* The only control slot is taken by a request that hangs: the second request never had one. */
static void closed_under_a_second_request(void) {
    rig r = make_rig(FO_BACKEND_THREADS);
    waiter first, second;
    shut_the_gate();
    begin_waiting(&first, &r, wait_for_a_write);
    begin_waiting(&second, &r, wait_for_a_write);
    while (true) {
        bool both;
        (void)pthread_mutex_lock(&r.e->mutex);
        both = r.e->slots_waiting == 1 && r.e->state_waiting == 1;
        (void)pthread_mutex_unlock(&r.e->mutex);
        if (both) {
            break;
        }
        (void)usleep(100);
    }
    CHECK_EQ(fo_engine_close(r.e, SECOND / 100), -ETIMEDOUT);
    CHECK_EQ(end_waiting(&first), -ETIMEDOUT);
    CHECK_EQ(end_waiting(&second), -ESHUTDOWN);
    open_the_gate();
    fo_stream_close(r.s);
    fo_stream_close(r.other);
    free(r.bytes);
    check_nothing_left(nothing);
}

/* The handle is closed by another thread while its caller waits inside: he is sent home first. */
static void stream_closed_under_its_caller(void) {
    rig r = make_rig(FO_BACKEND_THREADS);
    waiter w;
    shut_the_gate();
    begin_waiting(&w, &r, wait_for_a_slot);
    fo_stream_close(r.s);
    CHECK_EQ(end_waiting(&w), -ECANCELED);
    open_the_gate();
    fo_stream_close(r.other);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
}

/* The same while his bytes are copied, which nobody can interrupt. */
static const fo_hash_unit *real_hash;
static rig *closing;
static pthread_t closer;

static void *closer_main(void *arg) {
    fo_stream_close(((rig *)arg)->s);
    return NULL;
}

static void close_and_copy(void *dst, const void *src, size_t len, fo_hash *sum64, fo_hash *sum128) {
    bool waits = false;
    REQUIRE(pthread_create(&closer, NULL, closer_main, closing) == 0);
    while (!waits) {
        (void)pthread_mutex_lock(&closing->e->mutex);
        waits = closing->e->state_waiting != 0;
        (void)pthread_mutex_unlock(&closing->e->mutex);
    }
    real_hash->copy(dst, src, len, sum64, sum128);
}

static void stream_closed_while_it_copies(void) {
    rig r = make_rig(FO_BACKEND_THREADS);
    fo_hash_unit slow = *r.e->hash;
    real_hash = r.e->hash;
    closing = &r;
    slow.copy = close_and_copy;
    r.e->hash = &slow;
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 100, 0, SECOND, NULL, NULL), -ECANCELED);
    REQUIRE(pthread_join(closer, NULL) == 0);
    r.e->hash = real_hash;
    fo_stream_close(r.other);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
}

/* Aborted while the last slot is padded: a seal that comes too late says so. */
static void abort_and_add(const void *data, size_t len, fo_hash *sum64, fo_hash *sum128) {
    CHECK_EQ(fo_stream_abort(closing->s), 0);
    real_hash->add(data, len, sum64, sum128);
}

static void aborted_while_it_pads(void) {
    rig r = make_rig(FO_BACKEND_THREADS);
    fo_hash_unit slow = *r.e->hash;
    real_hash = r.e->hash;
    closing = &r;
    slow.add = abort_and_add;
    CHECK_EQ(fo_stream_write(r.s, r.bytes, 100, 0, SECOND, NULL, NULL), 0);
    r.e->hash = &slow;
    CHECK_EQ(fo_stream_seal(r.s, SECOND), -ECANCELED);
    r.e->hash = real_hash;
    fo_stream_close(r.s);
    fo_stream_close(r.other);
    CHECK_EQ(fo_engine_close(r.e, SECOND), 0);
    free(r.bytes);
}

int main(void) {
    test_dir_make();
    nothing = holding();
    RUN(in_a_forked_child);
    RUN(after_the_close);
    RUN(closed_under_a_caller);
    RUN(closed_under_a_target);
    RUN(given_up_at_a_lock);
    RUN(opened_while_it_is_finished);
    RUN(opened_too_late);
    RUN(fork_beside_an_open_that_hangs);
    RUN(fork_after_a_close_that_left_a_write);
    RUN(closed_under_a_second_request);
    RUN(stream_closed_under_its_caller);
    RUN(stream_closed_while_it_copies);
    RUN(aborted_while_it_pads);
    test_dir_remove();
    return test_end();
}
