/*
 * Makes fdatasync, fsync and pwrite64 of SQLite's write-ahead log fail on demand, below an unchanged SQLite.
 *
 * FAULT_FILE names a file; while it exists, its first word says what fails on any file whose path ends in "-wal":
 *     sync    the flush fails with EIO after the data has been handed to the kernel: the commit that may come back
 *     write   the write fails with EIO
 *     full    the write fails with ENOSPC
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_wal(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    return n >= 4 && memcmp(path + n - 4, "-wal", 4) == 0;
}

static int scripted(const char *word)
{
    const char *name = getenv("FAULT_FILE");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    char text[16] = {0};
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 && strncmp(text, word, strlen(word)) == 0;
}

static int sync_fault(int fd)
{
    return is_wal(fd) && scripted("sync");
}

int fdatasync(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = next(fd);
    if (sync_fault(fd)) {
        errno = EIO;
        return -1;
    }
    return result;
}

int fsync(int fd)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = next(fd);
    if (sync_fault(fd)) {
        errno = EIO;
        return -1;
    }
    return result;
}

static int write_fault(int fd)
{
    if (!is_wal(fd))
        return 0;
    return scripted("write") ? EIO : scripted("full") ? ENOSPC : 0;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    ssize_t (*next)(int, const void *, size_t, off64_t) = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    int fault = write_fault(fd);
    if (fault) {
        errno = fault;
        return -1;
    }
    return next(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return pwrite64(fd, data, size, offset);
}
