/*
 * fo_assert.h: what cannot happen stops the process, in every build.
 *
 * A broken invariant of this engine means that bytes may be on their way to the wrong place.  Going on would be worse than
 * ending, so the check stays on in release builds; it costs a compare per slot, not per byte.
 */
#ifndef FO_ASSERT_H
#define FO_ASSERT_H

#include <stdio.h>
#include <stdlib.h>

#define FO_ASSERT(condition)                                                                       \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            (void)fprintf(stderr, "fanout: %s:%d: broken invariant: %s\n", __FILE__, __LINE__,     \
                          #condition);                                                             \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
