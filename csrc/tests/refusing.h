/*
 * refusing.h: every call to the system that the core makes can be refused: the n-th, or from the n-th on.
 *
 * The linker puts the functions below before the real ones (`--wrap`, see the Makefile): the core has no switch for it.  A
 * refusal does what the kernel does: nothing, and an errno, except that close() closes all the same.  Some calls can also *lie*:
 * answer as another kernel, device or file system would.
 */
#ifndef REFUSING_H
#define REFUSING_H

#include "testing.h"

#include <dirent.h>
#include <linux/fs.h>
#include <liburing.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>

typedef enum call {
    CALL_ALLOCATE, /* malloc, calloc, aligned_alloc, posix_memalign, strdup */
    CALL_MMAP,
    CALL_MADVISE,
    CALL_FOPEN,
    CALL_EVENTFD,
    CALL_THREAD,
    CALL_JOIN,
    CALL_CLOCK,
    CALL_OPEN,
    CALL_CLOSE,
    CALL_STAT,
    CALL_FSTAT,
    CALL_FSTATFS,
    CALL_STATX,
    CALL_IOCTL,
    CALL_FCNTL,
    CALL_FLOCK,
    CALL_FALLOCATE,
    CALL_FTRUNCATE,
    CALL_READ,
    CALL_WRITE,
    CALL_FSYNC,
    CALL_FDATASYNC,
    CALL_RING,
    CALL_BUFFERS,
    CALL_FILES,
    CALL_FILE,
    CALL_SUBMIT,
    CALLS,
} call;

/* What a test lets happen first, in whoever makes the call: to hold it up. */
typedef void (*hook)(void);

static void pass(_Atomic(hook) *h) {
    hook first = atomic_load(h);
    if (first != NULL) {
        first();
    }
}

#define LIE (-1) /* instead of an errno; what it means is said at the call */

typedef struct refusal {
    atomic_uint seen;
    atomic_uint from, to; /* the 1-based range that is refused; from 0: none */
    atomic_int err;
} refusal;

static refusal refusals[CALLS];
static atomic_long blocks_live; /* allocated and not freed */

static inline void refuse(call c, unsigned from, unsigned to, int err) {
    atomic_store(&refusals[c].seen, 0);
    atomic_store(&refusals[c].err, err);
    atomic_store(&refusals[c].to, to);
    atomic_store(&refusals[c].from, from);
}

static inline void allow(call c) { atomic_store(&refusals[c].from, 0); }

/* The errno, LIE, or 0: let it through. */
static int refused(call c) {
    refusal *r = &refusals[c];
    unsigned n = atomic_fetch_add(&r->seen, 1) + 1, from = atomic_load(&r->from);
    return from != 0 && n >= from && n <= atomic_load(&r->to) ? atomic_load(&r->err) : 0;
}

static bool refused_errno(call c) {
    int err = refused(c);
    if (err > 0) {
        errno = err;
    }
    return err > 0;
}

/* ---- memory ---- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **p, size_t alignment, size_t size);
char *__real_strdup(const char *text);
void __real_free(void *p);

static void *counted(void *p) {
    if (p != NULL) {
        atomic_fetch_add(&blocks_live, 1);
    }
    return p;
}

void *__wrap_malloc(size_t size) { return refused(CALL_ALLOCATE) ? NULL : counted(__real_malloc(size)); }
void *__wrap_calloc(size_t n, size_t size) { return refused(CALL_ALLOCATE) ? NULL : counted(__real_calloc(n, size)); }
void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return refused(CALL_ALLOCATE) ? NULL : counted(__real_aligned_alloc(alignment, size));
}
char *__wrap_strdup(const char *text) { return refused(CALL_ALLOCATE) ? NULL : counted(__real_strdup(text)); }

int __wrap_posix_memalign(void **p, size_t alignment, size_t size) {
    int rc = refused(CALL_ALLOCATE) ? ENOMEM : __real_posix_memalign(p, alignment, size);
    if (rc == 0) {
        (void)counted(*p);
    }
    return rc;
}

void __wrap_free(void *p) {
    if (p != NULL) {
        atomic_fetch_sub(&blocks_live, 1);
    }
    __real_free(p);
}

void *__real_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset) {
    return refused_errno(CALL_MMAP) ? MAP_FAILED : __real_mmap(at, size, prot, flags, fd, offset);
}

/* A lie: it is taken, and nothing comes of it. */
int __real_madvise(void *at, size_t size, int advice);
int __wrap_madvise(void *at, size_t size, int advice) {
    int err = refused(CALL_MADVISE);
    errno = err > 0 ? err : errno;
    return err == 0 ? __real_madvise(at, size, advice) : err == LIE ? 0 : -1;
}

