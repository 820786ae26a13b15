/* fp8: E4M3 as NVIDIA's and OCP's "E4M3FN": no infinities, 0x7f and 0xff are NaN, largest finite 448, smallest 2^-9.
 * Source: Micikevicius et al., arXiv 2209.05433. */
#ifndef KERNELS_FP8_H
#define KERNELS_FP8_H
#include "kernels/types.h"

#define FP8_MAX 448.0f

#ifdef __CUDACC__
#define FP8_FN __host__ __device__ static inline
#else
#define FP8_FN static inline
#endif

/* Exact. */
FP8_FN float fp8_to_f32(uint8_t x)
{
    const uint32_t sign = (uint32_t)(x & 0x80u) << 24, exp = x >> 3 & 0xfu, man = x & 7u;
    uint32_t u;
    float f;
    if ((x & 0x7fu) == 0x7fu)
        u = sign | 0x7fc00000u;
    else if (exp > 0)
        u = sign | (exp + 120) << 23 | man << 20;
    else {
        f = (float)man * 0x1p-9f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    }
    memcpy(&f, &u, sizeof f);
    return f;
}

/* To nearest, ties to even, larger magnitudes to the largest; a NaN stays a NaN. */
FP8_FN uint8_t fp8_from_f32(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    const uint32_t sign = u >> 24 & 0x80u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint8_t)(sign | 0x7fu);
    if (magnitude >= 0x43e00000u) /* 448 */
        return (uint8_t)(sign | 0x7eu);
    if (magnitude < 0x3c800000u) { /* 2^-6: multiples of 2^-9; adding 2^14 rounds to them */
        float small;
        memcpy(&small, &magnitude, sizeof small);
        small += 0x1p14f;
        memcpy(&u, &small, sizeof u);
        return (uint8_t)(sign | (u & 0xfu));
    }
    const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
    const uint32_t code = (rounded >> 20) - (120u << 3);
    return (uint8_t)(sign | (code > 0x7eu ? 0x7eu : code));
}
#endif
