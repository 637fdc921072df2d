/*
 * fo_device.c: the system calls on one target.  Everything here may block, so it runs in workers (or, simulated, in the
 * caller); only plain data operations of the io_uring backend go another way.
 *
 * Alignment is discovered, never assumed: see fo_probe.c.
 */
#include "fo_engine.h"
#include "fo_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080 /* Linux 6.14: write through the page cache without filling it */
#endif

#define LOCK_POLL_NS 10000000ull /* another holder may let go at any time; 10 ms is soon enough, and cheap */

static uint64_t monotonic_ns(void) {
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

/* ---- open ---- */

static atomic_int *file_entry(const fo_block *b) { return &b->engine->fork_fds[b->target]; }
static atomic_int *dir_entry(const fo_block *b) { return &b->engine->fork_fds[FO_MAX_TARGETS + b->target]; }

/* A new file's name is durable only when its directory is.  The directory is opened now: later the path may lead elsewhere. */
static int open_directory(fo_block *b) {
    char *copy;
    int fd, rc;
    if (atomic_load(&b->dir_fd) >= 0) {
        return 0;
    }
    copy = strdup(b->path);
    if (copy == NULL) {
        return -ENOMEM;
    }
    fd = fo_fork_open(dir_entry(b), dirname(copy), O_RDONLY | O_DIRECTORY, 0);
    rc = fd < 0 ? -errno : 0;
    free(copy);
    if (rc == 0) {
        atomic_store(&b->dir_fd, fd);
    }
    return rc;
}

/* Its directory first: where that cannot be had, no file is made.  O_DIRECT is set afterwards: a file system without it would
 * create the file and then refuse the open. */
static int create_file(fo_block *b, int flags) {
    int fd, rc = open_directory(b);
    if (rc != 0) {
        return rc;
    }
    fd = fo_fork_open(file_entry(b), b->path, flags | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        return -errno;
    }
    b->geometry.created = 1;
    atomic_store(&b->changed, true);
    atomic_store(&b->fd, fd);
    if (!(b->opt.flags & FO_OPEN_BUFFERED)) {
        int now = fcntl(fd, F_GETFL);
        b->geometry.direct = now >= 0 && fcntl(fd, F_SETFL, now | O_DIRECT) == 0;
    }
    return 0;
}

static int open_existing(fo_block *b, int flags) {
    struct stat st;
    int fd = -1;
    if (stat(b->path, &st) == 0) {
        if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)) {
            return -EINVAL; /* as fo_probe says, but before an open that waits for a peer, rewinds a tape or starts a watchdog */
        }
        if (S_ISBLK(st.st_mode) && (b->opt.flags & FO_OPEN_LOCK)) {
            flags |= O_EXCL; /* refuses a device that is mounted, or that another holds */
        }
    }
    if (!(b->opt.flags & FO_OPEN_BUFFERED)) {
        fd = fo_fork_open(file_entry(b), b->path, flags | O_DIRECT, 0);
        b->geometry.direct = fd >= 0;
    }
    if (fd < 0 && ((b->opt.flags & FO_OPEN_BUFFERED) || errno == EINVAL)) {
        fd = fo_fork_open(file_entry(b), b->path, flags, 0);
    }
    if (fd < 0) {
        return -errno;
    }
    atomic_store(&b->fd, fd);
    return (b->opt.flags & FO_OPEN_NAMED) ? open_directory(b) : 0;
}

static int open_path(fo_block *b) {
    bool readonly = (b->opt.flags & FO_OPEN_READONLY) != 0;
    int flags = (readonly ? O_RDONLY : O_RDWR) | O_NOCTTY;
    int rc;
    if (b->opt.flags & FO_OPEN_NOFOLLOW) {
        flags |= O_NOFOLLOW;
    }
    if (b->opt.flags & FO_OPEN_CREATE) {
        return create_file(b, flags);
    }
    rc = open_existing(b, flags);
    if (rc == -ENOENT && (b->opt.flags & FO_OPEN_REPLACE)) {
        rc = create_file(b, flags);
        if (rc == -EEXIST) { /* somebody made it in between */
            rc = open_existing(b, flags);
        }
    }
    return rc;
}

/* The lock is taken on the very description that does the I/O.  The kernel drops it only when the last write in flight has
 * ended, also after SIGKILL, so whoever gets it next cannot be overtaken by a late write. */
static int lock(fo_block *b) {
    if (flock(atomic_load(&b->fd), LOCK_EX | LOCK_NB) == 0) {
        return 0;
    }
    return errno == EWOULDBLOCK ? -EBUSY : -errno;
}

void fo_device_close(fo_block *b) {
    int fd = atomic_exchange(&b->fd, -1);
    int dir = atomic_exchange(&b->dir_fd, -1);
    if (fd >= 0) {
        (void)fo_fork_close(file_entry(b), fd);
    }
    if (dir >= 0) {
        (void)fo_fork_close(dir_entry(b), dir);
    }
}

static int try_open(fo_block *b) {
    int rc = open_path(b);
    if (rc == 0 && (b->opt.flags & FO_OPEN_LOCK)) {
        rc = lock(b);
    }
    if (rc == 0) {
        rc = fo_probe(atomic_load(&b->fd), b->engine->machine.cfg.slot_size, &b->opt, &b->geometry);
    }
    if (rc != 0) {
        fo_device_close(b);
    }
    return rc;
}

