# What _core.pyx uses of csrc/fanout.h. Private: nothing here is for other modules to cimport.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "fanout.h" nogil:
    enum:
        FO_MAX_LEGS
        FO_MAX_TARGETS
        FO_DIGEST_SIZE
        FO_OPEN_CREATE
        FO_OPEN_REPLACE
        FO_OPEN_READONLY
        FO_OPEN_LOCK
        FO_OPEN_BUFFERED
        FO_OPEN_NOFOLLOW
        FO_OPEN_NAMED
        FO_SLOW_WAIT
        FO_SLOW_EJECT
        FO_WRITE_RAW
        FO_OP_WRITE
        FO_OP_READ
        FO_FAULT_ERRNO
        FO_FAULT_ERRNO_AFTER
        FO_FAULT_SHORT
        FO_FAULT_NEVER
        FO_FAULT_DELAY
        FO_FAULT_SWALLOW
        FO_FAULT_FLIP
        FO_FAULT_SHIFT
        FO_BACKEND_AUTO
        FO_BACKEND_URING
        FO_BACKEND_THREADS
        FO_BACKEND_FAULTY

    const uint64_t FO_FOREVER

    ctypedef struct fo_engine:
        pass

    ctypedef struct fo_stream:
        pass

    ctypedef struct fo_event:
        uint64_t seq

    ctypedef struct fo_outcome:
        uint64_t offset
        uint64_t length
        uint64_t done
        uint64_t latency_ns
        int32_t err
        uint8_t code
        uint8_t cls
        uint8_t phase
        uint32_t attempts
        uint32_t more

    ctypedef struct fo_fault:
        uint64_t nth
        uint64_t count
        int64_t value
        uint16_t target
        uint8_t kind
        uint8_t action

    ctypedef struct fo_config:
        uint32_t slot_size
        uint32_t slot_count
        uint32_t max_streams
        uint32_t control_slots
        uint32_t quarantine_slots
        uint32_t backend
        uint64_t soft_ns
        uint64_t hard_ns
        uint64_t patience_ns
        uint64_t seed

    ctypedef struct fo_info:
        uint32_t backend
        uint32_t huge_pages
        uint32_t registered
        uint32_t hash_isa
        uint32_t slot_size
        uint32_t slot_count
        uint32_t slots_free
        uint32_t slots_filling
        uint32_t slots_live
        uint32_t slots_lagging
        uint32_t slots_control
        uint32_t slots_quarantined
        uint32_t streams
        uint32_t targets
        uint64_t memory_bytes
        uint64_t steps
        uint64_t submissions
        uint64_t completions
        uint64_t wakeups
        uint64_t retries
        uint64_t late
        uint64_t events_pending
        uint32_t ring_flags
        uint32_t dead
        char reason[160]

    ctypedef struct fo_open:
        uint32_t flags
        uint32_t depth
        uint64_t size
        uint64_t lock_wait_ns
        uint32_t granule
        uint32_t on_slow
        uint64_t soft_ns
        uint64_t hard_ns
        uint64_t patience_ns

    ctypedef struct fo_geometry:
        uint64_t size
        uint64_t allocated
        uint32_t granule
        uint32_t mem_align
        uint32_t io_align
        uint32_t sector_logical
        uint32_t sector_physical
        uint32_t direct
        uint32_t is_block
        uint32_t created
        uint32_t slow_path
        uint32_t depth
        uint32_t state
        uint32_t inflight
        uint32_t queued
        uint32_t quarantined
        uint32_t on_slow
        uint32_t strikes
        uint64_t latency_ns
        uint64_t rate
        uint64_t flushes_good
        uint64_t fs_magic
        uint64_t dev
        uint64_t ino

    ctypedef struct fo_request:
        uint16_t target
        uint8_t kind
        uint64_t offset
        uint64_t length
        void *data
        fo_outcome outcome

    ctypedef struct fo_readback:
        uint16_t target
        uint64_t offset
        uint64_t length
        const uint64_t *sums
        fo_outcome outcome

    ctypedef struct fo_leg:
        uint16_t target
        uint8_t state
        uint8_t drained
        uint32_t inflight
        uint64_t accepted
        uint64_t submitted
        uint64_t completed
        uint64_t synced
        fo_outcome first

    void fo_config_init(fo_config *cfg) noexcept
    int fo_engine_open(const fo_config *cfg, char *reason, fo_engine **out) noexcept
    int fo_engine_close(fo_engine *e, uint64_t timeout_ns) noexcept
    void fo_engine_info(fo_engine *e, fo_info *out) noexcept
    void fo_engine_look(fo_engine *e) noexcept
    int fo_engine_dead(const fo_engine *e) noexcept
    int fo_events(fo_engine *e, fo_event *out, uint32_t max, uint64_t timeout_ns) noexcept
    int fo_event_fd(fo_engine *e) noexcept
    int fo_watch(fo_engine *e, int fd) noexcept
    void fo_unwatch(fo_engine *e, int fd) noexcept
    uint64_t fo_now(fo_engine *e) noexcept
    int fo_faults_set(fo_engine *e, const fo_fault *faults, uint32_t count) noexcept
    int fo_faults_advance(fo_engine *e, uint64_t ns) noexcept
    int fo_faults_release(fo_engine *e, uint16_t target) noexcept
    int fo_faults_journal(fo_engine *e, int fd) noexcept
    int fo_faults_power(fo_engine *e, uint64_t ops) noexcept

    int fo_target_open(fo_engine *e, const char *path, const fo_open *opt, uint64_t timeout_ns,
                       uint16_t *id, fo_outcome *why) noexcept
    int fo_target_geometry(fo_engine *e, uint16_t id, fo_geometry *out) noexcept
    int fo_target_finish(fo_engine *e, uint16_t id, int64_t length, uint64_t timeout_ns,
                         fo_outcome *why) noexcept
    int fo_target_close(fo_engine *e, uint16_t id, uint64_t timeout_ns) noexcept
    void fo_target_forget(fo_engine *e, uint16_t id) noexcept
    int fo_run(fo_engine *e, fo_request *reqs, uint32_t count, uint64_t timeout_ns) noexcept
    int fo_read_back(fo_engine *e, fo_readback *regions, uint32_t count,
                     uint64_t timeout_ns) noexcept

    int fo_stream_open(fo_engine *e, const uint16_t *targets, uint32_t count, uint64_t timeout_ns,
                       fo_stream **out) noexcept
    int fo_stream_keep(fo_stream *s, uint32_t legs) noexcept
    uint32_t fo_stream_id(const fo_stream *s) noexcept
    uint32_t fo_stream_granule(const fo_stream *s) noexcept
    int fo_stream_place(fo_stream *s, const uint64_t *offsets, uint64_t length) noexcept
    int fo_stream_write(fo_stream *s, const void *data, size_t len, uint32_t flags,
                        uint64_t timeout_ns, size_t *taken, uint32_t *failed) noexcept
    int fo_stream_lease(fo_stream *s, size_t min, uint64_t timeout_ns, void **data,
                        size_t *room) noexcept
    int fo_stream_commit(fo_stream *s, size_t len, uint32_t flags, uint32_t *failed) noexcept
    void fo_stream_return(fo_stream *s) noexcept
    int fo_stream_pad(fo_stream *s, uint64_t timeout_ns) noexcept
    uint64_t fo_stream_position(const fo_stream *s) noexcept
    int fo_stream_digest(fo_stream *s, uint8_t *out) noexcept
    ctypedef struct fo_unfinished:
        pass
    int fo_stream_suspend(fo_stream *s, fo_unfinished *out) noexcept
    int fo_stream_resume(fo_stream *s, const fo_unfinished *begun) noexcept
    int fo_stream_sums(fo_stream *s, uint64_t *out, uint32_t max) noexcept
    int fo_stream_prove(fo_stream *s) noexcept
    int fo_stream_media(fo_stream *s, uint64_t *out, uint32_t max) noexcept
    int fo_stream_seal(fo_stream *s, uint64_t timeout_ns) noexcept
    int fo_stream_sync(fo_stream *s, uint64_t timeout_ns) noexcept
    int fo_stream_legs(fo_stream *s, fo_leg *out, uint32_t max) noexcept
    int fo_stream_eject(fo_stream *s, uint16_t target) noexcept
    int fo_stream_abort(fo_stream *s) noexcept
    int fo_stream_drained(fo_stream *s, uint64_t timeout_ns) noexcept
    void fo_stream_close(fo_stream *s) noexcept

    void fo_digest(const void *data, size_t len, uint8_t *out) noexcept
    uint64_t fo_sum(const void *data, size_t len) noexcept
    int fo_classify(int err) noexcept
    const char *fo_backend_name(uint32_t backend) noexcept
