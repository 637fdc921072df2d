/*
 * test_devices.c: real files and, for root, real block devices, on both real backends: locks, alignment, the end of a device,
 * errors that the kernel itself produces, a device that hangs, and what a forked child may not do.
 */
#include "fanout.h"
#include "testing.h"

#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#define SECOND 1000000000ull
#define MS 1000000ull
#define MIB ((size_t)1 << 20)
#define SLOT ((size_t)64 << 10)

static uint32_t backend;

static fo_engine *open_engine(void) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = SLOT;
    cfg.slot_count = 32;
    cfg.max_streams = 4;
    cfg.quarantine_slots = 8;
    REQUIRE(fo_engine_open(&cfg, reason, &e) == 0);
    return e;
}

static int try_open(fo_engine *e, const char *path, fo_open o, uint16_t *id, fo_outcome *why) {
    return fo_target_open(e, path, &o, 10 * SECOND, id, why);
}

static int write_some(fo_stream *s, const unsigned char *data, size_t n) {
    for (size_t at = 0; at < n; at += SLOT) {
        int rc = fo_stream_write(s, data + at, n - at < SLOT ? n - at : SLOT, 0, 30 * SECOND, NULL, NULL);
        if (rc != 0) {
            return rc;
        }
    }
    return fo_stream_sync(s, 30 * SECOND);
}

/* Says what happened, when something has failed. */
static void show(fo_stream *s) {
    fo_leg legs[4];
    int n = test_failures != 0 ? fo_stream_legs(s, legs, 4) : 0;
    for (int i = 0; i < n; i++) {
        const fo_outcome *f = &legs[i].first;
        printf("  leg %d: state %u, completed %llu, fault %u errno %d at %llu+%llu done %llu after %u attempts\n", i,
               legs[i].state, (unsigned long long)legs[i].completed, f->code, f->err, (unsigned long long)f->offset,
               (unsigned long long)f->length, (unsigned long long)f->done, f->attempts);
    }
}

/* Runs a command and returns its first line. */
static bool shell(char *line, size_t size, const char *format, const char *arg, const char *arg2) {
    char command[1024];
    FILE *p;
    (void)snprintf(command, sizeof command, format, arg, arg2);
    p = popen(command, "re");
    line[0] = '\0';
    if (p == NULL) {
        return false;
    }
    if (fgets(line, (int)size, p) != NULL) {
        line[strcspn(line, "\n")] = '\0';
    }
    return pclose(p) == 0;
}

static uint64_t now_ns(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * SECOND + (uint64_t)ts.tv_nsec;
}

/* ---- files ---- */

