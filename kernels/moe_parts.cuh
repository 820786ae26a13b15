/* moe_parts: what the router and the experts share. */
#ifndef KERNELS_MOE_PARTS_CUH
#define KERNELS_MOE_PARTS_CUH
#include "kernels/gemm_core.cuh"
#include "kernels/gemm_epilogue.cuh"
#include "kernels/moe_cuda.h"

#define FULL_WARP 0xffffffffu

__device__ static inline float4 slices_sum(const float4 *part, int slices)
{
    float4 sum = part[threadIdx.x % LANES];
    for (int i = 1; i < slices; i++) {
        const float4 v = part[i * LANES + threadIdx.x % LANES];
        sum = make_float4(__fadd_rn(sum.x, v.x), __fadd_rn(sum.y, v.y), __fadd_rn(sum.z, v.z),
                          __fadd_rn(sum.w, v.w));
    }
    return sum;
}

/* 1 / rms of a row, by a whole warp. */
__device__ static inline float inverse_rms(const float *square, int row, int steps, int k, float eps)
{
    float sum;
    if (!square)
        return 1.0f;
    norm_sums<1, 8>(square + (size_t)row * (size_t)steps, 0, 1, steps, &sum);
    return norm_factor(sum, k, eps);
}
#endif
