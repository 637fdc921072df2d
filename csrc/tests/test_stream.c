/*
 * test_stream.c: bytes through the real backends onto real files: what a stream promises when nothing fails.
 */
#include "fanout.h"
#include "testing.h"

#include <sys/eventfd.h>

#define SECOND 1000000000ull
#define MIB ((size_t)1 << 20)

static uint32_t backend;

static fo_engine *open_engine(uint32_t slot_size) {
    fo_config cfg;
    fo_engine *e = NULL;
    char reason[160];
    fo_config_init(&cfg);
    cfg.backend = backend;
    cfg.slot_size = slot_size;
    cfg.slot_count = 32;
    cfg.max_streams = 4;
    cfg.quarantine_slots = 8;
    int rc = fo_engine_open(&cfg, reason, &e);
    if (rc != 0) {
        printf("  engine: %d %s\n", rc, reason);
    }
    return e;
}

static uint16_t open_target(fo_engine *e, const char *path, uint32_t flags, uint64_t size) {
    fo_open o = {.flags = flags, .size = size};
    fo_outcome why;
    uint16_t id = UINT16_MAX;
    int rc = fo_target_open(e, path, &o, 10 * SECOND, &id, &why);
    CHECK_EQ(rc, 0);
    return id;
}

/* Any chunk size, any length, three targets: the files hold exactly the bytes, the digest is the bytes'. */
static void write_and_compare(size_t total, size_t chunk) {
    fo_engine *e = open_engine(256 << 10);
    unsigned char *data = test_bytes(total, total * 31 + chunk);
    uint8_t digest[16], expected[16];
    fo_stream *s = NULL;
    fo_leg legs[3];
    uint16_t ids[3];
    char name[32];
    REQUIRE(e != NULL);
    for (int i = 0; i < 3; i++) {
        (void)snprintf(name, sizeof name, "t%d", i);
        (void)unlink(test_path(name));
        ids[i] = open_target(e, test_path(name), FO_OPEN_CREATE | FO_OPEN_LOCK, 0);
    }
    CHECK_EQ(fo_stream_open(e, ids, 3, SECOND, &s), 0);
    for (size_t at = 0; at < total;) {
        size_t n = total - at < chunk ? total - at : chunk, taken = 0;
        uint32_t failed = 0;
        CHECK_EQ(fo_stream_write(s, data + at, n, 0, 10 * SECOND, &taken, &failed), 0);
        CHECK_EQ(taken, n);
        CHECK_EQ(failed, 0);
        at += n;
    }
    CHECK_EQ(fo_stream_digest(s, digest), 0);
    fo_digest(data, total, expected);
    CHECK(memcmp(digest, expected, 16) == 0);
    CHECK_EQ(fo_stream_sync(s, 30 * SECOND), 0);
    CHECK_EQ(fo_stream_legs(s, legs, 3), 3);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(legs[i].state, FO_LEG_SYNCED);
        CHECK(legs[i].synced >= total && legs[i].synced == legs[i].accepted);
        CHECK_EQ(legs[i].first.code, FO_OUTCOME_OK);
    }
    fo_stream_close(s);
    for (int i = 0; i < 3; i++) {
        fo_outcome why;
        CHECK_EQ(fo_target_finish(e, ids[i], (int64_t)total, 10 * SECOND, &why), 0);
        (void)snprintf(name, sizeof name, "t%d", i);
        CHECK(test_file_equals(test_path(name), data, total));
    }
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

static void empty_object(void) { write_and_compare(0, 1); }
static void one_byte(void) { write_and_compare(1, 1); }
static void odd_chunks(void) { write_and_compare(3 * MIB + 12345, 7777); }
static void small_chunks(void) { write_and_compare(300000, 100); }
static void exactly_one_slot(void) { write_and_compare(256 << 10, 256 << 10); }
static void large_chunks(void) { write_and_compare(24 * MIB + 1, 5 * MIB); }
static void beyond_the_arena(void) { write_and_compare(40 * MIB, 64 << 10); }

