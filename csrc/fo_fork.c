/*
 * fo_fork.c: what a forked child may not do.
 *
 * The child has copies of the descriptors, and a flock belongs to the description, not to the process: as long as the child
 * held one, a volume would stay locked after the parent has died.  So the child closes them, and its copy of the engine is
 * dead: there is no engine thread in it, and the mutex may be held by nobody.
 *
 * Between the kernel's making a descriptor and its entry in fork_fds (and the other way round) a fork would hand out one that
 * nobody closes.  So a fork waits for those few microseconds, and an open that begins meanwhile waits for the fork.  It does
 * not wait for long: an open that hangs has no descriptor yet, and a close that hangs has none any more.
 *
 * These are the globals of the core; fork handlers cannot be taken back and have no argument.
 */
#include "fo_engine.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define FORK_POLLS 1000 /* of 100 us: what an open that does not hang may take */

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static fo_engine *engines;
static atomic_uint changing; /* threads that are about to enter or to remove a descriptor */

static void before_fork(void) {
    struct timespec pause = {0, 100000};
    (void)pthread_mutex_lock(&registry_mutex); /* from here on nobody begins */
    for (int i = 0; i < FORK_POLLS && atomic_load(&changing) != 0; i++) {
        (void)nanosleep(&pause, NULL);
    }
}

static void in_parent(void) { (void)pthread_mutex_unlock(&registry_mutex); }

static void in_child(void) {
    for (fo_engine *e = engines; e != NULL; e = e->next_engine) {
        atomic_store(&e->dead, true);
        for (size_t i = 0; i < sizeof e->fork_fds / sizeof e->fork_fds[0]; i++) {
            int fd = atomic_exchange(&e->fork_fds[i], -1);
            if (fd >= 0) {
                (void)close(fd);
            }
        }
    }
    engines = NULL;
    atomic_store(&changing, 0); /* those threads are not here */
    (void)pthread_mutex_unlock(&registry_mutex);
}

static void install(void) { (void)pthread_atfork(before_fork, in_parent, in_child); }

void fo_fork_register(fo_engine *e) {
    (void)pthread_once(&once, install);
    (void)pthread_mutex_lock(&registry_mutex);
    e->next_engine = engines;
    engines = e;
    (void)pthread_mutex_unlock(&registry_mutex);
}

void fo_fork_unregister(fo_engine *e) {
    (void)pthread_mutex_lock(&registry_mutex);
    fo_engine **at = &engines;
    while (*at != e) {
        at = &(*at)->next_engine;
    }
    *at = e->next_engine;
    (void)pthread_mutex_unlock(&registry_mutex);
}

void fo_fork_hold(void) {
    (void)pthread_mutex_lock(&registry_mutex);
    atomic_fetch_add(&changing, 1);
    (void)pthread_mutex_unlock(&registry_mutex);
}

void fo_fork_go(void) { atomic_fetch_sub(&changing, 1); }

int fo_fork_open(atomic_int *entry, const char *path, int flags, mode_t mode) {
    int fd, err;
    fo_fork_hold();
    fd = open(path, flags | O_CLOEXEC, mode);
    err = errno;
    atomic_store(entry, fd);
    fo_fork_go();
    errno = err;
    return fd;
}

int fo_fork_close(atomic_int *entry, int fd) {
    int rc, err;
    fo_fork_hold();
    atomic_store(entry, -1);
    rc = close(fd);
    err = errno;
    fo_fork_go();
    errno = err;
    return rc;
}
