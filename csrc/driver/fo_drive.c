/*
 * fo_drive.c: the core without Python: writes bytes to targets through one stream and prints one JSON object.
 *
 * What it answers: how fast and how dear is the core by itself.  The Python API is measured against it (same slot, chunk,
 * targets, in one interleaved run).
 *
 *   fo_drive [--slot 1M] [--chunk 1M] [--bytes 1G] [--source 64M] [--slots 64] [--depth 8] [--backend auto|io_uring|threads]
 *            [--span 0] [--prepare] [--no-sync] TARGET...
 *
 * --source   size of the client's memory that is written round and round: larger than the caches, so that a copy costs what
 *            it costs for real data
 * --span     place the bytes in spans of this length, with a sum per slot (what the store does); 0: none, digest only
 * --prepare  writes every target once before the clock starts: the first use of allocated space costs two to three times as
 *            much, and is a question of its own
 */
#include "../fanout.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#define MINUTE (60ull * 1000000000ull)

typedef struct options {
    uint64_t slot, chunk, bytes, source, span;
    uint32_t slots, depth, backend, count;
    bool prepare, sync;
    char **paths;
} options;

typedef struct result {
    double seconds, cpu_seconds;
    int rc;
    uint32_t failed;
    uint8_t digest[FO_DIGEST_SIZE];
} result;