/* Two spans of one stream at different offsets per target, framing bytes outside of the digest, sums per block. */
static void placed_spans(void) {
    fo_engine *e = open_engine(64 << 10);
    size_t body = 200000, span = (4096 + body + 4095) / 4096 * 4096;
    unsigned char *data = test_bytes(body, 5), header[4096];
    uint64_t offsets[2], sums[8], block[8];
    uint8_t digest[16], expected[16];
    unsigned char *image = calloc(1, span);
    uint16_t ids[2];
    fo_stream *s = NULL;
    REQUIRE(e != NULL && image != NULL);
    memset(header, 0x5a, sizeof header);
    memcpy(image, header, sizeof header);
    memcpy(image + 4096, data, body);
    ids[0] = open_target(e, test_path("p0"), FO_OPEN_REPLACE, 4 * MIB);
    ids[1] = open_target(e, test_path("p1"), FO_OPEN_REPLACE, 4 * MIB);
    CHECK_EQ(fo_stream_open(e, ids, 2, SECOND, &s), 0);
    CHECK(4096 % fo_stream_granule(s) == 0);
    fo_digest(data, body, expected);
    for (uint64_t round = 0; round < 2; round++) {
        int count;
        offsets[0] = round * MIB;
        offsets[1] = 2 * MIB - round * MIB;
        CHECK_EQ(fo_stream_place(s, offsets, span), 0);
        CHECK_EQ(fo_stream_write(s, header, 4096, FO_WRITE_RAW, SECOND, NULL, NULL), 0);
        CHECK_EQ(fo_stream_place(s, offsets, span), -EBUSY);
        CHECK_EQ(fo_stream_write(s, data, body, 0, SECOND, NULL, NULL), 0);
        CHECK_EQ(fo_stream_digest(s, digest), 0);
        CHECK(memcmp(digest, expected, 16) == 0);
        CHECK_EQ(fo_stream_write(s, data, 4096, 0, SECOND, NULL, NULL), -EFBIG);
        CHECK_EQ(fo_stream_pad(s, SECOND), 0);
        CHECK_EQ(fo_stream_position(s), span);
        count = fo_stream_sums(s, sums, 8);
        CHECK_EQ(count, (span + 65535) / 65536);
        for (int i = 0; i < count; i++) {
            size_t at = (size_t)i * 65536;
            block[i] = fo_sum(image + at, span - at < 65536 ? span - at : 65536);
            CHECK(block[i] == sums[i]);
        }
    }
    CHECK_EQ(fo_stream_sync(s, 10 * SECOND), 0);
    fo_stream_close(s);
    for (int i = 0; i < 2; i++) {
        size_t size;
        unsigned char *file;
        CHECK_EQ(fo_target_close(e, ids[i], SECOND), 0);
        file = test_read_file(test_path(i == 0 ? "p0" : "p1"), &size);
        CHECK_EQ(size, 4 * MIB);
        CHECK(memcmp(file + (i == 0 ? 0 : 2 * MIB), image, span) == 0);
        CHECK(memcmp(file + MIB, image, span) == 0);
        free(file);
    }
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
    free(image);
}

/* What was written is read back from the medium: all of it, also the tail behind the sums; one changed bit is found, in its
 * block, on its target, and the other target is right. */
