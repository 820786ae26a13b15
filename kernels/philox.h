/* philox: Philox4x32-10, a counter-based random function: no stream, no state, the same bits on CPU and GPU.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 *
 * Every random number of this project is a function of (seed, request, position, use, index):
 *   seed      the experiment's
 *   request   identity of the answer being generated: prompt, turn and repeat, the same in every arm
 *   position  absolute position of the token that the number decides
 *   use       what it decides (enum philox_use), so that two decisions never share a number
 *   index     vocabulary id, sibling number, ... within the use */
#ifndef KERNELS_PHILOX_H
#define KERNELS_PHILOX_H
#include "kernels/types.h"

enum philox_use { PHILOX_TOKEN = 1, PHILOX_ACCEPT = 2, PHILOX_DRAFT = 3, PHILOX_ORACLE = 4, PHILOX_SYNTHETIC = 5 };

struct philox4 {
    uint32_t v[4];
};

#ifdef __CUDACC__
#define PHILOX_FN __host__ __device__ static inline
#else
#define PHILOX_FN static inline
#endif

PHILOX_FN struct philox4 philox(uint64_t seed, uint32_t request, uint32_t position, uint32_t use, uint32_t index)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = index, c1 = position, c2 = request, c3 = use;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct philox4 r = {{c0, c1, c2, c3}};
    return r;
}

/* Uniform in the open interval (0, 1): (2 m + 1) / 2^24 for the upper 23 bits m. The numerator has 24 bits, so the value
 * is exact in binary32 and the largest is PHILOX_UNIFORM_MAX; one more bit would round up to 1. */
#define PHILOX_UNIFORM_MAX (1.0 - 0x1p-24)
PHILOX_FN float philox_uniform(uint32_t bits)
{
    return (float)(bits >> 9) * 0x1p-23f + 0x1p-24f;
}
#endif