static void locks(void) {
    fo_engine *e = open_engine();
    uint16_t a, b;
    fo_outcome why;
    int fd;
    CHECK_EQ(try_open(e, test_path("lock"), (fo_open){.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK}, &a, &why), 0);
    fd = open(test_path("lock"), O_RDWR | O_CLOEXEC);
    CHECK(flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK);
    CHECK_EQ(try_open(e, test_path("lock"), (fo_open){.flags = FO_OPEN_LOCK}, &b, &why), -EBUSY);
    CHECK_EQ(why.phase, FO_OP_OPEN);
    CHECK_EQ(try_open(e, test_path("lock"), (fo_open){.flags = FO_OPEN_READONLY}, &b, &why), 0); /* readers need no lock */
    CHECK_EQ(fo_target_close(e, b, SECOND), 0);
    CHECK_EQ(fo_target_close(e, a, SECOND), 0);
    CHECK_EQ(flock(fd, LOCK_EX | LOCK_NB), 0); /* free again, at once */
    CHECK_EQ(try_open(e, test_path("lock"), (fo_open){.flags = FO_OPEN_LOCK, .lock_wait_ns = 30 * MS}, &b, &why), -EBUSY);
    (void)close(fd);
    CHECK_EQ(try_open(e, test_path("lock"), (fo_open){.flags = FO_OPEN_LOCK}, &b, &why), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    fd = open(test_path("lock"), O_RDWR | O_CLOEXEC);
    CHECK_EQ(flock(fd, LOCK_EX | LOCK_NB), 0); /* closing the engine lets go too */
    (void)close(fd);
}

static void open_flags(void) {
    fo_engine *e = open_engine();
    fo_request q;
    uint16_t id;
    fo_outcome why;
    fo_geometry g;
    struct stat st;
    char path[64];
    (void)unlink(test_path("new"));
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){0}, &id, &why), -ENOENT);
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){.flags = FO_OPEN_CREATE, .size = MIB}, &id, &why), 0);
    CHECK_EQ(fo_target_geometry(e, id, &g), 0);
    CHECK_EQ(g.created, 1);
    CHECK_EQ(g.state, FO_TARGET_ACTIVE);
    CHECK_EQ(g.allocated, MIB);
    CHECK(g.granule >= 512 && (g.granule & (g.granule - 1)) == 0 && g.depth == 8);
    REQUIRE(stat(test_path("new"), &st) == 0);
    CHECK_EQ(st.st_mode & 0777, 0600);
    CHECK_EQ(st.st_size, MIB);
    CHECK_EQ(g.ino, st.st_ino);
    CHECK_EQ(fo_target_finish(e, id, 1000, SECOND, &why), 0);
    REQUIRE(stat(test_path("new"), &st) == 0);
    CHECK_EQ(st.st_size, 1000);
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){.flags = FO_OPEN_CREATE}, &id, &why), -EEXIST);
    (void)unlink(test_path("link"));
    REQUIRE(symlink(test_path("new"), test_path("link")) == 0);
    CHECK_EQ(try_open(e, test_path("link"), (fo_open){.flags = FO_OPEN_NOFOLLOW}, &id, &why), -ELOOP);
    CHECK_EQ(try_open(e, test_path("link"), (fo_open){0}, &id, &why), 0);
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    CHECK_EQ(try_open(e, test_path("link"), (fo_open){.flags = FO_OPEN_NAMED | FO_OPEN_LOCK}, &id, &why), 0);
    q = (fo_request){.target = id, .kind = FO_OP_DIRSYNC};
    CHECK_EQ(fo_run(e, &q, 1, SECOND), 0);
    CHECK_EQ(q.outcome.code, FO_OUTCOME_OK);
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    CHECK_EQ(try_open(e, test_dir, (fo_open){0}, &id, &why), -EISDIR);
    CHECK_EQ(try_open(e, test_dir, (fo_open){.flags = FO_OPEN_READONLY}, &id, &why), -EINVAL);
    REQUIRE(mkfifo(test_path("fifo"), 0600) == 0); /* an open of it would wait for a writer */
    CHECK_EQ(try_open(e, test_path("fifo"), (fo_open){.flags = FO_OPEN_READONLY}, &id, &why), -EINVAL);
    (void)unlink(test_path("fifo"));
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){.granule = 3000}, &id, &why), -EINVAL);
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){.granule = 1 << 20}, &id, &why), -EINVAL); /* larger than a slot */
    CHECK_EQ(try_open(e, test_path("new"), (fo_open){.flags = FO_OPEN_BUFFERED}, &id, &why), 0);
    CHECK_EQ(fo_target_geometry(e, id, &g), 0);
    CHECK_EQ(g.direct, 0);
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    /* as many targets as it can hold, and not one more */
    for (int i = 0; i < FO_MAX_TARGETS; i++) {
        (void)snprintf(path, sizeof path, "many%d", i);
        CHECK_EQ(try_open(e, test_path(path), (fo_open){.flags = FO_OPEN_REPLACE}, &id, &why), 0);
    }
    CHECK_EQ(try_open(e, test_path("many"), (fo_open){.flags = FO_OPEN_REPLACE}, &id, &why), -EMFILE);
    CHECK_EQ(why.cls, FO_CLASS_HOST);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

