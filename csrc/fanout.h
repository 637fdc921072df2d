/*
 * fanout.h: the whole C interface of the write fan-out engine.
 *
 * What it is for.  One engine owns one arena of aligned slots, fixed when it opens.  A caller's bytes are copied once into
 * a slot, hashed in the same pass, and that one slot is written to every target of the stream.  Nothing comes back up but
 * outcomes: what happened on each target, where, with which errno.
 *
 * What it promises.
 *   1. Memory is fixed at open and never grows.
 *   2. A fault is reported once, against the right target, offset, length and errno.  "Not submitted" is never "ok".
 *   3. A slot whose write is still in flight is never used again, not even after the target was given up (quarantine).
 *   4. A failed flush is never retried; every write on that target since its last good flush is unknown.
 *   5. accepted >= submitted >= completed >= synced, each monotone, per leg.
 *
 * What it does not know: pools, volumes, transactions, retries.  Those are policy and live above.
 *
 * Threads.  Any thread may call anything.  One stream serves one caller at a time: a second caller gets -EBUSY.
 * Status.  0 or a negative errno; out-parameters come last.  Lengths and offsets are bytes, times are nanoseconds on the
 * monotonic clock (the simulated one under the faulty backend).  A wait does not count the time for which its process was stopped.
 * Every call that takes an engine or a stream can also say -ESHUTDOWN (the engine is closing) and -EOWNERDEAD (this is a forked
 * child).
 */
#ifndef FANOUT_H
#define FANOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FO_VERSION 1
#define FO_MAX_TARGETS 256 /* open targets of one engine; a token has eight bits for them */
#define FO_MAX_LEGS 16    /* targets of one stream */
#define FO_DIGEST_SIZE 16 /* XXH3-128, canonical (big-endian) form */
#define FO_UNFINISHED_SIZE 1216 /* the state of a hash */
#define FO_FOREVER UINT64_MAX

typedef struct fo_engine fo_engine;
typedef struct fo_stream fo_stream;

typedef enum fo_backend_kind {
    FO_BACKEND_AUTO = 0, /* io_uring when the probe succeeds, else threads */
    FO_BACKEND_URING = 1,
    FO_BACKEND_THREADS = 2,
    FO_BACKEND_FAULTY = 3, /* scripted faults on a simulated clock; no engine thread: the waiting caller drives the step */
} fo_backend_kind;

/* The kinds of operation.  One struct and one queue serve all of them. */
typedef enum fo_op_kind {
    FO_OP_NONE = 0,
    FO_OP_WRITE = 1,
    FO_OP_READ = 2,
    FO_OP_FLUSH = 3,
    FO_OP_ALLOCATE = 4,
    FO_OP_TRUNCATE = 5,
    FO_OP_DIRSYNC = 6,
    FO_OP_OPEN = 7,
    FO_OP_CLOSE = 8,
} fo_op_kind;

typedef enum fo_outcome_code {
    FO_OUTCOME_OK = 0,
    FO_OUTCOME_SHORT = 1,         /* partial again and again, bounded resumes used up; a read: the file ends here */
    FO_OUTCOME_ERROR = 2,         /* the kernel said errno */
    FO_OUTCOME_NOT_SUBMITTED = 3, /* never handed to the kernel: the target had failed before, or the stream was aborted */
    FO_OUTCOME_TIMED_OUT = 4,     /* the operation that reached the hard deadline */
    FO_OUTCOME_DETACHED = 5,      /* in flight on a target that was let go; may still land */
    FO_OUTCOME_LATE_OK = 6,       /* landed after the target was let go: changes nothing */
    FO_OUTCOME_LATE_ERROR = 7,
    FO_OUTCOME_SLOW = 8, /* ejected: it held up its peers.  length: bytes behind them; latency: age of its oldest operation */
    FO_OUTCOME_MISMATCH = 9, /* read back, and not what was written; err is EILSEQ */
} fo_outcome_code;

