# cython: language_level=3, embedsignature=True, boundscheck=False, wraparound=False
# cython: auto_pickle=False, autotestdict=False, warn.maybe_uninitialized=True
"""The C core for Python: arguments in, GIL off, status out. No decision is taken here.

Every method that can fail in an expected way returns 0 or a negative errno (or a result that
cannot be negative); `fanout.engine` turns that into exceptions, in one table. Only `fanout.engine`
may import this module.

Three rules hold everywhere:

* Calls that copy `UNLOCKED_BYTES` or more, or that may wait, release the GIL. Waiting happens in
  slices of at most `SLICE_NS`, and signals are looked at in between, so that KeyboardInterrupt
  comes through. (Three calls wait in one piece, because they cannot be taken up again: target_open,
  bounded by its timeout, and run and read_back, bounded by the hard deadline.)
* A caller's buffer stays exported for as long as C may look at it: never longer than the call.
  The other way round, memory that is lent (`Lease`) stays lent for as long as anything exports it.
* A handle is not freed while another thread is inside a call on it: closing then answers -EBUSY.
  The counters that see to this are guarded by the GIL, so this module does not declare itself
  ready for free-threaded Pythons.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.weakref cimport PyWeakref_NewRef
from libc.errno cimport EBADF, EBUSY, EINVAL, ENOBUFS, ESHUTDOWN, ETIMEDOUT
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from fanout cimport _csrc as c

from collections import deque

cdef enum:
    # Copying and hashing 32 KiB takes about 3 µs; giving the GIL away can cost as much.
    UNLOCKED_BYTES = 32 << 10
    # Framing comes once for each span, from a caller that needs the GIL right after it; beside a
    # busy thread it would wait 5 ms to have it back. A footer of 4,096 objects takes about 30 µs.
    UNLOCKED_RAW_BYTES = 512 << 10
    PIECE_BYTES = 16 << 20   # at most this between two looks at signals: about 3 ms
    EVENT_BATCH = 128
    EVENT_BYTES = 96
    MANY_EVENTS = 512        # half of what the core keeps besides what it may yet have to tell
    STASH_BATCHES = 512      # 65,536 events, 6 MiB: what is kept when nobody reads events

cdef extern from "errno.h":
    int EOWNERDEAD  # which Cython's own list lacks

cdef uint64_t SLICE_NS = 100_000_000

FOREVER = c.FO_FOREVER
ANY_TARGET = 0xFFFF

OPEN_CREATE = c.FO_OPEN_CREATE
OPEN_REPLACE = c.FO_OPEN_REPLACE
OPEN_READONLY = c.FO_OPEN_READONLY
OPEN_LOCK = c.FO_OPEN_LOCK
OPEN_BUFFERED = c.FO_OPEN_BUFFERED
OPEN_NOFOLLOW = c.FO_OPEN_NOFOLLOW
OPEN_NAMED = c.FO_OPEN_NAMED
MAX_TARGETS = c.FO_MAX_TARGETS
MAX_LEGS = c.FO_MAX_LEGS
SLOW_WAIT = c.FO_SLOW_WAIT
SLOW_EJECT = c.FO_SLOW_EJECT
WRITE_RAW = c.FO_WRITE_RAW

FAULT_ERRNO = c.FO_FAULT_ERRNO
FAULT_ERRNO_AFTER = c.FO_FAULT_ERRNO_AFTER
FAULT_SHORT = c.FO_FAULT_SHORT
FAULT_NEVER = c.FO_FAULT_NEVER
FAULT_DELAY = c.FO_FAULT_DELAY
FAULT_SWALLOW = c.FO_FAULT_SWALLOW
FAULT_FLIP = c.FO_FAULT_FLIP
FAULT_SHIFT = c.FO_FAULT_SHIFT

BACKEND_AUTO = c.FO_BACKEND_AUTO
BACKEND_URING = c.FO_BACKEND_URING
BACKEND_THREADS = c.FO_BACKEND_THREADS
BACKEND_FAULTY = c.FO_BACKEND_FAULTY


ctypedef int (*stream_call)(c.fo_stream *, uint64_t) noexcept nogil
ctypedef int (*sums_call)(c.fo_stream *, uint64_t *, uint32_t) noexcept


cdef int export(object data, Py_buffer *view, int flags) except -1:
    """Take a flat, C-contiguous export; what the exporter says against it is a BufferError."""
    try:
        PyObject_GetBuffer(data, view, flags)
    except ValueError as error:  # numpy's way of saying so
        raise BufferError(str(error)) from None
    return 0


cdef uint64_t seq_of(bytes batch):
    """The number of its first event."""
    return (<const c.fo_event *><const char *>batch).seq


cdef tuple outcome_tuple(const c.fo_outcome *o):
    return (
        o.code, o.phase, o.offset, o.length, o.done,
        o.err, o.cls, o.attempts, o.latency_ns, o.more,
    )


@cython.final
@cython.no_gc_clear  # streams and targets that go with it in one collection still leave its books
cdef class Engine:
    """One native engine.

    Raises ValueError or OSError with the core's own sentence when it cannot be opened.
    """

    cdef c.fo_engine *_engine
    cdef int _calls    # in progress, on this engine or on anything that hangs on it
    cdef int _streams  # handles that are not closed
    cdef bint _closing
    cdef object _stash
    cdef dict _open_streams  # handle: weak reference, without a callback for a signal to end in
    cdef readonly int lost_batches

    def __cinit__(self, *, uint32_t slot_size, uint32_t slot_count, uint32_t max_streams,
                  uint32_t control_slots, uint32_t quarantine_slots, uint32_t backend,
                  uint64_t soft_ns, uint64_t hard_ns, uint64_t patience_ns, uint64_t seed):
        cdef c.fo_config cfg
        cdef char reason[160]
        cdef int status
        reason[0] = 0
        c.fo_config_init(&cfg)
        cfg.slot_size = slot_size
        cfg.slot_count = slot_count
        cfg.max_streams = max_streams
        cfg.control_slots = control_slots
        cfg.quarantine_slots = quarantine_slots
        cfg.backend = backend
        cfg.soft_ns = soft_ns
        cfg.hard_ns = hard_ns
        cfg.patience_ns = patience_ns
        cfg.seed = seed
        self._stash = deque()
        self._open_streams = {}
        with nogil:
            status = c.fo_engine_open(&cfg, reason, &self._engine)
        if status < 0:
            self._engine = NULL
            text = (<bytes>reason).decode("utf-8", "replace")
            if status == -EINVAL:
                raise ValueError(text)
            raise OSError(-status, text)

    def __dealloc__(self):
        # Nobody can be inside: a call and a stream each hold a reference.
        if self._engine is not NULL:
            with nogil:
                c.fo_engine_close(self._engine, 0)

    cdef int enter(self) noexcept:
        if self._engine is NULL or self._closing:
            return -EBADF
        if self.dead():
            return -EOWNERDEAD
        self._calls += 1
        return 0

    cdef bint dead(self) noexcept:
        """A forked child: the counters are those of the parent's threads, which are not here."""
        return self._engine is not NULL and c.fo_engine_dead(self._engine) != 0

    cdef int leave(self, int status) noexcept:
        self._calls -= 1
        return status

    cdef int go_on(self, int status, uint64_t *left) except 1:
        """After a slice: 0 to wait on, else the status. Raises what a signal handler raised."""
        if status != -ETIMEDOUT:
            return status
        PyErr_CheckSignals()
        if self._closing:
            return -ESHUTDOWN
        if left[0] <= SLICE_NS:
            return -ETIMEDOUT
        if left[0] != c.FO_FOREVER:
            left[0] -= SLICE_NS
        return 0

    cdef object take_events(self, uint64_t timeout_ns):
        """One batch of raw records, or None."""
        cdef c.fo_event batch[EVENT_BATCH]
        cdef int count
        if timeout_ns == 0:  # with the GIL, so that batches are stashed in their order
            count = c.fo_events(self._engine, batch, EVENT_BATCH, 0)
        else:
            with nogil:
                count = c.fo_events(self._engine, batch, EVENT_BATCH, timeout_ns)
        if count <= 0:
            return None
        return PyBytes_FromStringAndSize(<char *>batch, count * EVENT_BYTES)

    cdef uint64_t pending_events(self) noexcept:
        cdef c.fo_info info
        c.fo_engine_info(self._engine, &info)
        return info.events_pending

    cdef int stash_events(self) except -1:
        """Make room: the core drops no event, so somebody has to read before streams go on.

        The last ones stay there: whoever waits or polls for events is not left without.
        """
        while self.pending_events() > EVENT_BATCH:
            batch = self.take_events(0)
            if batch is None:
                return 0
            self._stash.append(batch)
            if len(self._stash) > STASH_BATCHES:
                self._stash.popleft()
                self.lost_batches += 1
        return 0

    cdef int make_room(self) except -1:
        """Before a call that cannot be taken up again where it finds no room for its events."""
        if self.pending_events() > MANY_EVENTS:
            self.stash_events()
        return 0

    def close(self, uint64_t timeout_ns):
        """0; -ETIMEDOUT: closed, something was in flight; -EBUSY: another thread is inside.

        After -EBUSY nobody gets in any more, and those inside come out: call again.
        """
        cdef c.fo_engine *engine = self._engine
        cdef int status
        if engine is NULL:
            return 0
        if not self._closing:
            self._closing = True
            c.fo_unwatch(engine, -1)  # those who wait look again; nobody can watch any more
        if (self._calls or self._streams) and not self.dead():
            return -EBUSY
        self._engine = NULL
        if c.fo_engine_dead(engine):
            return 0  # the child has nothing to give back
        with nogil:
            status = c.fo_engine_close(engine, timeout_ns)
        return status

    def streams(self):
        """All that somebody has, also those whose maker was interrupted before it had them."""
        found = [reference() for reference in list(self._open_streams.values())]
        return [stream for stream in found if stream is not None]

    def look(self):
        """Let `info` say what pages the arena has; slow in a large process, the first time."""
        if self.enter() == 0:
            with nogil:
                c.fo_engine_look(self._engine)
            self.leave(0)

    def info(self):
        """The whole snapshot by name, or None when closed. In a forked child it says so."""
        cdef c.fo_info info
        cdef dict snapshot
        cdef int status = self.enter()
        if status == -EBADF:
            return None
        c.fo_engine_info(self._engine, &info)
        if status == 0:
            self.leave(0)
        snapshot = info
        snapshot["reason"] = (<bytes>(<char *>info.reason)).decode("utf-8", "replace")
        return snapshot

    def events(self, uint64_t timeout_ns):
        """Raw records of 96 bytes, oldest first; b"" when there are none."""
        cdef uint64_t left = timeout_ns
        cdef int status
        if self._stash:
            return self._stash.popleft()
        if self.enter() < 0:
            return b""
        try:
            while True:
                batch = self.take_events(min(left, SLICE_NS))
                if self._stash:  # filled meanwhile
                    if batch is not None and seq_of(batch) < seq_of(self._stash[0]):
                        return batch
                    if batch is not None:
                        self._stash.append(batch)
                    return self._stash.popleft()
                if batch is not None:
                    return batch
                status = self.go_on(-ETIMEDOUT, &left)
                if status:
                    return b""
        finally:
            self.leave(0)

    def event_fd(self):
        """A descriptor to poll, or a negative errno."""
        cdef int status = self.enter()
        return status if status < 0 else self.leave(c.fo_event_fd(self._engine))

    def watch(self, int fd):
        """Write to an eventfd at the next change, once; 0 or a negative errno."""
        cdef int status = self.enter()
        return status if status < 0 else self.leave(c.fo_watch(self._engine, fd))

    def unwatch(self, int fd):
        """Before the eventfd is closed. A closing engine has forgotten it already."""
        if self._engine is not NULL:
            c.fo_unwatch(self._engine, fd)

    def now(self):
        """Nanoseconds on the engine's clock, or a negative errno."""
        cdef int status = self.enter()
        if status < 0:
            return status
        now = c.fo_now(self._engine)
        self.leave(0)
        return now

    def faults_set(self, faults):
        """Faults are tuples of (target, kind, nth, count, action, value)."""
        cdef uint32_t count = len(faults)
        cdef uint32_t i = 0
        cdef int status = self.enter()
        cdef c.fo_fault *script = NULL
        if status < 0:
            return status
        try:
            script = <c.fo_fault *>PyMem_Calloc(count + 1, sizeof(c.fo_fault))
            if script is NULL:
                raise MemoryError
            for target, kind, nth, times, action, value in faults:
                script[i].target = target
                script[i].kind = kind
                script[i].nth = nth
                script[i].count = times
                script[i].action = action
                script[i].value = value
                i += 1
            return c.fo_faults_set(self._engine, script, count)
        finally:
            PyMem_Free(script)
            self.leave(0)

    def faults_advance(self, uint64_t ns):
        """Let simulated time pass."""
        cdef int status = self.enter()
        if status < 0:
            return status
        with nogil:
            status = c.fo_faults_advance(self._engine, ns)
        return self.leave(status)

    def faults_release(self, uint16_t target):
        """Complete what never completes on a target."""
        cdef int status = self.enter()
        if status < 0:
            return status
        with nogil:
            status = c.fo_faults_release(self._engine, target)
        return self.leave(status)

    def faults_journal(self, int fd):
        """Append what is carried out to a descriptor."""
        cdef int status = self.enter()
        if status < 0:
            return status
        return self.leave(c.fo_faults_journal(self._engine, fd))

    def faults_power(self, uint64_t ops):
        """Let the power fail after so many operations."""
        cdef int status = self.enter()
        if status < 0:
            return status
        return self.leave(c.fo_faults_power(self._engine, ops))

    # ---- targets

    def target_open(self, bytes path, *, uint32_t flags, uint32_t depth, uint64_t size,
                    uint64_t lock_wait_ns, uint32_t granule, uint32_t on_slow, uint64_t soft_ns,
                    uint64_t hard_ns, uint64_t patience_ns, uint64_t timeout_ns):
        """(status, `Target` or None, outcome)."""
        cdef c.fo_open options
        cdef c.fo_outcome why
        cdef uint16_t number = 0
        cdef Target target = Target.__new__(Target)
        cdef int status = self.enter()
        cdef const char *name = path
        if status < 0:
            return status, None, None
        memset(&options, 0, sizeof(options))
        memset(&why, 0, sizeof(why))
        options.flags = flags
        options.depth = depth
        options.size = size
        options.lock_wait_ns = lock_wait_ns
        options.granule = granule
        options.on_slow = on_slow
        options.soft_ns = soft_ns
        options.hard_ns = hard_ns
        options.patience_ns = patience_ns
        try:
            self.make_room()
            with nogil:
                status = c.fo_target_open(
                    self._engine, name, &options, timeout_ns, &number, &why
                )
        finally:
            self.leave(0)
        if status < 0:
            return status, None, outcome_tuple(&why)
        target._engine = self
        target._number = number
        target._open = True
        return status, target, outcome_tuple(&why)

    def run(self, requests, uint64_t timeout_ns):
        """Requests are tuples of (target, kind, offset, length, data or None).

        Gives (status, outcomes).

        The length of a WRITE or READ is that of its data.
        """
        cdef uint32_t count = len(requests)
        cdef uint32_t exported = 0
        cdef uint32_t i = 0
        cdef int flags
        cdef c.fo_request *array = NULL
        cdef Py_buffer *views = NULL
        cdef int status = self.enter()
        if status < 0:
            return status, []
        try:
            self.make_room()
            array = <c.fo_request *>PyMem_Calloc(count + 1, sizeof(c.fo_request))
            views = <Py_buffer *>PyMem_Calloc(count + 1, sizeof(Py_buffer))
            if array is NULL or views is NULL:
                raise MemoryError
            for target, kind, offset, length, data in requests:
                array[i].target = target
                array[i].kind = kind
                array[i].offset = offset
                array[i].length = length
                if kind == c.FO_OP_WRITE or kind == c.FO_OP_READ:
                    flags = PyBUF_WRITABLE if kind == c.FO_OP_READ else PyBUF_SIMPLE
                    export(data, &views[exported], flags)
                    array[i].data = views[exported].buf
                    array[i].length = <uint64_t>views[exported].len
                    exported += 1
                i += 1
            with nogil:
                status = c.fo_run(self._engine, array, count, timeout_ns)
            return status, [outcome_tuple(&array[i].outcome) for i in range(count)]
        finally:
            for i in range(exported):
                PyBuffer_Release(&views[i])
            PyMem_Free(views)
            PyMem_Free(array)
            self.leave(0)

    def read_back(self, regions, uint64_t timeout_ns):
        """Regions are tuples of (target, offset, length, sums): 8 bytes per slot of the length.

        Gives (status, outcomes).
        """
        cdef uint32_t count = len(regions)
        cdef uint32_t i = 0
        cdef c.fo_readback *array = NULL
        cdef const char *sums
        cdef int status = self.enter()
        if status < 0:
            return status, []
        try:
            self.make_room()
            array = <c.fo_readback *>PyMem_Calloc(count + 1, sizeof(c.fo_readback))
            if array is NULL:
                raise MemoryError
            for target, offset, length, expected in regions:
                sums = expected  # the regions hold it until we are done
                array[i].target = target
                array[i].offset = offset
                array[i].length = length
                array[i].sums = <const uint64_t *>sums
                i += 1
            with nogil:
                status = c.fo_read_back(self._engine, array, count, timeout_ns)
            return status, [outcome_tuple(&array[i].outcome) for i in range(count)]
        finally:
            PyMem_Free(array)
            self.leave(0)

    def stream(self, targets, uint64_t timeout_ns):
        """A `Stream`, or a negative errno."""
        cdef uint16_t ids[c.FO_MAX_LEGS]
        cdef uint32_t count = 0
        cdef uint64_t left = timeout_ns, part
        cdef c.fo_stream *handle = NULL
        cdef Stream stream = Stream.__new__(Stream)
        cdef int status
        if not 0 < len(targets) <= c.FO_MAX_LEGS:
            return -EINVAL
        for target in targets:
            ids[count] = target
            count += 1
        status = self.enter()
        if status < 0:
            return status
        try:
            c.fo_stream_open(self._engine, ids, count, 0, &handle)  # mostly it need not wait
            while handle is NULL:
                part = min(left, SLICE_NS)
                with nogil:
                    status = c.fo_stream_open(self._engine, ids, count, part, &handle)
                if status == -ENOBUFS:
                    self.stash_events()
                elif status < 0:
                    status = self.go_on(status, &left)
                    if status:
                        return status
            self._streams += 1
            stream._engine = self
            stream._stream = handle
            stream._legs = count
            self._open_streams[<size_t>handle] = PyWeakref_NewRef(stream, None)
            return stream
        finally:
            self.leave(0)


