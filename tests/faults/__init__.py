"""Faults that really happen: the tools with which the tests make real files and block devices fail.

| module | what it makes |
| --- | --- |
| `faultfs` | a FUSE file system whose errors, delays, lies and power losses are scripted; also the disk under a loop device |
| `devices` | loop devices, full and shrunken disks, zram, read-only flips, ext4 power cuts, throttles, file size limits |
| `strace` | errors, delays and kills at the n-th system call; system calls that are refused as in a container |
| `powerloss` | the model of what a power loss may take: which bytes and names were durable, and which were not |
| `needs` | what this machine can do, and skips that say why it cannot |

All of it wants Linux; most of it wants root, /dev/fuse and loop devices. A test asks with `needs.require(...)` and is skipped
with the reason where the machine lacks something; the summary of the run counts those skips by reason. With
FANOUT_FAULTS=required in the environment the same test fails instead.

What the tools promise: an injected fault is logged with operation, path, offset, size and errno; nothing outlives the test, also
when the test fails or its process is killed: no mount, no loop device, no frozen daemon.
"""
