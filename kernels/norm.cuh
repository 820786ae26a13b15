/* norm: the two sums of a norm on its way into products (struct normed, rmsnorm.h), one order each, so that
 * whoever makes an act writes the same bits and whoever multiplies it reads the same 1 / rms. tile     i and
 * i + 8 in one lane: fma(x[i + 8], x[i + 8], x[i]^2), then these eight pairwise: i with i ^ 4, i ^ 2, i ^ 1
 * row      lane l of a warp adds tiles l, l + 32, ... in order, then lanes pairwise: l with l ^ 16, 8, 4, 2,
 * 1 */
#ifndef KERNELS_NORM_CUH
#define KERNELS_NORM_CUH
#include "kernels/types.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { NORM_TILE = 16 };
#define NORM_F16_MAX 65504.0f

/* Of two inputs eight apart. */
__device__ static inline float norm_pair(float low, float high)
{
    return __fmaf_rn(high, high, __fmul_rn(low, low));
}

__device__ static inline float norm_add(float v, int lane_mask)
{
    return __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, lane_mask));
}

/* The sums of a row's squares for R rows, `stride` entries apart, of which `rows` exist; in every lane of a
 * whole warp. */
template <int R, int BATCH>
__device__ static inline void norm_sums(const float *square, size_t stride, int rows, int tiles, float *sum)
{
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < R; r++)
        sum[r] = 0;
    for (int at = lane; at - lane < tiles; at += BATCH * 32) {
        float v[BATCH][R];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
#pragma unroll
            for (int r = 0; r < R; r++)
                v[i][r] = r < rows && at + i * 32 < tiles ? square[(size_t)r * stride + (size_t)(at + i * 32)]
                                                          : 0.0f;
#pragma unroll
        for (int i = 0; i < BATCH; i++)
#pragma unroll
            for (int r = 0; r < R; r++)
                sum[r] = __fadd_rn(sum[r], v[i][r]);
    }
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
#pragma unroll
        for (int r = 0; r < R; r++)
            sum[r] = norm_add(sum[r], mask);
}

/* The same sum from a lane's own tiles, in order. */
template <int EACH> __device__ static inline float norm_sum_lanes(const float *v)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        sum = __fadd_rn(sum, v[i]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2)
        sum = norm_add(sum, mask);
    return sum;
}

/* 1 / rms */
__device__ static inline float norm_factor(float sum, int k, float eps)
{
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)k), eps)));
}

/* A number of an act; F16 saturates, a NaN stays one. */
__device__ static inline uint16_t norm_act(float v, enum act_form form)
{
    if (form == ACT_BF16)
        return __bfloat16_as_ushort(__float2bfloat16_rn(v));
    const float top = v > NORM_F16_MAX ? NORM_F16_MAX : v;
    return __half_as_ushort(__float2half_rn(top < -NORM_F16_MAX ? -NORM_F16_MAX : top));
}
#endif