@cython.final
@cython.no_gc_clear  # the engine must still be there when the handle is given back
cdef class Target:
    """One open file or device; made by `Engine.target_open`.

    The number can be another's as soon as it is closed, so what is open is kept here, where no
    signal handler gets in between. What is forgotten is closed without waiting.
    """

    cdef Engine _engine
    cdef uint16_t _number
    cdef bint _open

    def __dealloc__(self):
        if self._open and self._engine.enter() == 0:
            with nogil:
                c.fo_target_forget(self._engine._engine, self._number)
            self._engine.leave(0)

    cdef int enter(self) noexcept:
        return self._engine.enter() if self._open else -EBADF

    @property
    def open(self):
        """Whether it has not been closed or finished."""
        return self._open

    @property
    def number(self):
        """What events carry; used again after closing."""
        return self._number

    cdef int look(self, c.fo_geometry *geometry) noexcept:
        cdef int status = self.enter()
        if status == 0:
            status = c.fo_target_geometry(self._engine._engine, self._number, geometry)
            self._engine.leave(0)
        return status

    def geometry(self):
        """The geometry by name, or a negative errno."""
        cdef c.fo_geometry geometry
        cdef int status = self.look(&geometry)
        if status < 0:
            return status
        return geometry

    def state(self):
        """Of the geometry only the state, which is asked for at every span; or a negative errno."""
        cdef c.fo_geometry geometry
        cdef int status = self.look(&geometry)
        return status if status < 0 else <int>geometry.state

    def finish(self, int64_t length, uint64_t timeout_ns):
        """(status, outcome). Closed in the end, except after -EBUSY."""
        cdef c.fo_outcome why
        cdef int status = self.enter()
        if status < 0:
            return status, None
        self._open = False
        memset(&why, 0, sizeof(why))
        with nogil:
            status = c.fo_target_finish(
                self._engine._engine, self._number, length, timeout_ns, &why
            )
        self._open = status == -EBUSY and why.code == 0  # else EBUSY is what a step met with
        self._engine.leave(0)
        return status, outcome_tuple(&why)

    def close(self, uint64_t timeout_ns):
        """Close without a flush. Closed in the end, except after -EBUSY."""
        cdef int status = self.enter()
        if status < 0:
            return status
        self._open = False
        with nogil:
            status = c.fo_target_close(self._engine._engine, self._number, timeout_ns)
        self._open = status == -EBUSY
        return self._engine.leave(status)