static void buffered_target(void) {
    fo_engine *e = open_engine();
    unsigned char *data = test_bytes(3 * MIB + 100, 1);
    uint16_t id;
    fo_outcome why;
    fo_stream *s;
    CHECK_EQ(try_open(e, test_path("buffered"), (fo_open){.flags = FO_OPEN_REPLACE | FO_OPEN_BUFFERED}, &id, &why), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(write_some(s, data, 3 * MIB + 100), 0);
    fo_stream_close(s);
    CHECK_EQ(fo_target_finish(e, id, 3 * MIB + 100, SECOND, &why), 0);
    CHECK(test_file_equals(test_path("buffered"), data, 3 * MIB + 100));
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

/* The kernel's own short write and EFBIG: a file size limit that only one of two targets reaches. */
static void file_size_limit(void) {
    fo_engine *e = open_engine();
    struct rlimit old, low;
    unsigned char *data = test_bytes(4 * MIB, 2);
    uint64_t offsets[2] = {0, 8 * MIB};
    uint16_t ids[2];
    fo_leg legs[2];
    fo_outcome why;
    fo_stream *s;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    CHECK_EQ(try_open(e, test_path("below"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 4 * MIB}, &ids[0], &why), 0);
    CHECK_EQ(try_open(e, test_path("above"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 16 * MIB}, &ids[1], &why), 0);
    (void)signal(SIGXFSZ, SIG_IGN);
    low = old;
    low.rlim_cur = 9 * MIB + 40960; /* in the middle of a slot: that write is short, the next says EFBIG */
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    CHECK_EQ(fo_stream_open(e, ids, 2, SECOND, &s), 0);
    CHECK_EQ(fo_stream_place(s, offsets, 4 * MIB), 0);
    CHECK_EQ(write_some(s, data, 4 * MIB), 0);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_SYNCED);
    CHECK_EQ(legs[1].state, FO_LEG_FAILED);
    CHECK_EQ(legs[1].first.err, EFBIG);
    CHECK_EQ(legs[1].first.cls, FO_CLASS_SPACE);
    CHECK(legs[1].first.offset >= 9 * MIB);
    CHECK(legs[1].completed >= MIB / 2);
    fo_stream_close(s);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

static void event_fd(void) {
    fo_engine *e = open_engine();
    struct rlimit old, low;
    unsigned char *data = test_bytes(MIB, 3);
    int fd = fo_event_fd(e);
    uint64_t count;
    fo_event ev[8];
    uint16_t id;
    fo_outcome why;
    fo_stream *s;
    CHECK(fd >= 0);
    CHECK_EQ(fo_event_fd(e), fd);
    CHECK_EQ(try_open(e, test_path("fd"), (fo_open){.flags = FO_OPEN_REPLACE, .size = MIB}, &id, &why), 0);
    (void)fo_events(e, ev, 8, 0);
    CHECK(read(fd, &count, 8) < 0 && errno == EAGAIN);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
    low = old;
    low.rlim_cur = MIB / 2;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &low), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    (void)write_some(s, data, MIB);
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    CHECK(fo_events(e, ev, 1, 5 * SECOND) == 1);
    CHECK_EQ(ev[0].kind, FO_EVENT_FAULT);
    CHECK_EQ(ev[0].err, EFBIG);
    while (fo_events(e, ev, 8, 0) > 0) {
    }
    fo_stream_close(s);
    CHECK_EQ(fo_events(e, ev, 8, 10 * MS) >= 0, 1);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

/* ---- waiting and sharing ---- */

typedef struct blocked {
    fo_stream *s;
    const unsigned char *data;
    int rc;
} blocked;

static void *write_in_thread(void *arg) {
    blocked *b = arg;
    for (int i = 0; i < 4000 && b->rc == 0; i++) { /* the same place again and again: the disk is not ours to fill */
        b->rc = fo_stream_write(b->s, b->data, MIB, 0, 10 * SECOND, NULL, NULL);
        if (b->rc == 0) {
            b->rc = fo_stream_place(b->s, (uint64_t[]){0}, UINT64_MAX);
        }
    }
    return NULL;
}

static void one_caller_at_a_time(void) {
    fo_engine *e = open_engine();
    unsigned char *data = test_bytes(MIB, 4);
    blocked b = {.data = data};
    pthread_t thread;
    fo_outcome why;
    uint16_t id;
    int rc = 0;
    CHECK_EQ(try_open(e, test_path("one"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 64 * MIB}, &id, &why), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &b.s), 0);
    REQUIRE(pthread_create(&thread, NULL, write_in_thread, &b) == 0);
    for (int i = 0; i < 1000000 && rc != -EBUSY; i++) {
        rc = fo_stream_write(b.s, data, 0, 0, 0, NULL, NULL);
    }
    CHECK_EQ(rc, -EBUSY);
    CHECK_EQ(fo_stream_abort(b.s), 0); /* any thread may abort, also while another is inside */
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK(b.rc == -ECANCELED || b.rc == -EBUSY); /* -EBUSY: our empty write was inside just then */
    CHECK_EQ(fo_stream_drained(b.s, 5 * SECOND), 0);
    fo_stream_close(b.s);
    (void)unlink(test_path("one"));
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

/* Four admissions; three clients stall with a slot in their hands; the fourth has to get on. */
static void stalled_clients(void) {
    fo_engine *e = open_engine();
    unsigned char *data = test_bytes(8 * MIB, 5);
    fo_stream *s[5];
    fo_outcome why;
    uint16_t id;
    CHECK_EQ(try_open(e, test_path("stalled"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 32 * MIB}, &id, &why), 0);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s[i]), 0);
        CHECK_EQ(fo_stream_place(s[i], (uint64_t[]){(uint64_t)i * 8 * MIB}, UINT64_MAX), 0);
        CHECK_EQ(fo_stream_write(s[i], data, 100, 0, SECOND, NULL, NULL), 0);
    }
    CHECK_EQ(fo_stream_open(e, &id, 1, 10 * MS, &s[4]), -ETIMEDOUT);
    CHECK_EQ(write_some(s[3], data + 100, 8 * MIB - 100), 0);
    for (int i = 0; i < 4; i++) {
        fo_stream_close(s[i]);
    }
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s[4]), 0);
    fo_stream_close(s[4]);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