/* What an errno says about who is at fault.  The table is in fo_errno.c and in docs/errors.md. */
typedef enum fo_class {
    FO_CLASS_NONE = 0,
    FO_CLASS_SPACE = 1,     /* ENOSPC EDQUOT EFBIG */
    FO_CLASS_MEDIUM = 2,    /* ENODATA EILSEQ */
    FO_CLASS_DEVICE = 3,    /* EIO EREMOTEIO, zero bytes written, and every unknown errno */
    FO_CLASS_TRANSPORT = 4, /* ETIMEDOUT ETIME ENOLINK ENODEV ENXIO ESHUTDOWN ECONNABORTED ENOTCONN ECONNRESET EHOSTUNREACH */
    FO_CLASS_ACCESS = 5,    /* EPERM EROFS EACCES */
    FO_CLASS_SETUP = 6,     /* EINVAL EOPNOTSUPP EBADF EBADE ENOENT ENOTDIR … */
    FO_CLASS_TRANSIENT = 7, /* EAGAIN EINTR EBUSY: the retry budget ran out; at open EBUSY is another's lock */
    FO_CLASS_HOST = 8,      /* EMFILE ENFILE ENOMEM: this host is short, no target is to blame */
} fo_class;

typedef enum fo_event_kind {
    FO_EVENT_FAULT = 1,    /* an operation failed (write, read, flush, …): phase says which */
    FO_EVENT_SLOW = 2,     /* an operation passed the soft deadline, for the first time */
    FO_EVENT_DETACHED = 3, /* the oldest operation passed the hard deadline; the target was let go */
    FO_EVENT_LATE = 4,     /* a completion arrived for a target that was let go */
    FO_EVENT_EJECTED = 5,  /* the caller dropped the target from a stream */
    FO_EVENT_DRAINED = 6,  /* nothing of an aborted stream is in flight on this target any more */
    FO_EVENT_LAGGARD = 7,  /* the verdict that a target holds up its peers, once per leg; fo_slow.c says how it is found */
} fo_event_kind;

/* One event: 96 bytes, fixed layout, so that numpy reads a batch as a structured array without a copy. */
typedef struct fo_event {
    uint64_t seq;
    uint64_t time_ns;
    uint64_t offset; /* of the operation on its target */
    uint64_t length;
    uint64_t done; /* bytes that the kernel confirmed */
    uint64_t queued_ns;
    uint64_t latency_ns; /* submit to completion */
    int32_t err;         /* errno, positive; 0: none */
    uint16_t version;    /* FO_VERSION */
    uint16_t target;
    uint32_t stream; /* 0: not of a stream */
    uint8_t kind;    /* fo_event_kind */
    uint8_t phase;   /* fo_op_kind */
    uint8_t outcome; /* fo_outcome_code */
    uint8_t cls;     /* fo_class */
    uint32_t attempts;
    uint32_t inflight; /* of the target, when the event was made */
    uint32_t lag;      /* slots queued and in flight on the target */
    uint32_t merged;   /* equal adjacent events that this one stands for, itself included */
    uint16_t pace;     /* LAGGARD: its rate in thousandths of the peer's that it was measured against */
    uint8_t strikes;   /* LAGGARD */
    uint8_t reserved[5];
} fo_event;
_Static_assert(sizeof(fo_event) == 96, "fo_event is read by numpy as 96 bytes");

/* What happened to one request, or to one leg of a stream (its first fault, before what an abort left unsubmitted; `more` counts the
 * others). */
typedef struct fo_outcome {
    uint64_t offset;
    uint64_t length;
    uint64_t done;
    uint64_t latency_ns;
    int32_t err;
    uint8_t code;  /* fo_outcome_code */
    uint8_t cls;   /* fo_class */
    uint8_t phase; /* fo_op_kind */
    uint8_t reserved;
    uint32_t attempts;
    uint32_t more;
} fo_outcome;

/* ---- engine ---------------------------------------------------------------------------------------------------- */