@cython.final
cdef class Unfinished:
    """The digest of an object that goes on in another stream."""

    cdef c.fo_unfinished digest

    def __init__(self):
        raise TypeError("made by Stream.suspend")


@cython.final
@cython.no_gc_clear  # the engine must still be there when the handle is given back
cdef class Stream:
    """One stream; made by `Engine.stream` (one made otherwise is closed from the start)."""

    cdef object __weakref__
    cdef Engine _engine
    cdef c.fo_stream *_stream
    cdef int _calls
    cdef int _legs
    cdef bint _taken  # by the one caller that may move bytes, also between the slices of its wait

    def __dealloc__(self):
        self.drop()

    cdef void drop(self) noexcept:
        cdef c.fo_stream *handle = self._stream
        if handle is NULL:
            return
        self._stream = NULL
        c.fo_stream_close(handle)  # nobody is inside: there is nothing to wait for
        self._engine._streams -= 1
        self._engine._open_streams.pop(<size_t>handle, None)  # last: it takes memory

    cdef int enter(self) noexcept:
        cdef int status
        if self._stream is NULL:
            return -EBADF
        status = self._engine.enter()
        if status == 0:
            self._calls += 1
        return status

    cdef int leave(self, int status) noexcept:
        self._calls -= 1
        return self._engine.leave(status)

    cdef int enter_alone(self) noexcept:
        cdef int status = self.enter()
        if status < 0:
            return status
        if self._taken:
            return self.leave(-EBUSY)
        self._taken = True
        return 0

    cdef int leave_alone(self, int status) noexcept:
        self._taken = False
        return self.leave(status)

    def close(self):
        """Ends the handle; what is not synced is aborted. -EBUSY: another thread is inside."""
        if self._calls and not self._engine.dead():
            return -EBUSY
        self.drop()
        return 0

    @property
    def ident(self):
        """The number that events carry, 0 when closed."""
        return 0 if self._stream is NULL else c.fo_stream_id(self._stream)

    @property
    def granule(self):
        """The largest granule of the targets in bytes, 0 when closed."""
        return 0 if self._stream is NULL else c.fo_stream_granule(self._stream)

    @property
    def position(self):
        """Bytes since the last place, 0 when closed."""
        return 0 if self._stream is NULL else c.fo_stream_position(self._stream)

    def place(self, offsets, uint64_t length):
        """One offset per target."""
        cdef uint64_t places[c.FO_MAX_LEGS]
        cdef int count = 0
        cdef int status
        if len(offsets) > c.FO_MAX_LEGS:
            return -EINVAL
        status = self.enter_alone()
        if status < 0:
            return status
        try:
            for offset in offsets:
                places[count] = offset
                count += 1
            if self._legs != count:
                return -EINVAL
            return c.fo_stream_place(self._stream, places, length)
        finally:
            self.leave_alone(0)

    def write(self, data, uint32_t flags, uint64_t timeout_ns):
        """The mask of failed targets, or a negative errno.

        The timeout is for a wait without any progress.
        """
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        try:
            return self.take(data, flags, timeout_ns)
        finally:
            self.leave_alone(0)

    def write_object(self, data, uint64_t timeout_ns):
        """As `write` and then, if no target has failed, `digest`: its 16 bytes."""
        cdef uint8_t out[c.FO_DIGEST_SIZE]
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        try:
            status = self.take(data, 0, timeout_ns)
            if status == 0:
                status = c.fo_stream_digest(self._stream, out)
            if status != 0:
                return status
            return PyBytes_FromStringAndSize(<char *>out, c.FO_DIGEST_SIZE)
        finally:
            self.leave_alone(0)

    cdef int take(self, data, uint32_t flags, uint64_t timeout_ns) except? -1:
        cdef Py_buffer view
        export(data, &view, PyBUF_SIMPLE)
        try:
            return self.accept(<const uint8_t *>view.buf, <size_t>view.len, flags, timeout_ns)
        finally:
            PyBuffer_Release(&view)

    cdef int accept(self, const uint8_t *data, size_t size, uint32_t flags,
                    uint64_t timeout_ns) except? -1:
        cdef size_t taken, piece
        cdef uint32_t failed = 0
        cdef uint64_t left = timeout_ns, part
        cdef size_t locked = UNLOCKED_RAW_BYTES if flags & c.FO_WRITE_RAW else UNLOCKED_BYTES
        cdef int status
        while True:
            taken = 0
            if size < locked:
                status = c.fo_stream_write(
                    self._stream, data, size, flags, 0, &taken, &failed
                )
            else:
                status = -ETIMEDOUT
            if status == -ETIMEDOUT:
                data += taken
                size -= taken
                taken = 0
                piece = min(size, <size_t>PIECE_BYTES)
                part = min(left, SLICE_NS)
                with nogil:
                    status = c.fo_stream_write(
                        self._stream, data, piece, flags, part, &taken, &failed
                    )
            data += taken
            size -= taken
            if status == 0 and size == 0:
                return <int>failed
            if status == -ENOBUFS:
                self._engine.stash_events()
                continue
            if taken:
                left = timeout_ns
            status = self._engine.go_on(status, &left)
            if status == 0:
                PyErr_CheckSignals()
            else:
                return status

    def lease(self, size_t size, uint64_t timeout_ns):
        """A `Lease` of exactly so many bytes (0: what the slot has left), or a negative errno."""
        cdef uint64_t left = timeout_ns, part
        cdef size_t room = 0
        cdef void *data = NULL
        cdef Lease lease
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        try:
            lease = Lease.__new__(Lease)
            c.fo_stream_lease(self._stream, size, 0, &data, &room)  # mostly it need not wait
            while data is NULL:
                part = min(left, SLICE_NS)
                with nogil:
                    status = c.fo_stream_lease(self._stream, size, part, &data, &room)
                if status == -ENOBUFS:
                    self._engine.stash_events()
                elif status < 0:
                    status = self._engine.go_on(status, &left)
                    if status:
                        return status
            lease._stream = self
            lease._handle = self._stream
            lease._data = data
            lease._size = <Py_ssize_t>(size if size else room)
            return lease
        finally:
            self.leave_alone(0)

    cdef int wait(self, stream_call call, uint64_t timeout_ns) except? -1:
        cdef uint64_t left = timeout_ns, part
        cdef int status
        # Often there is nothing to wait for, and then there is no need to give the GIL away.
        if call(self._stream, 0) == 0:
            return 0
        while True:
            part = min(left, SLICE_NS)
            with nogil:
                status = call(self._stream, part)
            if status == 0:
                return 0
            if status == -ENOBUFS:
                self._engine.stash_events()
                continue
            status = self._engine.go_on(status, &left)
            if status:
                return status

    cdef int wait_alone(self, stream_call call, uint64_t timeout_ns) except? -1:
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        try:
            return self.wait(call, timeout_ns)
        finally:
            self.leave_alone(0)

    def pad(self, uint64_t timeout_ns):
        """Zeros up to the granule."""
        return self.wait_alone(c.fo_stream_pad, timeout_ns)

    def seal(self, uint64_t timeout_ns):
        """No more bytes; asks for the flushes."""
        return self.wait_alone(c.fo_stream_seal, timeout_ns)

    def sync(self, uint64_t timeout_ns):
        """Wait until every leg is synced or failed."""
        return self.wait_alone(c.fo_stream_sync, timeout_ns)

    def drained(self, uint64_t timeout_ns):
        """Wait until nothing is in flight on any attached target; may overlap any other call."""
        cdef int status = self.enter()
        if status < 0:
            return status
        try:
            return self.wait(c.fo_stream_drained, timeout_ns)
        finally:
            self.leave(0)

    def digest(self):
        """16 bytes, or a negative errno."""
        cdef uint8_t out[c.FO_DIGEST_SIZE]
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        status = self.leave_alone(c.fo_stream_digest(self._stream, out))
        return status if status < 0 else PyBytes_FromStringAndSize(<char *>out, c.FO_DIGEST_SIZE)

    def suspend(self):
        """The unfinished digest of the current object, or a negative errno."""
        cdef Unfinished begun = Unfinished.__new__(Unfinished)
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        status = self.leave_alone(c.fo_stream_suspend(self._stream, &begun.digest))
        return status if status < 0 else begun

    def resume(self, Unfinished begun not None):
        """Go on with it; 0 or a negative errno."""
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        return self.leave_alone(c.fo_stream_resume(self._stream, &begun.digest))

    cdef object take_sums(self, sums_call call):
        cdef int count
        cdef uint64_t none = 0
        cdef int status = self.enter_alone()
        if status < 0:
            return status
        try:
            count = call(self._stream, &none, 0)
            if count <= 0:
                return count if count < 0 else b""
            sums = PyBytes_FromStringAndSize(NULL, count * 8)
            count = call(self._stream, <uint64_t *><char *>sums, count)
            return sums
        finally:
            self.leave_alone(0)

    def sums(self):
        """8 bytes per block in the machine's byte order, or a negative errno."""
        return self.take_sums(c.fo_stream_sums)

    def prove(self):
        """Keep what `media` gives; before the place."""
        cdef int status = self.enter_alone()
        return status if status < 0 else self.leave_alone(c.fo_stream_prove(self._stream))

    def media(self):
        """As `sums`, of all that was written since the place; a negative errno."""
        return self.take_sums(c.fo_stream_media)

    def legs(self):
        """One tuple per leg: the fields of fo_leg in their order."""
        cdef c.fo_leg legs[c.FO_MAX_LEGS]
        cdef int i
        cdef int count = self.enter()
        if count < 0:
            return count
        count = self.leave(c.fo_stream_legs(self._stream, legs, c.FO_MAX_LEGS))
        if count < 0:
            return count
        return [
            (legs[i].target, legs[i].state, legs[i].drained, legs[i].inflight, legs[i].accepted,
             legs[i].submitted, legs[i].completed, legs[i].synced, outcome_tuple(&legs[i].first))
            for i in range(count)
        ]

    def keep(self, uint32_t legs):
        """The legs, as a mask, that are not ejected for being slow."""
        cdef int status = self.enter()
        return status if status < 0 else self.leave(c.fo_stream_keep(self._stream, legs))

    def eject(self, uint16_t target):
        """Drop one target from the stream."""
        cdef int status = self.enter()
        return status if status < 0 else self.leave(c.fo_stream_eject(self._stream, target))

    def abort(self):
        """Stop everything; may be called while another thread is inside."""
        cdef int status = self.enter()
        return status if status < 0 else self.leave(c.fo_stream_abort(self._stream))