/* ---- processes and descriptors ---- */

/* A lie: an empty file. */
FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode) {
    int err = refused(CALL_FOPEN);
    errno = err > 0 ? err : errno;
    return err > 0 ? NULL : __real_fopen(err == LIE ? "/dev/null" : path, mode);
}

int __real_eventfd(unsigned int value, int flags);
int __wrap_eventfd(unsigned int value, int flags) {
    return refused_errno(CALL_EVENTFD) ? -1 : __real_eventfd(value, flags);
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*body)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*body)(void *), void *arg) {
    int err = refused(CALL_THREAD);
    return err > 0 ? err : __real_pthread_create(thread, attr, body, arg);
}

int __real_pthread_tryjoin_np(pthread_t thread, void **result);
int __wrap_pthread_tryjoin_np(pthread_t thread, void **result) {
    int err = refused(CALL_JOIN);
    return err > 0 ? err : __real_pthread_tryjoin_np(thread, result);
}

/* A lie: the time of day is an hour later than it will be. */
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
    int rc = __real_clock_gettime(clock, now);
    if (clock == CLOCK_REALTIME && refused(CALL_CLOCK) == LIE) {
        now->tv_sec += 3600;
    }
    return rc;
}

/* A lie: somebody makes the file just before. */
static _Atomic(hook) before_open;
int __real_close(int fd);
int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list more;
    mode_t mode;
    int err;
    va_start(more, flags);
    mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    pass(&before_open);
    err = refused(CALL_OPEN);
    if (err == LIE) {
        (void)__real_close(__real_open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    }
    errno = err == LIE ? EEXIST : err != 0 ? err : errno;
    return err != 0 ? -1 : __real_open(path, flags, mode);
}

int __wrap_close(int fd) {
    int rc = __real_close(fd);
    return refused_errno(CALL_CLOSE) ? -1 : rc;
}

/* ---- what a file is ---- */

int __real_stat(const char *path, struct stat *st);
int __wrap_stat(const char *path, struct stat *st) { return refused_errno(CALL_STAT) ? -1 : __real_stat(path, st); }

/* A lie: it is a block device, of which CALL_IOCTL can lie, too. */
int __real_fstat(int fd, struct stat *st);
int __wrap_fstat(int fd, struct stat *st) {
    int err = refused(CALL_FSTAT);
    int rc = err > 0 ? -1 : __real_fstat(fd, st);
    errno = err > 0 ? err : errno;
    if (err == LIE) {
        st->st_mode = (st->st_mode & ~(mode_t)S_IFMT) | S_IFBLK;
    }
    return rc;
}

static struct statfs lying_statfs; /* the lie: its type and block size, where they are not 0 */
int __real_fstatfs(int fd, struct statfs *fs);
int __wrap_fstatfs(int fd, struct statfs *fs) {
    int err = refused(CALL_FSTATFS);
    int rc = err > 0 ? -1 : __real_fstatfs(fd, fs);
    errno = err > 0 ? err : errno;
    if (err == LIE) {
        fs->f_type = lying_statfs.f_type != 0 ? lying_statfs.f_type : fs->f_type;
        fs->f_bsize = lying_statfs.f_bsize != 0 ? lying_statfs.f_bsize : fs->f_bsize;
    }
    return rc;
}

/* A lie: no direct I/O on this file, as the kernel puts it (an alignment of 0). */
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...) {
    va_list more;
    int fd, flags, err = number == SYS_statx ? refused(CALL_STATX) : 0;
    const char *path;
    unsigned mask;
    unsigned char *answer;
    long rc;
    va_start(more, number);
    fd = va_arg(more, int);
    path = va_arg(more, const char *);
    flags = va_arg(more, int);
    mask = va_arg(more, unsigned);
    answer = va_arg(more, unsigned char *);
    va_end(more);
    if (err > 0) {
        errno = err;
        return -1;
    }
    rc = __real_syscall(number, fd, path, flags, mask, answer);
    if (err == LIE) {
        memset(answer + 0x98, 0, 8);
        *(uint32_t *)(void *)answer |= 0x2000;
    }
    return rc;
}