/* One scripted fault of the faulty backend.  It fires at the nth..nth+count-1 matching operation (1-based). */
typedef enum fo_fault_action {
    FO_FAULT_ERRNO = 1,       /* value: errno.  Nothing is written. */
    FO_FAULT_ERRNO_AFTER = 2, /* value: errno, but the bytes were written: "reported failed, was written" */
    FO_FAULT_SHORT = 3,       /* value: bytes written; 0 is the zero-byte write */
    FO_FAULT_NEVER = 4,       /* never completes */
    FO_FAULT_DELAY = 5,       /* value: nanoseconds until completion; then it succeeds */
    /* Lies: the operation succeeds, and */
    FO_FAULT_SWALLOW = 6, /* nothing was done */
    FO_FAULT_FLIP = 7,    /* bit 0 of byte `value` of it was written wrong */
    FO_FAULT_SHIFT = 8,   /* it was done `value` bytes further on */
} fo_fault_action;

typedef struct fo_fault {
    uint64_t nth;   /* 1-based, among operations that match target and kind */
    uint64_t count; /* how many in a row; UINT64_MAX: for ever */
    int64_t value;
    uint16_t target; /* target id, or UINT16_MAX: any */
    uint8_t kind;    /* fo_op_kind, or 0: any */
    uint8_t action;  /* fo_fault_action */
    uint32_t reserved;
} fo_fault;

/* One operation that the faulty backend has carried out: a record of the journal. */
typedef struct fo_carried {
    uint64_t issued, done; /* one sequence for both: a flush covers a write when write.done < flush.issued */
    uint64_t ino;          /* of the file; 0: not known yet */
    uint64_t offset, length;
    int64_t medium; /* bytes written or read, 0, or negative errno; -EINPROGRESS: the power failed before it ended */
    int64_t result; /* what was reported */
    uint64_t data;  /* WRITE: so many bytes of what was written follow the record */
    uint16_t target;
    uint8_t kind;   /* fo_op_kind */
    uint8_t action; /* fo_fault_action that struck, or 0 */
    uint32_t reserved;
} fo_carried;
_Static_assert(sizeof(fo_carried) == 72, "the journal is read as records of 72 bytes");

typedef struct fo_config {
    uint32_t slot_size;        /* power of two, 64 KiB … 16 MiB; default 1 MiB */
    uint32_t slot_count;       /* the whole budget in slots; default 64 */
    uint32_t max_streams;      /* admission limit; two slots are kept for each; default 8 */
    uint32_t control_slots;    /* kept for fo_run (reads, superblocks, directories), no target gets all; default 4 */
    uint32_t quarantine_slots; /* kept to be lost to hung targets, and lent to requests beside these; default 16 */
    uint32_t backend;          /* fo_backend_kind */
    uint64_t soft_ns;          /* default 30 s */
    uint64_t hard_ns;          /* default 120 s */
    uint64_t patience_ns;      /* how long a target may hold up its peers before the verdict; default 2 s */
    uint64_t seed;             /* faulty backend: order and latency of completions */
} fo_config;

typedef struct fo_info {
    uint32_t backend;    /* the one that runs */
    uint32_t huge_pages; /* 2: hugetlb, 1: transparent huge pages advised, 0: small pages, or fo_engine_look was not called */
    uint32_t registered; /* arena registered with the ring */
    uint32_t hash_isa;   /* 0 scalar/baseline, 2 AVX2, 3 AVX-512 */
    uint32_t slot_size, slot_count;
    /* Each slot is counted once.  live: no target is through with it yet; lagging: held for laggards, some target being through
     * with it or all others having left. */
    uint32_t slots_free, slots_filling, slots_live, slots_lagging, slots_control, slots_quarantined;
    uint32_t streams, targets;
    uint64_t memory_bytes;
    uint64_t steps, submissions, completions, wakeups, retries, late;
    uint64_t events_pending;
    uint32_t ring_flags; /* IORING_SETUP_* in use */
    uint32_t dead;       /* 1: forked child or stopped loudly */
    char reason[160];    /* why this backend, why not registered, …, one sentence each */
} fo_info;

