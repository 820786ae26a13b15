/* sample: the numbers of sample.c on the device: weights with the CPU's bits, orders of ids, noise. */
#ifndef KERNELS_SAMPLE_CUH
#define KERNELS_SAMPLE_CUH
#include "kernels/sample.h"

enum { SAMPLE_ID_BITS = 20, SAMPLE_ORDER_BITS = 32 + SAMPLE_ID_BITS };

/* vreg_exp of kernels/vreg.h as a machine without fused multiply-add computes it, which is what sample.c
 * does on x86-64. */
static __device__ inline float sample_exp(float x)
{
    const float magic = 0x1.8p23f;
    x = -104.0f > x ? -104.0f : x; /* a NaN stays */
    x = 89.0f < x ? 89.0f : x;
    const float shifted = __fadd_rn(__fmul_rn(x, 0x1.715476p+0f), magic), n = __fadd_rn(shifted, -magic);
    float r = __fadd_rn(__fmul_rn(n, -0x1.62e400p-1f), x);
    r = __fadd_rn(__fmul_rn(n, -0x1.7f7d1cp-20f), r);
    float p = 1.0f / 5040;
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 720);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    const int e = __float_as_int(shifted) - __float_as_int(magic), half = e >> 1;
    return __fmul_rn(__fmul_rn(p, __int_as_float((half + 127) << 23)),
                     __int_as_float((e - half + 127) << 23));
}

/* Of a logit whose row has the maximum `max`; 0 where that is NaN. */
static __device__ inline float sample_weight(float logit, float max, float temperature)
{
    const float w = sample_exp(__fdiv_rn(__fadd_rn(logit, -max), temperature));
    return w > 0 ? w : 0.0f;
}

/* Larger logit, larger key; -0 equals +0; NaN comes last. */
static __device__ inline uint32_t sample_order_key(float x)
{
    const uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));
    return x == x ? u ^ ((0u - (u >> 31)) | 0x80000000u) : 0;
}

static __device__ inline float sample_key_value(uint32_t key)
{
    return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

/* Of two ids the one with the larger order stands first: larger logit, or equal and lower id. */
static __device__ inline uint64_t sample_order(float logit, int id)
{
    return (uint64_t)sample_order_key(logit) << SAMPLE_ID_BITS | (uint64_t)((1 << SAMPLE_ID_BITS) - 1 - id);
}

static __device__ inline float sample_noise(const struct sample_key *key, int id)
{
    return philox_uniform(philox(key->seed, key->request, key->position, PHILOX_TOKEN, (uint32_t)id).v[0]);
}
#endif