/* A lie: a disk of 1 MiB in sectors of 512 bytes. */
int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...) {
    va_list more;
    void *arg;
    int err = refused(CALL_IOCTL);
    va_start(more, request);
    arg = va_arg(more, void *);
    va_end(more);
    errno = err > 0 ? err : errno;
    if (err == LIE && request == BLKGETSIZE64) {
        *(uint64_t *)arg = 1 << 20;
    } else if (err == LIE) {
        *(int *)arg = 512;
    }
    return err == 0 ? __real_ioctl(fd, request, arg) : err == LIE ? 0 : -1;
}

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...) {
    va_list more;
    long arg;
    va_start(more, command);
    arg = command == F_SETFL ? va_arg(more, int) : 0;
    va_end(more);
    return refused_errno(CALL_FCNTL) ? -1 : __real_fcntl(fd, command, arg);
}

int __real_flock(int fd, int operation);
int __wrap_flock(int fd, int operation) { return refused_errno(CALL_FLOCK) ? -1 : __real_flock(fd, operation); }

/* ---- what is done with it ---- */

int __real_fallocate(int fd, int mode, off_t offset, off_t length);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t length) {
    return refused_errno(CALL_FALLOCATE) ? -1 : __real_fallocate(fd, mode, offset, length);
}

int __real_ftruncate(int fd, off_t length);
int __wrap_ftruncate(int fd, off_t length) {
    return refused_errno(CALL_FTRUNCATE) ? -1 : __real_ftruncate(fd, length);
}

/* A lie of either: this kernel knows every flag. */
ssize_t __real_preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags) {
    int err = refused(CALL_READ);
    errno = err > 0 ? err : errno;
    return err > 0 ? -1 : __real_preadv2(fd, iov, count, offset, err == LIE ? 0 : flags);
}

static _Atomic(hook) before_write;
ssize_t __real_pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags) {
    int err = refused(CALL_WRITE);
    pass(&before_write);
    errno = err > 0 ? err : errno;
    return err > 0 ? -1 : __real_pwritev2(fd, iov, count, offset, err == LIE ? 0 : flags);
}

static _Atomic(hook) before_flush;
int __real_fsync(int fd);
int __wrap_fsync(int fd) {
    pass(&before_flush);
    return refused_errno(CALL_FSYNC) ? -1 : __real_fsync(fd);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd) { return refused_errno(CALL_FDATASYNC) ? -1 : __real_fdatasync(fd); }

/* ---- the ring (negative errnos) ---- */

/* A lie: the ring of a kernel that does not know these features. */
static uint32_t features_without = UINT32_MAX;
int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p) {
    int err = refused(CALL_RING);
    int rc = err > 0 ? -err : __real_io_uring_queue_init_params(entries, ring, p);
    if (err == LIE) {
        ring->features &= ~features_without;
    }
    return rc;
}

int __real_io_uring_register_buffers(struct io_uring *ring, const struct iovec *iov, unsigned count);
int __wrap_io_uring_register_buffers(struct io_uring *ring, const struct iovec *iov, unsigned count) {
    int err = refused(CALL_BUFFERS);
    return err > 0 ? -err : __real_io_uring_register_buffers(ring, iov, count);
}

int __real_io_uring_register_files_sparse(struct io_uring *ring, unsigned count);
int __wrap_io_uring_register_files_sparse(struct io_uring *ring, unsigned count) {
    int err = refused(CALL_FILES);
    return err > 0 ? -err : __real_io_uring_register_files_sparse(ring, count);
}

static _Atomic(hook) before_file;
int __real_io_uring_register_files_update(struct io_uring *ring, unsigned at, const int *files, unsigned count);
int __wrap_io_uring_register_files_update(struct io_uring *ring, unsigned at, const int *files, unsigned count) {
    int err = *files >= 0 ? refused(CALL_FILE) : 0;
    if (*files >= 0) {
        pass(&before_file);
    }
    return err > 0 ? -err : __real_io_uring_register_files_update(ring, at, files, count);
}

int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring) {
    int err = refused(CALL_SUBMIT);
    return err > 0 ? -err : __real_io_uring_submit(ring);
}

/* ---- what must not be left ---- */

static unsigned descriptors_open(void) {
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    REQUIRE(d != NULL);
    while (readdir(d) != NULL) {
        n++;
    }
    (void)closedir(d);
    return n;
}

typedef struct held {
    long blocks;
    unsigned descriptors;
} held;

static held holding(void) { return (held){atomic_load(&blocks_live), descriptors_open()}; }

/* Workers let go of an engine a moment after it was closed. */
static inline void check_nothing_left(held before) {
    for (int i = 0; i < 2000; i++) {
        held now = holding();
        if (now.blocks == before.blocks && now.descriptors == before.descriptors) {
            return;
        }
        (void)usleep(1000);
    }
    CHECK_EQ(holding().blocks, before.blocks);
    CHECK_EQ(holding().descriptors, before.descriptors);
}

#endif