void fo_config_init(fo_config *cfg);
/* -EINVAL: a field is out of range (reason says which); -ENOMEM; -EOPNOTSUPP: the backend asked for cannot run here; -EAGAIN: no
 * thread. */
int fo_engine_open(const fo_config *cfg, char reason[160], fo_engine **out);
/* Waits up to timeout for what is in flight, then lets go of it.  Never hangs for direct ring writes.  Frees the engine;
 * -ETIMEDOUT says that something was still in flight (the kernel ends it in the background). */
int fo_engine_close(fo_engine *e, uint64_t timeout_ns);
void fo_engine_info(fo_engine *e, fo_info *out);
/* Counts the huge pages, the first time, for fo_engine_info to tell.  Takes long in a large process: nobody else waits meanwhile. */
void fo_engine_look(fo_engine *e);
/* 1: this is a forked child, and everything but closing answers -EOWNERDEAD.  Looks at nothing that a lock guards. */
int fo_engine_dead(const fo_engine *e);
/* Up to max events, oldest first; returns how many.  timeout 0 does not wait. */
int fo_events(fo_engine *e, fo_event *out, uint32_t max, uint64_t timeout_ns);
/* Readable while events are pending, and once when a leg is synced or fails; fo_events, once it has taken all, makes it
 * unreadable.  -EOPNOTSUPP under the faulty backend. */
int fo_event_fd(fo_engine *e);
/* Waiting without a thread: writes to fd, an eventfd of the caller's, at the next change that any wait of this interface waits for
 * (a slot, an admission, a leg's state, drained, an event), once; then the watch is over.  Ask, call what you wait for with timeout
 * 0, and only then sleep: no change between the two is missed.  The watch is over also when the engine closes.  Watching what is
 * watched already is one watch.  -ENOBUFS: 16 descriptors are watched. */
int fo_watch(fo_engine *e, int fd);
/* Before fd is closed.  Negative: all, each written to once more. */
void fo_unwatch(fo_engine *e, int fd);
uint64_t fo_now(fo_engine *e);
/* Faulty backend only. */
int fo_faults_set(fo_engine *e, const fo_fault *faults, uint32_t count); /* replaces the script; counters start anew */
int fo_faults_advance(fo_engine *e, uint64_t ns); /* simulated time passes; deadlines and due completions are processed */
int fo_faults_release(fo_engine *e, uint16_t target); /* the NEVER operations of a target (UINT16_MAX: of all) complete now */
int fo_faults_journal(fo_engine *e, int fd); /* every operation is appended to fd, an ordinary file of the caller's; -1: no more */
/* The power fails after so many more operations (0: now, UINT64_MAX: not): from then on all but closing ends with EIO and changes
 * nothing.  The journal ends with the writes that were in flight, and a record of kind NONE.  -ENODEV: it had failed already. */
int fo_faults_power(fo_engine *e, uint64_t ops);

/* ---- targets --------------------------------------------------------------------------------------------------- */

enum {
    FO_OPEN_CREATE = 1u << 0,   /* O_CREAT | O_EXCL, mode 0600; -EEXIST when there is something */
    FO_OPEN_REPLACE = 1u << 1,  /* O_CREAT without O_EXCL: an existing file is reused in place */
    FO_OPEN_READONLY = 1u << 2, /* no lock, no write */
    FO_OPEN_LOCK = 1u << 3,     /* flock(LOCK_EX) on the very description that does the I/O, O_EXCL on block devices */
    FO_OPEN_BUFFERED = 1u << 4, /* do not ask for O_DIRECT */
    FO_OPEN_NOFOLLOW = 1u << 5, /* O_NOFOLLOW: refuse a symbolic link in the last component */
    FO_OPEN_NAMED = 1u << 6,    /* a file that is there may have a name that is not durable yet: a DIRSYNC makes it so */
};

/* What becomes of a target that holds up its peers. */
typedef enum fo_on_slow {
    FO_SLOW_WAIT = 0,  /* it paces its streams */
    FO_SLOW_EJECT = 1, /* it is ejected from the streams that it holds up, unless fo_stream_keep protects it there */
} fo_on_slow;

