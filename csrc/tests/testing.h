/*
 * testing.h: a small frame for the C tests.  Each program runs its cases, prints what failed and where, and ends with
 * "N passed, N failed[, N skipped]".  Exit status: 0, 1, or 77 when everything was skipped.
 */
#ifndef TESTING_H
#define TESTING_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int test_failures, test_passed, test_failed, test_skipped;
static const char *test_skip_reason;
static char test_dir[256];

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_failures++;                                                                       \
            printf("  %s:%d: %s\n", __FILE__, __LINE__, #condition);                               \
        }                                                                                          \
    } while (0)

#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long check_a = (long long)(a), check_b = (long long)(b);                              \
        if (check_a != check_b) {                                                                  \
            test_failures++;                                                                       \
            printf("  %s:%d: %s is %lld, not %s = %lld\n", __FILE__, __LINE__, #a, check_a, #b,    \
                   check_b);                                                                       \
        }                                                                                          \
    } while (0)

/* For set-up without which the rest makes no sense. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("  %s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#define SKIP(reason)                                                                               \
    do {                                                                                           \
        test_skip_reason = (reason);                                                               \
        return;                                                                                    \
    } while (0)

static inline void test_run(const char *name, void (*body)(void)) {
    test_failures = 0;
    test_skip_reason = NULL;
    body();
    if (test_skip_reason != NULL) {
        test_skipped++;
        printf("- %s: skipped, %s\n", name, test_skip_reason);
    } else if (test_failures != 0) {
        test_failed++;
        printf("! %s: failed\n", name);
    } else {
        test_passed++;
    }
    (void)fflush(stdout);
}
#define RUN(body) test_run(#body, body)

static inline int test_end(void) {
    printf("%d passed, %d failed", test_passed, test_failed);
    if (test_skipped != 0) {
        printf(", %d skipped", test_skipped);
    }
    printf("\n");
    return test_failed != 0 ? 1 : test_passed == 0 && test_skipped != 0 ? 77 : 0;
}

/* A directory of our own on the disk (not tmpfs, where O_DIRECT means little); removed by test_dir_remove. */
static inline void test_dir_make(void) {
    const char *base = getenv("FO_TEST_DIR");
    (void)snprintf(test_dir, sizeof test_dir, "%s/fanout-test-XXXXXX", base != NULL ? base : "/var/tmp");
    REQUIRE(mkdtemp(test_dir) != NULL);
}

static inline void test_dir_remove(void) {
    char command[320];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", test_dir);
    REQUIRE(system(command) == 0);
}

static inline const char *test_path(const char *name) {
    static _Thread_local char paths[16][320];
    static _Thread_local int next;
    char *path = paths[next++ % 16];
    (void)snprintf(path, sizeof paths[0], "%s/%s", test_dir, name);
    return path;
}

/* The same bytes for the same seed, everywhere. */
static inline uint64_t test_random(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15ull;
    uint64_t z = *state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline unsigned char *test_bytes(size_t n, uint64_t seed) {
    unsigned char *p = malloc(n + 8);
    REQUIRE(p != NULL);
    for (size_t i = 0; i < n; i += 8) {
        uint64_t x = test_random(&seed);
        memcpy(p + i, &x, 8);
    }
    return p;
}

static inline unsigned char *test_read_file(const char *path, size_t *size) {
    struct stat st;
    unsigned char *p;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t at = 0;
    REQUIRE(fd >= 0 && fstat(fd, &st) == 0);
    *size = (size_t)st.st_size;
    p = malloc(*size + 1);
    REQUIRE(p != NULL);
    while (at < *size) {
        ssize_t n = pread(fd, p + at, *size - at, (off_t)at);
        REQUIRE(n > 0);
        at += (size_t)n;
    }
    (void)close(fd);
    return p;
}

static inline bool test_file_equals(const char *path, const unsigned char *bytes, size_t n) {
    size_t size;
    unsigned char *p = test_read_file(path, &size);
    bool equal = size == n && memcmp(p, bytes, n) == 0;
    free(p);
    return equal;
}

#endif