static int64_t run_open(fo_block *b) {
    /* On the simulated clock nobody can let go of a lock meanwhile: one attempt. */
    bool simulated = b->engine->backend->kind == FO_BACKEND_FAULTY;
    uint64_t until = monotonic_ns() + (simulated ? 0 : b->opt.lock_wait_ns);
    struct timespec pause = {0, (long)LOCK_POLL_NS};
    int rc;
    while (true) {
        bool created = b->geometry.created != 0;
        rc = try_open(b);
        if (rc != -EBUSY || created || atomic_load(&b->given_up) || monotonic_ns() >= until) {
            return rc;
        }
        (void)nanosleep(&pause, NULL);
    }
}

/* ---- the rest ---- */

static int64_t run_allocate(fo_block *b, const fo_submission *s) {
    struct stat st;
    int fd = atomic_load(&b->fd);
    if (b->geometry.is_block) {
        return 0;
    }
    atomic_store(&b->changed, true);
    if (fallocate(fd, 0, (off_t)s->offset, (off_t)s->length) == 0) {
        return 0;
    }
    if (errno != EOPNOTSUPP && errno != ENOSYS) {
        return -errno;
    }
    /* This file system cannot: at least the size is right, and a write inside it does not extend the file.  But not beside writes:
     * one that has gone further between the look and the new size would be cut off. */
    if (s->ahead) {
        return -EOPNOTSUPP;
    }
    if (fstat(fd, &st) != 0) {
        return -errno;
    }
    if ((uint64_t)st.st_size < s->offset + s->length && ftruncate(fd, (off_t)(s->offset + s->length)) != 0) {
        return -errno;
    }
    return 0;
}

/* The first operation on a fresh FUSE connection can put its submitter to sleep until the server answers, polling among
 * them.  Here, in a worker, it may. */
static int64_t run_warm(fo_block *b) {
    size_t size = b->geometry.granule > 4096 ? b->geometry.granule : 4096;
    int fd = atomic_load(&b->fd);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct iovec iov = {.iov_len = b->geometry.granule};
    int64_t n;
    if (posix_memalign(&iov.iov_base, 4096, size) != 0) {
        return -ENOMEM;
    }
    (void)poll(&p, 1, 0);
    if (!b->geometry.direct) {
        n = preadv2(fd, &iov, 1, 0, RWF_DONTCACHE);
        b->rw_flags = n >= 0 ? RWF_DONTCACHE : 0;
    }
    n = preadv2(fd, &iov, 1, 0, b->rw_flags);
    n = n < 0 ? -errno : n;
    free(iov.iov_base);
    return n;
}

static int64_t run_data(fo_block *b, const fo_submission *s, unsigned char *memory) {
    struct iovec iov = {memory, s->length};
    int fd = atomic_load(&b->fd);
    ssize_t n = s->kind == FO_OP_WRITE ? pwritev2(fd, &iov, 1, (off_t)s->offset, b->rw_flags)
                                       : preadv2(fd, &iov, 1, (off_t)s->offset, b->rw_flags);
    return n < 0 ? -errno : n;
}

static int64_t run_close(fo_block *b) {
    int fd = atomic_load(&b->fd);
    int rc = 0;
    if (fd < 0) {
        return 0;
    }
    /* Nothing is in flight.  Unlocked by hand because a ring can hold its reference to the file a little longer than we do
     * (before Linux 6.13 until older requests, also those of other targets, have ended). */
    if (b->opt.flags & FO_OPEN_LOCK) {
        (void)flock(fd, LOCK_UN);
    }
    atomic_store(&b->fd, -1);
    if (fo_fork_close(file_entry(b), fd) != 0) {
        rc = -errno; /* delayed errors of some file systems; the descriptor is gone all the same */
    }
    fo_device_close(b);
    return rc;
}

int64_t fo_device_run(fo_block *b, const fo_submission *s, unsigned char *memory) {
    int fd = atomic_load(&b->fd);
    switch (s->kind) {
    case FO_OP_OPEN:
        return run_open(b);
    case FO_OP_ALLOCATE:
        return run_allocate(b, s);
    case FO_OP_READ:
        return memory == NULL ? run_warm(b) : run_data(b, s, memory);
    case FO_OP_WRITE:
        return run_data(b, s, memory);
    case FO_OP_FLUSH:
        /* fdatasync is enough for data in place; a change of size or name wants the whole inode. */
        return (atomic_exchange(&b->changed, false) ? fsync(fd) : fdatasync(fd)) == 0 ? 0 : -errno;
    case FO_OP_TRUNCATE:
        atomic_store(&b->changed, true);
        return ftruncate(fd, (off_t)s->length) == 0 ? 0 : -errno;
    case FO_OP_DIRSYNC:
        return atomic_load(&b->dir_fd) < 0 || fsync(atomic_load(&b->dir_fd)) == 0 ? 0 : -errno;
    default:
        FO_ASSERT(s->kind == FO_OP_CLOSE);
        return run_close(b);
    }
}