typedef struct fo_open {
    uint32_t flags;
    uint32_t depth;        /* writes in flight at once; 0: 8 */
    uint64_t size;         /* bytes to preallocate (files); 0: none; with CREATE or REPLACE: grow ahead of the writes */
    uint64_t lock_wait_ns; /* how long to wait for a lock that another holds */
    uint32_t granule;      /* override; 0: discover */
    uint32_t on_slow;      /* fo_on_slow */
    uint64_t soft_ns, hard_ns, patience_ns; /* 0: the engine's */
} fo_open;

typedef enum fo_target_state {
    FO_TARGET_NONE = 0,
    FO_TARGET_OPENING = 1,
    FO_TARGET_ACTIVE = 2,
    FO_TARGET_FAILED = 3,   /* a flush failed: closed for writing, reads go on */
    FO_TARGET_DETACHED = 4, /* hung: nothing is submitted any more */
    FO_TARGET_CLOSING = 5,
} fo_target_state;

typedef struct fo_geometry {
    uint64_t size;      /* of the file or device at open */
    uint64_t allocated; /* preallocated up to here */
    uint32_t granule;   /* every write's offset and length are multiples of it */
    uint32_t mem_align, io_align, sector_logical, sector_physical;
    uint32_t direct;   /* 0: uncached buffered fallback, flagged */
    uint32_t is_block; /* block device */
    uint32_t created;  /* the file did not exist before */
    uint32_t slow_path; /* FUSE or network file system: asynchronous submission only */
    uint32_t depth;
    uint32_t state; /* fo_target_state */
    uint32_t inflight, queued, quarantined;
    uint32_t on_slow; /* fo_on_slow */
    uint32_t strikes; /* of three; fo_slow.c */
    uint64_t latency_ns; /* of a stream's write, from submit to completion: a moving average */
    uint64_t rate;       /* bytes per second while writes are in flight: a moving average */
    uint64_t flushes_good;
    uint64_t fs_magic;
    uint64_t dev; /* st_rdev of a block device, else st_dev */
    uint64_t ino;
} fo_geometry;

/* Opens in a helper thread, discovers alignment, locks, preallocates, warms (one read).  Waits at most timeout.
 * 0, or the negative errno with `why` filled in (phase open, allocate, read …). */
int fo_target_open(fo_engine *e, const char *path, const fo_open *opt, uint64_t timeout_ns, uint16_t *id, fo_outcome *why);
int fo_target_geometry(fo_engine *e, uint16_t id, fo_geometry *out);
/* Bare targets: drain -> truncate (length >= 0, files) -> flush -> parent directory when created or NAMED -> close.  Closes whatever
 * went wrong before (the first failure is the one reported); when the time runs out it closes itself, as with fo_target_close.
 * -EBUSY: a stream uses it, or another caller is finishing or closing it. */
int fo_target_finish(fo_engine *e, uint16_t id, int64_t length, uint64_t timeout_ns, fo_outcome *why);
/* Closes without any flush.  -EBUSY: a stream uses it, or another caller is finishing or closing it.  -ETIMEDOUT: something is
 * in flight yet; the target takes nothing new, stays in the books, and closes itself after the last completion. */
int fo_target_close(fo_engine *e, uint16_t id, uint64_t timeout_ns);
/* For an owner that is itself being taken down: does not wait.  Closes itself when no stream uses it and nothing is in flight. */
void fo_target_forget(fo_engine *e, uint16_t id);

/* ---- requests: everything that is not a stream ------------------------------------------------------------------ */

typedef struct fo_request {
    uint16_t target;
    uint8_t kind; /* WRITE, READ (length <= slot_size), FLUSH, ALLOCATE, TRUNCATE, DIRSYNC */
    uint8_t reserved[5];
    uint64_t offset; /* multiples of the granule for WRITE and READ */
    uint64_t length;
    void *data; /* WRITE: read from; READ: written to, or NULL: only summed; else NULL */
    uint64_t sum; /* out, of a READ without data that was OK: XXH3-64 of the bytes */
    fo_outcome outcome;
} fo_request;

