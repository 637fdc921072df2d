/*
 * fo_arena.c: the mapping of the slots.
 *
 * Huge pages are the largest single saving of the whole engine: a 1 MiB direct write costs 29 to 49 ms CPU per GiB from
 * 4 KiB pages and 4.5 to 9.5 from huge ones, because one segment replaces 256.  Transparent huge pages have to be asked for
 * on most systems (`madvise`), and asking is not getting: the count is read back for who asks.
 *
 * MADV_WIPEONFORK: a forked child must neither see clients' bytes nor make the parent copy pages that a device is reading.
 * MADV_DONTFORK would leave a hole that another mapping of the child could fill.
 */
#include "fo_arena.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_SIZE ((size_t)2 << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* Bytes of [base, base+size) on transparent huge pages, from /proc/self/smaps; -1: cannot tell. */
static long long huge_bytes(const fo_arena *a) {
    char line[512];
    unsigned long long from, to;
    long long kib, total = -1;
    bool inside = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    if (f == NULL) {
        return -1;
    }
    while (fgets(line, sizeof line, f) != NULL) {
        if (sscanf(line, "%llx-%llx ", &from, &to) == 2) {
            inside = from < (uintptr_t)a->base + a->size && to > (uintptr_t)a->base;
        } else if (inside && sscanf(line, "AnonHugePages: %lld kB", &kib) == 1) {
            total = (total < 0 ? 0 : total) + kib * 1024;
        }
    }
    (void)fclose(f);
    return total;
}

/* Faulted in now: the first write of a client must not pay for page faults, and a budget that does not fit fails here. */
static void populate(const fo_arena *a) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (madvise(a->base, a->size, MADV_POPULATE_WRITE) == 0) {
        return;
    }
    for (size_t i = 0; i < a->size; i += page) {
        ((volatile unsigned char *)a->base)[i] = 0;
    }
}

int fo_arena_open(fo_arena *a, size_t size, bool resident) {
    uintptr_t start;
    memset(a, 0, sizeof *a);
    a->size = size;
    a->mapped = size + HUGE_SIZE;
    a->mapping = mmap(NULL, a->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->mapping == MAP_FAILED) {
        return -ENOMEM;
    }
    start = ((uintptr_t)a->mapping + HUGE_SIZE - 1) / HUGE_SIZE * HUGE_SIZE;
    a->base = (unsigned char *)start;
    a->advised = madvise(a->base, size, MADV_HUGEPAGE) == 0;
    if (resident) {
        populate(a);
    }
    (void)madvise(a->base, size, MADV_WIPEONFORK); /* before Linux 4.14 the child shares the pages, and never looks */
    return 0;
}

uint32_t fo_arena_huge_pages(const fo_arena *a, char *reason, size_t reason_size) {
    if (a->advised && a->size >= HUGE_SIZE) {
        long long huge = huge_bytes(a);
        if (huge < 0 || huge >= (long long)(a->size / HUGE_SIZE * HUGE_SIZE) / 2) {
            return 1;
        }
    }
    (void)snprintf(reason, reason_size, "%s",
                   a->size < HUGE_SIZE ? "small pages: the budget is less than one huge page"
                   : a->advised        ? "small pages: the kernel has no transparent huge pages to give"
                                       : "small pages: this kernel refuses MADV_HUGEPAGE");
    return 0;
}

void fo_arena_close(fo_arena *a) {
    if (a->mapping != NULL) {
        (void)munmap(a->mapping, a->mapped);
    }
    memset(a, 0, sizeof *a);
}