/* Handles and waiting callers survive the engine's end. */
static void close_with_open_streams(void) {
    fo_engine *e = open_engine();
    unsigned char *data = test_bytes(MIB, 6);
    fo_stream *s;
    fo_leg leg;
    fo_outcome why;
    uint16_t id;
    CHECK_EQ(try_open(e, test_path("open"), (fo_open){.flags = FO_OPEN_REPLACE, .size = MIB}, &id, &why), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(fo_stream_write(s, data, MIB - 5, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    CHECK_EQ(fo_stream_write(s, data, 5, 0, SECOND, NULL, NULL), -ESHUTDOWN);
    CHECK_EQ(fo_stream_legs(s, &leg, 1), 1);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    fo_stream_close(s);
    free(data);
}

static void forked_child(void) {
    fo_engine *e = open_engine();
    fo_outcome why;
    fo_info info;
    uint16_t id;
    pid_t child;
    int status = -1, fd;
    CHECK_EQ(try_open(e, test_path("fork"), (fo_open){.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK}, &id, &why), 0);
    child = fork();
    if (child == 0) {
        bool good = fo_target_close(e, id, SECOND) == -EOWNERDEAD && fo_engine_close(e, 0) == -EOWNERDEAD;
        fo_engine_info(e, &info);
        (void)sleep(1); /* outlives the parent's close below */
        _exit(good && info.dead == 1 ? 0 : 1);
    }
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    fd = open(test_path("fork"), O_RDWR | O_CLOEXEC);
    CHECK_EQ(flock(fd, LOCK_EX | LOCK_NB), 0); /* the child does not hold the lock */
    (void)close(fd);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
}

/* ---- block devices ---- */

typedef struct loop {
    char dev[64], backing[320];
} loop;

static bool loop_make(loop *l, const char *backing, const char *size, const char *options) {
    char unused[64];
    (void)snprintf(l->backing, sizeof l->backing, "%s", backing);
    return shell(unused, sizeof unused, "truncate -s %s %s", size, backing) &&
           shell(l->dev, sizeof l->dev, "losetup -f --show %s %s 2>/dev/null", options, backing) && l->dev[0] == '/';
}

static void loop_drop(const loop *l) {
    char unused[64];
    (void)shell(unused, sizeof unused, "losetup -d %s%s", l->dev, "");
    (void)unlink(l->backing);
}

static void device_of_sector(const char *sector, uint32_t expected) {
    char options[64];
    loop l;
    fo_engine *e;
    fo_geometry g;
    fo_outcome why;
    fo_stream *s;
    fo_leg leg;
    uint16_t id;
    unsigned char *data = test_bytes(9 * MIB, 7);
    (void)snprintf(options, sizeof options, "-b %s --direct-io=on", sector);
    if (!loop_make(&l, test_path("loop"), "8M", options)) {
        free(data);
        SKIP("no loop device");
    }
    e = open_engine();
    CHECK_EQ(try_open(e, l.dev, (fo_open){.flags = FO_OPEN_LOCK}, &id, &why), 0);
    CHECK_EQ(fo_target_geometry(e, id, &g), 0);
    CHECK_EQ(g.is_block, 1);
    CHECK_EQ(g.size, 8 * MIB);
    CHECK_EQ(g.sector_logical, expected);
    CHECK(g.granule >= expected);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(write_some(s, data, 8 * MIB), 0); /* to the last sector */
    show(s);
    CHECK_EQ(fo_stream_legs(s, &leg, 1), 1);
    CHECK_EQ(leg.state, FO_LEG_SYNCED);
    fo_stream_close(s);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(fo_stream_place(s, (uint64_t[]){8 * MIB - 32768}, UINT64_MAX), 0);
    (void)write_some(s, data, SLOT); /* would cross the end */
    CHECK_EQ(fo_stream_legs(s, &leg, 1), 1);
    CHECK_EQ(leg.state, FO_LEG_FAILED);
    CHECK_EQ(leg.first.err, ENOSPC);
    CHECK_EQ(leg.first.cls, FO_CLASS_SPACE);
    CHECK_EQ(leg.first.attempts, 0); /* refused before the kernel saw it */
    fo_stream_close(s);
    {
        uint16_t other;
        CHECK_EQ(try_open(e, l.dev, (fo_open){.flags = FO_OPEN_LOCK}, &other, &why), -EBUSY);
    }
    CHECK_EQ(fo_target_close(e, id, 5 * SECOND), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    CHECK(test_file_equals(test_path("loop"), data, 8 * MIB));
    loop_drop(&l);
    free(data);
}

static void device_512(void) {
    if (geteuid() != 0) {
        SKIP("needs root");
    }
    device_of_sector("512", 512);
}

static void device_4096(void) {
    if (geteuid() != 0) {
        SKIP("needs root");
    }
    device_of_sector("4096", 4096);
}

/* A loop device over a full tmpfs: errors made by the block layer, beside a healthy target. */
static void device_full(void) {
    char unused[64];
    loop l = {0};
    fo_engine *e;
    fo_outcome why;
    fo_stream *s;
    fo_leg legs[2];
    uint16_t ids[2];
    unsigned char *data = test_bytes(4 * MIB, 8);
    if (geteuid() != 0 || mkdir(test_path("small"), 0700) != 0 ||
        !shell(unused, sizeof unused, "mount -t tmpfs -o size=2M%s none %s", "", test_path("small"))) {
        free(data);
        SKIP("needs root and tmpfs");
    }
    if (!loop_make(&l, test_path("small/backing"), "4M", "")) {
        (void)umount(test_path("small"));
        free(data);
        SKIP("no loop device");
    }
    e = open_engine();
    CHECK_EQ(try_open(e, l.dev, (fo_open){0}, &ids[0], &why), 0);
    CHECK_EQ(try_open(e, test_path("beside"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 4 * MIB}, &ids[1], &why), 0);
    CHECK_EQ(fo_stream_open(e, ids, 2, SECOND, &s), 0);
    CHECK_EQ(write_some(s, data, 4 * MIB), 0);
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED);
    CHECK(legs[0].first.err == ENOSPC || legs[0].first.err == EIO);
    show(s);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK(test_file_equals(test_path("beside"), data, 4 * MIB));
    fo_stream_close(s);
    CHECK_EQ(fo_engine_close(e, 5 * SECOND), 0);
    loop_drop(&l);
    CHECK_EQ(umount(test_path("small")), 0);
    free(data);
}

/* A device that hangs: throttled to a crawl by the block layer.  The target is let go on time, the healthy one does not
 * notice, closing the engine does not wait for it, and the bytes that land late are the ones that were submitted. */
static void device_hangs(void) {
    static const char *const group = "/sys/fs/cgroup/blkio/fanout-test";
    char line[128], path[128];
    loop l;
    struct stat st;
    FILE *f;
    fo_engine *e;
    fo_outcome why;
    fo_stream *s;
    fo_leg legs[2];
    fo_info info;
    uint16_t ids[2];
    uint64_t began, took;
    unsigned char *data;
    if (geteuid() != 0 || (mkdir(group, 0700) != 0 && errno != EEXIST)) {
        SKIP("needs root and the blkio controller of cgroup v1");
    }
    if (!loop_make(&l, test_path("hang"), "8M", "--direct-io=on") || stat(l.dev, &st) != 0) {
        SKIP("no loop device");
    }
    data = test_bytes(2 * MIB, 9);
    e = open_engine();
    CHECK_EQ(try_open(e, l.dev, (fo_open){.soft_ns = 100 * MS, .hard_ns = 300 * MS, .flags = FO_OPEN_LOCK}, &ids[0], &why), 0);
    CHECK_EQ(try_open(e, test_path("well"), (fo_open){.flags = FO_OPEN_REPLACE, .size = 2 * MIB}, &ids[1], &why), 0);
    (void)snprintf(path, sizeof path, "%s/blkio.throttle.write_bps_device", group);
    f = fopen(path, "we");
    REQUIRE(f != NULL);
    (void)fprintf(f, "%u:%u 4096\n", major(st.st_rdev), minor(st.st_rdev));
    (void)fclose(f);
    /* The engine thread does the submitting, so the whole process goes in. */
    (void)shell(line, sizeof line, "echo $PPID > %s/cgroup.procs%s", group, "");
    began = now_ns();
    CHECK_EQ(fo_stream_open(e, ids, 2, SECOND, &s), 0);
    CHECK_EQ(write_some(s, data, 2 * MIB), 0);
    took = now_ns() - began;
    CHECK_EQ(fo_stream_legs(s, legs, 2), 2);
    CHECK_EQ(legs[0].state, FO_LEG_FAILED);
    CHECK_EQ(legs[0].first.code, FO_OUTCOME_TIMED_OUT);
    /* At 4096 bytes a second the device itself takes minutes: how much sooner is for the benchmark to say. */
    CHECK(legs[0].first.latency_ns >= 300 * MS && legs[0].first.latency_ns < 60 * SECOND);
    CHECK(took < 60 * SECOND);
    CHECK_EQ(legs[1].state, FO_LEG_SYNCED);
    CHECK(test_file_equals(test_path("well"), data, 2 * MIB));
    fo_engine_info(e, &info);
    CHECK(info.slots_quarantined >= 1);
    fo_stream_close(s);
    began = now_ns();
    CHECK_EQ(fo_engine_close(e, 50 * MS), -ETIMEDOUT);
    CHECK(now_ns() - began < 60 * SECOND);
    printf("  let go after %llu ms, closed in %llu ms\n", (unsigned long long)(legs[0].first.latency_ns / MS),
           (unsigned long long)((now_ns() - began) / MS));
    (void)shell(line, sizeof line, "echo $PPID > /sys/fs/cgroup/blkio/cgroup.procs%s%s", "", "");
    f = fopen(path, "we");
    if (f != NULL) {
        (void)fprintf(f, "%u:%u 0\n", major(st.st_rdev), minor(st.st_rdev));
        (void)fclose(f);
    }
    for (int i = 0; i < 100; i++) { /* what was in flight lands, then the kernel lets the lock go */
        int fd = open(l.dev, O_RDWR | O_EXCL | O_CLOEXEC);
        if (fd >= 0) {
            (void)close(fd);
            break;
        }
        (void)usleep(50000);
    }
    {
        size_t size;
        unsigned char *file = test_read_file(test_path("hang"), &size);
        CHECK(memcmp(file, data, SLOT) == 0);
        free(file);
    }
    loop_drop(&l);
    (void)rmdir(group);
    free(data);
}

static void run_all(void) {
    RUN(locks);
    RUN(open_flags);
    RUN(buffered_target);
    RUN(file_size_limit);
    RUN(event_fd);
    RUN(one_caller_at_a_time);
    RUN(stalled_clients);
    RUN(close_with_open_streams);
    RUN(forked_child);
    RUN(device_512);
    RUN(device_4096);
    RUN(device_full);
    RUN(device_hangs);
}

int main(void) {
    static const uint32_t kinds[] = {FO_BACKEND_THREADS, FO_BACKEND_URING};
    test_dir_make();
    for (size_t i = 0; i < 2; i++) {
        fo_config cfg;
        fo_engine *e;
        char reason[160];
        char unused[64];
        backend = kinds[i];
        fo_config_init(&cfg);
        cfg.backend = backend;
        if (fo_engine_open(&cfg, reason, &e) != 0) {
            printf("backend %s: cannot run here, %s\n", fo_backend_name(backend), reason);
            continue;
        }
        CHECK_EQ(fo_engine_close(e, SECOND), 0);
        printf("backend %s\n", fo_backend_name(backend));
        run_all();
        (void)shell(unused, sizeof unused, "rm -rf '%s'/*%s", test_dir, "");
    }
    test_dir_remove();
    return test_end();
}
