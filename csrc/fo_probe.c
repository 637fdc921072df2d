/*
 * fo_probe.c: the granule is the largest of what the kernel demands (statx DIOALIGN), what the device can write without
 * reading first (physical sector), and what the file system allocates (its block).  4096 is the usual answer and is never
 * assumed: a loop device has 512, a tape-like disk may have 64 KiB.
 */
#include "fo_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

/* The kernel's layout of struct statx, which older C libraries do not know to the end. */
typedef struct statx_answer {
    uint32_t mask, blksize;
    uint64_t unused[18];
    uint32_t dio_mem_align, dio_offset_align;
    uint64_t spare[12];
} statx_answer;
_Static_assert(sizeof(statx_answer) == 256, "the kernel fills in 256 bytes");
_Static_assert(offsetof(statx_answer, dio_mem_align) == 0x98, "as in linux/stat.h");
#define DIOALIGN 0x2000u /* STATX_DIOALIGN, Linux 6.1 */

#define FS_BLOCK_MAX 65536u /* network file systems report their transfer size instead of a block */

static const uint64_t slow_magics[] = {
    0x65735546, /* FUSE */
    0x6969,     /* NFS */
    0xff534d42, /* CIFS */
    0xfe534d42, /* SMB2 */
    0x517b,     /* SMB */
    0x01021997, /* 9P */
    0x00c36400, /* Ceph */
    0x5346414f, /* AFS */
};

static uint32_t largest(uint32_t a, uint32_t b) { return a > b ? a : b; }

static uint32_t sysfs_number(dev_t dev, const char *name) {
    /* A partition has no queue of its own; its parent has. */
    static const char *const forms[] = {"/sys/dev/block/%u:%u/queue/%s", "/sys/dev/block/%u:%u/../queue/%s"};
    for (size_t i = 0; i < 2; i++) {
        char path[128];
        unsigned int value = 0;
        FILE *f;
        int n;
        (void)snprintf(path, sizeof path, forms[i], major(dev), minor(dev), name);
        f = fopen(path, "re");
        if (f == NULL) {
            continue;
        }
        n = fscanf(f, "%u", &value);
        (void)fclose(f);
        if (n == 1) {
            return value;
        }
    }
    return 0;
}

static void probe_dio(int fd, fo_geometry *g) {
    statx_answer answer;
    memset(&answer, 0, sizeof answer);
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, DIOALIGN, &answer) == 0 && (answer.mask & DIOALIGN)) {
        g->mem_align = answer.dio_mem_align;
        g->io_align = answer.dio_offset_align;
        if (answer.dio_offset_align == 0) { /* no direct I/O on this file, whatever open says: ext4 with data=journal, for one */
            g->io_align = g->mem_align = 1;
            g->direct = 0;
        }
    }
}

static int probe_block(int fd, dev_t dev, fo_geometry *g) {
    int logical = 0;
    unsigned int physical = 0;
    uint64_t size = 0;
    if (ioctl(fd, BLKGETSIZE64, &size) != 0 || ioctl(fd, BLKSSZGET, &logical) != 0) {
        return -errno;
    }
    (void)ioctl(fd, BLKPBSZGET, &physical);
    g->size = g->allocated = size;
    g->sector_logical = (uint32_t)logical;
    g->sector_physical = physical;
    g->is_block = 1;
    g->dev = (uint64_t)dev;
    g->granule = largest(g->sector_logical, g->sector_physical);
    return 0;
}

static void probe_file(const struct stat *st, const struct statfs *fs, fo_geometry *g) {
    g->size = g->allocated = (uint64_t)st->st_size;
    g->dev = (uint64_t)st->st_dev;
    g->sector_logical = sysfs_number(st->st_dev, "logical_block_size");
    g->sector_physical = sysfs_number(st->st_dev, "physical_block_size");
    g->granule = largest(g->sector_logical, g->sector_physical);
    if (fs->f_bsize > 0 && (uint64_t)fs->f_bsize <= FS_BLOCK_MAX) {
        g->granule = largest(g->granule, (uint32_t)fs->f_bsize);
    }
}

int fo_probe(int fd, uint32_t slot_size, const fo_open *opt, fo_geometry *g) {
    struct stat st;
    struct statfs fs;
    int rc = 0;
    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0) {
        return -errno;
    }
    g->ino = (uint64_t)st.st_ino;
    g->fs_magic = (uint64_t)fs.f_type & 0xffffffffu; /* f_type is signed: CIFS's magic would come out negative */
    for (size_t i = 0; i < sizeof slow_magics / sizeof slow_magics[0]; i++) {
        g->slow_path |= S_ISREG(st.st_mode) && g->fs_magic == slow_magics[i];
    }
    g->depth = opt->depth;
    probe_dio(fd, g);
    if (S_ISBLK(st.st_mode)) {
        rc = probe_block(fd, st.st_rdev, g);
    } else if (S_ISREG(st.st_mode)) {
        probe_file(&st, &fs, g);
    } else {
        rc = -EINVAL;
    }
    if (rc != 0) {
        return rc;
    }
    g->granule = opt->granule != 0 ? opt->granule : largest(largest(g->granule, g->io_align), 512);
    if (g->granule > slot_size || (g->granule & (g->granule - 1)) != 0) {
        return -EINVAL;
    }
    return 0;
}
