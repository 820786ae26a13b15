/* read: the ceiling that every other kernel is measured against: how fast can these threads read memory?
 * shapes   data, bytes: a buffer much larger than the last-level cache, split evenly over the threads
 * moves    bytes
 * result   a checksum, so that no read can be left out */
#ifndef KERNELS_READ_H
#define KERNELS_READ_H
#include "kernels/types.h"

struct read {
    const void *data; /* 64-byte aligned */
    size_t bytes;     /* a multiple of 64 */
    int threads;
};
uint64_t read_memory(const struct read *a);
#endif