static void read_back(void) {
    fo_engine *e = open_engine(64 << 10);
    size_t body = 200000, foot = 70001, span = (body + foot + 4095) / 4096 * 4096;
    unsigned char *data = test_bytes(body + foot, 17), byte;
    uint64_t sums[8], media[8];
    fo_readback regions[2];
    uint16_t ids[2];
    fo_info info;
    fo_stream *s = NULL;
    int count, fd;
    REQUIRE(e != NULL);
    ids[0] = open_target(e, test_path("b0"), FO_OPEN_REPLACE, MIB);
    ids[1] = open_target(e, test_path("b1"), FO_OPEN_REPLACE, MIB);
    CHECK_EQ(fo_stream_open(e, ids, 2, SECOND, &s), 0);
    CHECK_EQ(fo_stream_media(s, media, 8), -EINVAL);
    CHECK_EQ(fo_stream_prove(s), 0);
    CHECK_EQ(fo_stream_place(s, (uint64_t[]){4096, 0}, span), 0);
    CHECK_EQ(fo_stream_write(s, data, body, 0, SECOND, NULL, NULL), 0);
    count = fo_stream_sums(s, sums, 8);
    CHECK_EQ(count, 4);
    CHECK(sums[3] == fo_sum(data + 3 * 65536, body - 3 * 65536)); /* what a footer holds ends where the data ends */
    CHECK_EQ(fo_stream_write(s, data + body, foot, FO_WRITE_RAW, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 10 * SECOND), 0);
    CHECK_EQ(fo_stream_sums(s, sums, 8), 4);
    CHECK(sums[3] == fo_sum(data + 3 * 65536, body - 3 * 65536)); /* and goes on doing so */
    count = fo_stream_media(s, media, 8);
    CHECK_EQ(count, (span + 65535) / 65536);
    CHECK(media[3] == fo_sum(data + 3 * 65536, 65536));
    for (uint32_t i = 0; i < 2; i++) {
        regions[i] = (fo_readback){.target = ids[i], .offset = i == 0 ? 4096 : 0, .length = span, .sums = media};
    }
    CHECK_EQ(fo_read_back(e, regions, 2, SECOND), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(regions[i].outcome.code, FO_OUTCOME_OK);
        CHECK_EQ(regions[i].outcome.done, span);
    }
    fd = open(test_path("b1"), O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && pread(fd, &byte, 1, 2 * 65536 + 5) == 1);
    byte ^= 0x10;
    REQUIRE(pwrite(fd, &byte, 1, 2 * 65536 + 5) == 1 && fsync(fd) == 0 && close(fd) == 0);
    CHECK_EQ(fo_read_back(e, regions, 2, SECOND), 0);
    CHECK_EQ(regions[0].outcome.code, FO_OUTCOME_OK);
    CHECK_EQ(regions[1].outcome.code, FO_OUTCOME_MISMATCH);
    CHECK_EQ(regions[1].outcome.cls, FO_CLASS_MEDIUM);
    CHECK_EQ(regions[1].outcome.err, EILSEQ);
    CHECK_EQ(regions[1].outcome.phase, FO_OP_READ);
    CHECK_EQ(regions[1].outcome.offset, 2 * 65536);
    CHECK_EQ(regions[1].outcome.length, 65536);
    regions[0].offset = MIB; /* past the end of the file */
    CHECK_EQ(fo_read_back(e, regions, 1, SECOND), 0);
    CHECK_EQ(regions[0].outcome.code, FO_OUTCOME_SHORT);
    fo_stream_close(s);
    fo_engine_info(e, &info);
    CHECK_EQ(info.slots_free, info.slot_count);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

/* One object over two streams: the digest goes on where the first one stopped, which is closed by then. */
static void carried_digest(void) {
    fo_engine *e = open_engine(64 << 10);
    unsigned char *data = test_bytes(300001, 11);
    uint8_t digest[16], expected[16];
    fo_unfinished unfinished;
    fo_stream *a, *b;
    uint16_t id;
    REQUIRE(e != NULL);
    id = open_target(e, test_path("carry"), FO_OPEN_REPLACE, MIB);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &a), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &b), 0);
    CHECK_EQ(fo_stream_place(b, (uint64_t[]){MIB / 2}, UINT64_MAX), 0);
    CHECK_EQ(fo_stream_write(a, data, 100003, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_suspend(a, &unfinished), 0);
    CHECK_EQ(fo_stream_digest(a, digest), 0); /* it is empty now */
    fo_digest("", 0, expected);
    CHECK(memcmp(digest, expected, 16) == 0);
    fo_stream_close(a);
    CHECK_EQ(fo_stream_resume(b, &unfinished), 0);
    CHECK_EQ(fo_stream_write(b, data + 100003, 200000 - 2, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_digest(b, digest), 0);
    fo_digest(data, 300001, expected);
    CHECK(memcmp(digest, expected, 16) == 0);
    fo_stream_close(b);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
}

static void requests(void) {
    fo_engine *e = open_engine(64 << 10);
    unsigned char *data = test_bytes(20 * 4096, 9), *back = calloc(1, 20 * 4096);
    fo_request r[21];
    uint16_t id;
    REQUIRE(e != NULL && back != NULL);
    id = open_target(e, test_path("requests"), FO_OPEN_REPLACE | FO_OPEN_LOCK, MIB);
    memset(r, 0, sizeof r);
    for (int i = 0; i < 20; i++) { /* more than there are control slots */
        r[i] = (fo_request){.target = id, .kind = FO_OP_WRITE, .offset = (uint64_t)i * 4096, .length = 4096,
                            .data = data + i * 4096};
    }
    CHECK_EQ(fo_run(e, r, 20, SECOND), 0);
    r[20] = (fo_request){.target = id, .kind = FO_OP_FLUSH};
    CHECK_EQ(fo_run(e, r + 20, 1, SECOND), 0);
    for (int i = 0; i < 21; i++) {
        CHECK_EQ(r[i].outcome.code, FO_OUTCOME_OK);
        r[i].kind = FO_OP_READ;
        r[i].data = back + i * 4096;
    }
    CHECK_EQ(fo_run(e, r, 20, SECOND), 0);
    CHECK(memcmp(data, back, 20 * 4096) == 0);
    r[0] = (fo_request){.target = id, .kind = FO_OP_READ, .offset = 1, .length = 4096, .data = back};
    r[1] = (fo_request){.target = id, .kind = FO_OP_READ, .offset = MIB, .length = 4096, .data = back};
    r[2] = (fo_request){.target = 63, .kind = FO_OP_FLUSH};
    r[3] = (fo_request){.target = id, .kind = FO_OP_CLOSE};
    CHECK_EQ(fo_run(e, r, 4, SECOND), 0);
    CHECK_EQ(r[0].outcome.code, FO_OUTCOME_NOT_SUBMITTED);
    CHECK_EQ(r[0].outcome.err, EINVAL);
    CHECK_EQ(r[1].outcome.code, FO_OUTCOME_SHORT); /* the end of the file */
    CHECK_EQ(r[2].outcome.err, EBADF);
    CHECK_EQ(r[3].outcome.err, EINVAL);
    CHECK_EQ(fo_target_close(e, id, SECOND), 0);
    CHECK_EQ(fo_target_close(e, id, SECOND), -EBADF);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    free(data);
    free(back);
}

/* Told once per asking, of a slot or a leg or an event alike, and never after the engine was closed. */
static void watches(void) {
    fo_engine *e = open_engine(64 << 10);
    int fds[17], fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    unsigned char byte = 1;
    uint64_t count;
    uint16_t id;
    fo_stream *s;
    REQUIRE(e != NULL && fd >= 0);
    id = open_target(e, test_path("w"), FO_OPEN_REPLACE, MIB);
    CHECK_EQ(fo_watch(e, fd), 0);
    CHECK_EQ(fo_watch(e, fd), 0);
    CHECK_EQ(fo_stream_open(e, &id, 1, SECOND, &s), 0);
    CHECK_EQ(fo_stream_write(s, &byte, 1, 0, SECOND, NULL, NULL), 0);
    CHECK_EQ(fo_stream_sync(s, 10 * SECOND), 0);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count);
    CHECK_EQ(count, 1);
    fo_stream_close(s);
    CHECK(read(fd, &count, sizeof count) < 0 && errno == EAGAIN);
    for (int i = 0; i < 17; i++) {
        fds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        CHECK_EQ(fo_watch(e, fds[i]), i < 16 ? 0 : -ENOBUFS);
    }
    fo_unwatch(e, fds[0]);
    fo_unwatch(e, fds[0]);
    CHECK_EQ(fo_watch(e, fd), 0);
    fo_unwatch(e, -1);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count);
    CHECK(read(fds[0], &count, sizeof count) < 0);
    CHECK_EQ(fo_watch(e, fd), 0);
    CHECK_EQ(fo_engine_close(e, SECOND), 0);
    CHECK_EQ(read(fd, &count, sizeof count), sizeof count); /* whoever waits looks again */
    for (int i = 0; i < 17; i++) {
        (void)close(fds[i]);
    }
    (void)close(fd);
}

static void run_all(void) {
    RUN(empty_object);
    RUN(one_byte);
    RUN(odd_chunks);
    RUN(small_chunks);
    RUN(exactly_one_slot);
    RUN(large_chunks);
    RUN(beyond_the_arena);
    RUN(placed_spans);
    RUN(read_back);
    RUN(carried_digest);
    RUN(requests);
    RUN(watches);
}

int main(void) {
    static const uint32_t kinds[] = {FO_BACKEND_THREADS, FO_BACKEND_URING, FO_BACKEND_FAULTY};
    test_dir_make();
    for (size_t i = 0; i < 3; i++) {
        backend = kinds[i];
        printf("backend %s\n", fo_backend_name(backend));
        run_all();
    }
    test_dir_remove();
    return test_end();
}
