/*
 * fo_arena.h: the one piece of memory that data passes through.  Fixed at open, aligned to 2 MiB, resident unless all is simulated.
 */
#ifndef FO_ARENA_H
#define FO_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fo_arena {
    unsigned char *base;
    size_t size;
    void *mapping; /* what was mapped: base rounded down, to be given back whole */
    size_t mapped;
    bool advised; /* huge pages were asked for */
} fo_arena;

/* -ENOMEM.  Resident: every page is there when it returns. */
int fo_arena_open(fo_arena *a, size_t size, bool resident);
/* Whether the pages are huge, as fo_info.huge_pages; else reason gets one sentence.  The kernel looks at every page of the process
 * for it, which takes long in a large one. */
uint32_t fo_arena_huge_pages(const fo_arena *a, char *reason, size_t reason_size);
void fo_arena_close(fo_arena *a);

#endif
