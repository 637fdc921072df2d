/*
 * fo_arena.h: the one piece of memory that data passes through.  Fixed at open, aligned to 2 MiB, resident.
 */
#ifndef FO_ARENA_H
#define FO_ARENA_H

#include <stddef.h>
#include <stdint.h>

typedef struct fo_arena {
    unsigned char *base;
    size_t size;
    void *mapping; /* what was mapped: base rounded down, to be given back whole */
    size_t mapped;
    uint32_t huge_pages; /* as fo_info.huge_pages */
} fo_arena;

/* -ENOMEM.  reason gets one sentence when the pages are small. */
int fo_arena_open(fo_arena *a, size_t size, char *reason, size_t reason_size);
void fo_arena_close(fo_arena *a);

#endif
