/*
 * fo_errno.c: who is at fault, told from an errno.
 *
 * The rows were produced on real devices and read at the writer; docs/errors.md says how each can be reproduced.  An errno
 * that nobody expected counts against the device: an unknown failure must not pass for a harmless one.
 */
#include "fanout.h"

#include <errno.h>

fo_class fo_classify(int err) {
    switch (err < 0 ? -err : err) {
    case 0:
        return FO_CLASS_NONE;
    case ENOSPC: /* also a write past the end of a block device */
    case EDQUOT:
    case EFBIG:
        return FO_CLASS_SPACE;
    case ENODATA: /* the block layer's "critical medium error" */
    case EILSEQ:  /* protection information did not match */
        return FO_CLASS_MEDIUM;
    case ETIMEDOUT:
    case ETIME:
    case ENOLINK:
    case ENODEV:
    case ENXIO:
    case ESHUTDOWN:
    case ECONNABORTED:
    case ENOTCONN:
    case ECONNRESET:
    case EHOSTUNREACH:
        return FO_CLASS_TRANSPORT;
    case EPERM: /* a block device that was switched to read-only */
    case EROFS:
    case EACCES:
        return FO_CLASS_ACCESS;
    case EINVAL:
    case EOPNOTSUPP:
    case EBADF:
    case EBADE: /* reservation conflict: another host owns the device */
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case EEXIST:
    case ELOOP:
    case ENAMETOOLONG:
    case ETXTBSY:
        return FO_CLASS_SETUP;
    case EAGAIN:
    case EINTR:
    case EBUSY: /* a lock that another holds is told apart by its phase: FO_OP_OPEN */
        return FO_CLASS_TRANSIENT;
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EFAULT: /* our own memory was not there: a defect of this engine, never of the target */
        return FO_CLASS_HOST;
    default: /* EIO and EREMOTEIO among them */
        return FO_CLASS_DEVICE;
    }
}