static double clock_s(clockid_t id) {
    struct timespec ts;
    (void)clock_gettime(id, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static double cpu_s(void) {
    struct rusage u;
    (void)getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static uint64_t parse_size(const char *text) {
    char *end;
    uint64_t n = strtoull(text, &end, 10);
    switch (*end) {
    case 'k': case 'K': return n << 10;
    case 'm': case 'M': return n << 20;
    case 'g': case 'G': return n << 30;
    default: return n;
    }
}

static int usage(void) {
    (void)fprintf(stderr, "usage: fo_drive [--slot N] [--chunk N] [--bytes N] [--source N] [--slots N] [--depth N]\n"
                          "                [--backend NAME] [--span N] [--prepare] [--no-sync] TARGET...\n");
    return 2;
}

static bool parse_backend(const char *name, uint32_t *backend) {
    for (*backend = 0; *backend <= FO_BACKEND_THREADS; ++*backend) {
        if (strcmp(name, fo_backend_name(*backend)) == 0) {
            return true;
        }
    }
    return false;
}

static bool parse(int argc, char **argv, options *o) {
    int i = 1;
    *o = (options){.slot = 1 << 20, .chunk = 1 << 20, .bytes = 1 << 30, .source = 64 << 20, .slots = 64, .sync = true};
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        const char *name = argv[i] + 2, *value;
        if (strcmp(name, "prepare") == 0) {
            o->prepare = true;
            continue;
        }
        if (strcmp(name, "no-sync") == 0) {
            o->sync = false;
            continue;
        }
        if (++i == argc) {
            return false;
        }
        value = argv[i];
        if (strcmp(name, "slot") == 0) {
            o->slot = parse_size(value);
        } else if (strcmp(name, "chunk") == 0) {
            o->chunk = parse_size(value);
        } else if (strcmp(name, "bytes") == 0) {
            o->bytes = parse_size(value);
        } else if (strcmp(name, "source") == 0) {
            o->source = parse_size(value);
        } else if (strcmp(name, "span") == 0) {
            o->span = parse_size(value);
        } else if (strcmp(name, "slots") == 0) {
            o->slots = (uint32_t)parse_size(value);
        } else if (strcmp(name, "depth") == 0) {
            o->depth = (uint32_t)parse_size(value);
        } else if (strcmp(name, "backend") != 0 || !parse_backend(value, &o->backend)) {
            return false;
        }
    }
    o->paths = argv + i;
    o->count = (uint32_t)(argc - i);
    return o->count != 0 && o->count <= FO_MAX_LEGS && o->chunk != 0 && o->chunk <= o->source;
}

static int place(fo_stream *s, const options *o, uint64_t at) {
    uint64_t offsets[FO_MAX_LEGS], length = o->bytes - at < o->span ? o->bytes - at : o->span;
    uint64_t granule = fo_stream_granule(s);
    int rc = fo_stream_pad(s, MINUTE);
    for (uint32_t i = 0; i < o->count; i++) {
        offsets[i] = at;
    }
    return rc != 0 ? rc : fo_stream_place(s, offsets, (length + granule - 1) / granule * granule);
}

static int write_bytes(fo_stream *s, const options *o, const unsigned char *source, uint32_t *failed) {
    uint64_t at = 0, from = 0;
    int rc = 0;
    while (rc == 0 && at < o->bytes) {
        uint64_t n = o->bytes - at < o->chunk ? o->bytes - at : o->chunk;
        if (o->span != 0 && at % o->span == 0) {
            rc = place(s, o, at);
        }
        if (o->span != 0 && n > o->span - at % o->span) {
            n = o->span - at % o->span;
        }
        if (from + n > o->source) {
            from = 0;
        }
        rc = rc != 0 ? rc : fo_stream_write(s, source + from, n, 0, MINUTE, NULL, failed);
        from += n;
        at += n;
    }
    return rc;
}

static void measure(fo_engine *e, const options *o, const uint16_t *ids, const unsigned char *source, result *r) {
    fo_stream *s = NULL;
    double started = clock_s(CLOCK_MONOTONIC), cpu = cpu_s();
    r->failed = 0;
    r->rc = fo_stream_open(e, ids, o->count, MINUTE, &s);
    if (r->rc == 0) {
        r->rc = write_bytes(s, o, source, &r->failed);
    }
    if (r->rc == 0) {
        r->rc = fo_stream_digest(s, r->digest);
    }
    if (r->rc == 0 && o->sync) {
        r->rc = fo_stream_sync(s, MINUTE);
    } else if (r->rc == 0) {
        r->rc = fo_stream_pad(s, MINUTE);
        r->rc = r->rc != 0 ? r->rc : fo_stream_drained(s, MINUTE);
    }
    fo_stream_close(s);
    r->seconds = clock_s(CLOCK_MONOTONIC) - started;
    r->cpu_seconds = cpu_s() - cpu;
}

static void print(fo_engine *e, const options *o, const uint16_t *ids, const result *r) {
    double gib = (double)o->bytes / (double)(1 << 30);
    fo_info info;
    fo_engine_look(e);
    fo_engine_info(e, &info);
    printf("{\"bytes\": %llu, \"targets\": %u, \"seconds\": %.6f, \"cpu_seconds\": %.6f, ", (unsigned long long)o->bytes,
           o->count, r->seconds, r->cpu_seconds);
    printf("\"client_gib_per_second\": %.4f, \"cpu_ms_per_client_gib\": %.2f, ", gib / r->seconds,
           r->cpu_seconds * 1000 / gib);
    printf("\"slot\": %u, \"slots\": %u, \"chunk\": %llu, \"span\": %llu, \"backend\": \"%s\", ", info.slot_size,
           info.slot_count, (unsigned long long)o->chunk, (unsigned long long)o->span, fo_backend_name(info.backend));
    printf("\"huge_pages\": %u, \"registered\": %u, \"hash_isa\": %u, \"steps\": %llu, \"wakeups\": %llu, ", info.huge_pages,
           info.registered, info.hash_isa, (unsigned long long)info.steps, (unsigned long long)info.wakeups);
    printf("\"digest\": \"");
    for (int i = 0; i < FO_DIGEST_SIZE; i++) {
        printf("%02x", r->digest[i]);
    }
    printf("\", \"direct\": [");
    for (uint32_t i = 0; i < o->count; i++) {
        fo_geometry g;
        (void)fo_target_geometry(e, ids[i], &g);
        printf("%s%u", i != 0 ? ", " : "", g.direct);
    }
    printf("], \"failed\": %u, \"status\": %d}\n", r->failed, r->rc);
}

static int run(const options *o, const unsigned char *source) {
    fo_config cfg;
    fo_engine *e;
    char reason[160];
    uint16_t ids[FO_MAX_LEGS];
    result r;
    int rc;
    fo_config_init(&cfg);
    cfg.slot_size = (uint32_t)o->slot;
    cfg.slot_count = o->slots;
    cfg.backend = o->backend;
    rc = fo_engine_open(&cfg, reason, &e);
    if (rc != 0) {
        (void)fprintf(stderr, "fo_drive: engine: %s (%s)\n", strerror(-rc), reason);
        return 1;
    }
    for (uint32_t i = 0; i < o->count; i++) {
        /* In whole slots: that is how far the last write may reach. */
        uint64_t size = (o->bytes + o->slot - 1) / o->slot * o->slot;
        fo_open open = {.flags = FO_OPEN_REPLACE | FO_OPEN_LOCK, .size = size, .depth = o->depth};
        fo_outcome why;
        rc = fo_target_open(e, o->paths[i], &open, MINUTE, &ids[i], &why);
        if (rc != 0) {
            (void)fprintf(stderr, "fo_drive: %s: %s (phase %u)\n", o->paths[i], strerror(-rc), why.phase);
            (void)fo_engine_close(e, MINUTE);
            return 1;
        }
    }
    if (o->prepare) {
        measure(e, o, ids, source, &r);
    }
    measure(e, o, ids, source, &r);
    print(e, o, ids, &r);
    rc = fo_engine_close(e, MINUTE);
    return r.rc != 0 || r.failed != 0 || rc != 0;
}

int main(int argc, char **argv) {
    options o;
    unsigned char *source;
    uint64_t x = 88172645463325252ull;
    if (!parse(argc, argv, &o)) {
        return usage();
    }
    source = mmap(NULL, o.source, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (source == MAP_FAILED) {
        perror("fo_drive");
        return 1;
    }
    for (uint64_t i = 0; i + 8 <= o.source; i += 8) { /* not compressible: some devices would cheat */
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(source + i, &x, 8);
    }
    return run(&o, source);
}