/* Runs all requests at once (in waves of at most control_slots) and waits.  0 when every outcome is filled in, whatever they say;
 * -ETIMEDOUT only when a control slot could not be had in time, -ENOBUFS when the event queue is full (either way the
 * remaining outcomes are NOT_SUBMITTED).  WRITE and READ of 0 bytes are OK at once. */
int fo_run(fo_engine *e, fo_request *reqs, uint32_t count, uint64_t timeout_ns);

/* A region that was written, to be read again: sums are the XXH3-64 of each of its slot-sized blocks, the last one partial. */
typedef struct fo_readback {
    uint16_t target;
    uint8_t reserved[6];
    uint64_t offset, length; /* multiples of the granule */
    const uint64_t *sums;
    fo_outcome outcome; /* OK, the first failed read, or MISMATCH; done: bytes that were right */
} fo_readback;

/* Reads all regions and compares; uses control slots and no other memory.  A region is given up at its first failure.  Status as
 * fo_run: after a failure the outcomes say nothing. */
int fo_read_back(fo_engine *e, fo_readback *regions, uint32_t count, uint64_t timeout_ns);

/* ---- streams --------------------------------------------------------------------------------------------------- */

typedef enum fo_leg_state {
    FO_LEG_ACTIVE = 0,
    FO_LEG_FAILED = 1, /* sticky: nothing more is submitted for this leg */
    FO_LEG_EJECTED = 2,
    FO_LEG_SYNCED = 3,
} fo_leg_state;

typedef struct fo_leg {
    uint16_t target;
    uint8_t state; /* fo_leg_state */
    uint8_t drained; /* nothing of this stream is in flight on this target */
    uint32_t inflight;
    uint64_t accepted, submitted, completed, synced; /* bytes */
    fo_outcome first; /* the first fault, or all zero */
} fo_leg;

enum { FO_WRITE_RAW = 1u << 0 }; /* framing bytes: in the slot sums, not in the object digest */

/* Waits for two slots and an admission (-ETIMEDOUT).  -EINVAL: no legs, too many, the same target twice, or a target that is
 * not ACTIVE, or that another caller is finishing or closing. */
int fo_stream_open(fo_engine *e, const uint16_t *targets, uint32_t count, uint64_t timeout_ns, fo_stream **out);
/* Bit mask of the legs that are never ejected for being slow, whatever their target's on_slow says.  Also while another caller is
 * inside. */
int fo_stream_keep(fo_stream *s, uint32_t legs);
uint32_t fo_stream_id(const fo_stream *s);
/* The granule of the stream: the largest of its targets'. */
uint32_t fo_stream_granule(const fo_stream *s);
/* Where the next bytes go, one offset per leg, and how many may follow (a multiple of the granule, or UINT64_MAX).  Only at a
 * slot boundary (-EBUSY: call fo_stream_pad first).  Starts the sums anew. */
int fo_stream_place(fo_stream *s, const uint64_t *offsets, uint64_t length);
/* Accepts len bytes: copies, hashes, publishes full slots.  *taken says how many (less than len only with an error).
 * *failed is the bit mask of legs that have failed so far.
 * -EFBIG: past the placed length; -ETIMEDOUT: no slot in time; -EPIPE: no leg is left; -ECANCELED: aborted;
 * -ENOBUFS: the event queue is full, read the events and go on. */
int fo_stream_write(fo_stream *s, const void *data, size_t len, uint32_t flags, uint64_t timeout_ns, size_t *taken,
                    uint32_t *failed);
/* A lease: the caller fills the slot itself (recv, read), which saves the copy.  Lends what is free in the current slot, or a new
 * one: at least min bytes, at most what was placed.  When the current slot has less than min left, its whole granules are
 * published early and the few bytes behind them move along.  While a lease is out every call that moves bytes, places, seals or
 * takes digests says -EBUSY; abort, eject, legs and close do not mind.  The memory stays what it is, whoever aborts or closes
 * whatever, until the lease is given back.
 * -EINVAL: min is more than a slot holds beside the bytes that do not fill a granule yet; else as fo_stream_write. */
