/* synthetic: random weights as a function of (seed, tensor, index), for timing true shapes without a file and for tests: the same
 * bits for any number of threads, on CPU and GPU. Four neighbours share a Philox call and each is the sum of its word's four bytes:
 * close enough to a normal distribution for shapes and timings, and far cheaper than one. */
#ifndef KERNELS_SYNTHETIC_H
#define KERNELS_SYNTHETIC_H
#include "kernels/philox.h"

struct synthetic {
    uint64_t seed;
    uint32_t tensor; /* its number within the model */
    float scale;     /* standard deviation */
};

/* Sum of four bytes, mean 510 and variance 4 * (2^16 - 1) / 12, as N(0, scale). */
PHILOX_FN float synthetic_normal(uint32_t bits, float scale)
{
#ifdef __CUDA_ARCH__
    const uint32_t sum = __dp4a(bits, 0x01010101u, 0u);
#else
    const uint32_t sum = (bits & 0xff) + (bits >> 8 & 0xff) + (bits >> 16 & 0xff) + (bits >> 24);
#endif
    return ((float)sum - 510.0f) * (scale / 147.8005f);
}

/* Words of the numbers 4 group .. 4 group + 3. */
PHILOX_FN struct philox4 synthetic_four(const struct synthetic *s, uint64_t group)
{
    return philox(s->seed, s->tensor, (uint32_t)(group >> 32), PHILOX_SYNTHETIC, (uint32_t)group);
}

KERN_FN bf16 synthetic_at(const struct synthetic *s, uint64_t index)
{
    const struct philox4 r = synthetic_four(s, index / 4);
    const uint32_t i = (uint32_t)(index % 4); /* compared, not indexed: a GPU's registers have no addresses */
    return bf16_from_f32(synthetic_normal(i == 0 ? r.v[0] : i == 1 ? r.v[1] : i == 2 ? r.v[2] : r.v[3], s->scale));
}
#endif
