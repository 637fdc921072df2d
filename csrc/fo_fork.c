/*
 * fo_fork.c: what a forked child may not do.
 *
 * The child has copies of the descriptors, and a flock belongs to the description, not to the process: as long as the child
 * held one, a volume would stay locked after the parent has died.  So the child closes them, and its copy of the engine is
 * dead: there is no engine thread in it, and the mutex may be held by nobody.
 *
 * This is the one global of the core; fork handlers cannot be taken back and have no argument.
 */
#include "fo_engine.h"

#include <unistd.h>

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static fo_engine *engines;

static void before_fork(void) { (void)pthread_mutex_lock(&registry_mutex); }
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
    for (fo_engine **at = &engines; *at != NULL; at = &(*at)->next_engine) {
        if (*at == e) {
            *at = e->next_engine;
            break;
        }
    }
    (void)pthread_mutex_unlock(&registry_mutex);
}