int fo_stream_lease(fo_stream *s, size_t min, uint64_t timeout_ns, void **data, size_t *room);
/* Takes the first len bytes as they are now: hashes them where they lie and publishes the slot when it is full.  Nobody may
 * change them any more.  The lease has ended whatever this says, except after -EINVAL (more than was lent, or nothing was). */
int fo_stream_commit(fo_stream *s, size_t len, uint32_t flags, uint32_t *failed);
/* Gives the lease back without taking anything; does nothing when none is out.  Also after the stream or the engine was closed:
 * until then the handle and the memory live on, for this call alone. */
void fo_stream_return(fo_stream *s);
/* Zero-pads the current slot to the granule and publishes it. */
int fo_stream_pad(fo_stream *s, uint64_t timeout_ns);
/* Position since the last place: bytes accepted, padding included. */
uint64_t fo_stream_position(const fo_stream *s);
/* The digest of the non-raw bytes since the last call (or the start), and starts anew. */
int fo_stream_digest(fo_stream *s, uint8_t out[FO_DIGEST_SIZE]);
/* The digest of an object that goes on in another stream, also when the first one is closed by then.  Good in this process. */
typedef struct fo_unfinished {
    uint8_t state[FO_UNFINISHED_SIZE];
} fo_unfinished;
/* Takes it away from the stream, whose own starts anew; and lets another one go on with it.  -EBUSY: a caller is inside. */
int fo_stream_suspend(fo_stream *s, fo_unfinished *out);
int fo_stream_resume(fo_stream *s, const fo_unfinished *from);
/* XXH3-64 of each slot-sized block of the span so far, the last one partial; then summing stops until the next place.
 * Returns how many there are; fills at most max.  A stream that was never placed keeps none; one placed with length
 * UINT64_MAX keeps the first 65,536. */
int fo_stream_sums(fo_stream *s, uint64_t *out, uint32_t max);
/* From the next place on, keeps the sums of every byte for fo_stream_media: framing included, also what follows fo_stream_sums. */
int fo_stream_prove(fo_stream *s);
/* XXH3-64 of each slot-sized block since the last place, the last one partial: what is on the media, as fo_read_back wants it.
 * Returns how many there are; fills at most max.  Also after the seal.  -EINVAL: not asked for before the place; -EFBIG: more
 * blocks than sums are kept for. */
int fo_stream_media(fo_stream *s, uint64_t *out, uint32_t max);
/* No more bytes: pads, publishes, gives the guaranteed slots back, and asks for a flush of every leg once its writes have
 * completed.  Does not wait. */
int fo_stream_seal(fo_stream *s, uint64_t timeout_ns);
/* Waits until every leg is synced or failed (seals first if need be).  -ETIMEDOUT: not yet, call again. */
int fo_stream_sync(fo_stream *s, uint64_t timeout_ns);
/* Copies the legs' state; returns how many legs there are. */
int fo_stream_legs(fo_stream *s, fo_leg *out, uint32_t max);
/* Drop one target from the stream (policy's decision): what is queued is NOT_SUBMITTED, what is in flight drains. */
int fo_stream_eject(fo_stream *s, uint16_t target);
/* Stops everything; idempotent.  fo_stream_drained waits until nothing of it is in flight on any attached target. */
int fo_stream_abort(fo_stream *s);
int fo_stream_drained(fo_stream *s, uint64_t timeout_ns);
/* Ends the handle (while a lease is out: its return does).  Not sealed and synced: aborts.  The engine keeps the books until
 * the last completion. */
void fo_stream_close(fo_stream *s);

/* ---- small things ----------------------------------------------------------------------------------------------- */

void fo_digest(const void *data, size_t len, uint8_t out[FO_DIGEST_SIZE]);
uint64_t fo_sum(const void *data, size_t len);
fo_class fo_classify(int err);
const char *fo_backend_name(uint32_t backend);

#ifdef __cplusplus
}
#endif
#endif
