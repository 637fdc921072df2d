/*
 * fo_probe.h: what an open descriptor says about the sizes and alignments it wants.
 */
#ifndef FO_PROBE_H
#define FO_PROBE_H

#include "fanout.h"

/* Fills in the geometry of fd; `direct` and `created` are the caller's.  -EINVAL: neither a regular file nor a block device,
 * or a granule that is no power of two or larger than a slot.  Blocks as long as the file system does. */
int fo_probe(int fd, uint32_t slot_size, const fo_open *opt, fo_geometry *g);

#endif