@cython.final
@cython.no_gc_clear  # the stream must still be there when the memory is given back
cdef class Lease:
    """Memory of a slot, lent; made by `Stream.lease`. Exports it through the buffer protocol.

    The memory goes back when the lease has ended and nothing exports it any more; until then the
    core keeps it, whatever is aborted or closed. An export holds a reference, so there is none
    left when the lease is deallocated.
    """

    cdef Stream _stream
    cdef c.fo_stream *_handle  # NULL: given back
    cdef void *_data
    cdef Py_ssize_t _size
    cdef Py_ssize_t _exports
    cdef object _shown  # a weak reference to the view that we made
    cdef bint _ended    # takes no new exports

    def __dealloc__(self):
        self.give_back()

    cdef void give_back(self) noexcept:
        cdef c.fo_stream *handle = self._handle
        if handle is not NULL:
            self._handle = NULL
            c.fo_stream_return(handle)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self._ended or self._handle is NULL:
            raise BufferError("the lease has ended")
        PyBuffer_FillInfo(buffer, self, self._data, self._size, 0, flags)
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self._exports -= 1
        if self._ended and self._exports == 0:
            self.give_back()

    def __len__(self):
        return self._size

    @property
    def ended(self):
        """Whether it has been committed or given up."""
        return self._ended

    @property
    def view(self):
        """A writable memoryview, the same one until it is released; ours to release at the end."""
        view = None if self._shown is None else self._shown()
        try:
            if view is not None and view.nbytes == self._size:
                return view
        except ValueError:  # its user has released it
            pass
        view = PyMemoryView_FromObject(self)
        self._shown = PyWeakref_NewRef(view, None)
        return view

    cdef int settle(self) except -1:
        """Release our own view; BufferError when it, or anything else, still exports the memory."""
        view = None if self._shown is None else self._shown()
        if view is not None:
            view.release()
        view = None
        if self._exports:
            raise BufferError("a part of the lease is still exported (a slice outlives its view)")
        return 0

    def commit(self, Py_ssize_t length, uint32_t flags):
        """The mask of failed targets, or a negative errno.

        After BufferError, -EINVAL (more than was lent) and -EBUSY the lease goes on.
        """
        cdef c.fo_stream *handle
        cdef uint32_t failed = 0
        cdef int status
        if self._ended or self._handle is NULL:
            return -EBADF
        if not 0 <= length <= self._size:
            return -EINVAL
        self.settle()
        status = self._stream.enter_alone()
        if status == -EBUSY:
            return status
        self._ended = True
        if status < 0:
            self.give_back()
            return status
        handle = self._handle
        self._handle = NULL
        if length < UNLOCKED_BYTES:
            status = c.fo_stream_commit(handle, <size_t>length, flags, &failed)
        else:
            with nogil:
                status = c.fo_stream_commit(handle, <size_t>length, flags, &failed)
        return self._stream.leave_alone(status if status < 0 else <int>failed)

    def end(self):
        """Give it back, at the latest when the last export is gone; idempotent."""
        self._ended = True
        view = None if self._shown is None else self._shown()
        if view is not None:
            try:
                view.release()
            except BufferError:
                pass  # whoever exports it ends it
        if self._exports == 0:
            self.give_back()


def digest(data):
    """XXH3-128 of a buffer: 16 bytes in canonical order."""
    cdef Py_buffer view
    cdef uint8_t out[c.FO_DIGEST_SIZE]
    export(data, &view, PyBUF_SIMPLE)
    with nogil:
        c.fo_digest(view.buf, <size_t>view.len, out)
    PyBuffer_Release(&view)
    return PyBytes_FromStringAndSize(<char *>out, c.FO_DIGEST_SIZE)


def sum64(data):
    """XXH3-64 of a buffer."""
    cdef Py_buffer view
    cdef uint64_t value
    export(data, &view, PyBUF_SIMPLE)
    with nogil:
        value = c.fo_sum(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)
    return value


def classify(int err):
    """The fault class of a positive errno."""
    return c.fo_classify(err)


def backend_name(uint32_t backend):
    """``io_uring``, ``threads``, ``faulty``, ``auto``."""
    return (<bytes>c.fo_backend_name(backend)).decode("ascii")
