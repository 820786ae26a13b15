/* quantise: rounding a row of an act, four inputs a time: those of an act's lane, which are one word of 8
 * bytes. F: enum act_form. */
#ifndef KERNELS_QUANTISE_CUH
#define KERNELS_QUANTISE_CUH
#include "kernels/act.h"
#include "kernels/fp8.h"
#include "kernels/norm.cuh"

template <int F> static __device__ float2 quantise_floats(uint32_t pair)
{
    return F == ACT_F16 ? __half22float2(*(const __half2 *)&pair)
                        : __bfloat1622float2(*(const __nv_bfloat162 *)&pair);
}

template <int F> static __device__ float quantise_largest(float most, uint2 v)
{
    const float2 a = quantise_floats<F>(v.x), b = quantise_floats<F>(v.y);
    return fmaxf(most, fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(b.x), fabsf(b.y))));
}

/* Of a row whose largest number is `most`. */
static inline __device__ float quantise_scale(float most)
{
    return most > 0 ? __fdiv_rn(most, FP8_MAX) : 1.0f;
}

/* Quad q stands in lane q % 4 of the row's four, of step q / 4: a step is 32 words. */
static inline __device__ size_t quantise_word(int quad)
{
    return (size_t)(quad / 4) * 32 + (size_t)(quad % 4);
}

/* The E4M3 nearest to x / scale, in the act's form, which holds it exactly. */
template <int F> static __device__ uint32_t quantise_pair(float2 x, float scale)
{
    uint16_t codes;
    uint32_t wide;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(codes)
        : "f"(__fdiv_rn(x.y, scale)), "f"(__fdiv_rn(x.x, scale)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(codes));
    if (F == ACT_F16)
        return wide;
    const __nv_bfloat162 v = __float22bfloat162_rn(quantise_floats<ACT_F16>(wide));
    return *(const uint32_t *)&v;
}

/* What a row of a normed act is short of: 1 / rms of its squares [steps], by each whole warp; NULL: nothing. */
static inline __device__ float quantise_short(const float *square, int steps, int k, float eps)
{
    float sum;
    if (!square)
        return 1;
    norm_sums<1, 8>(square, 0, 1, steps, &sum);
    return norm_factor(sum, k, eps);
}

/* Row `from` times `by` to row `to`, which may be the same, with a fixed scale, by a whole block. */
template <int F>
static __device__ void quantise_row(const uint16_t *from, uint16_t *to, int k, float by, float scale)
{
    const int quads = (k + ACT_STEP - 1) / ACT_STEP * 4;
    for (int quad = (int)threadIdx.x; quad < quads; quad += (int)blockDim.x) {
        const uint2 v = ((const uint2 *)from)[quantise_word(quad)];
        float2 a = quantise_floats<F>(v.x), b = quantise_floats<F>(v.y);
        a = make_float2(__fmul_rn(a.x, by), __fmul_rn(a.y, by));
        b = make_float2(__fmul_rn(b.x, by), __fmul_rn(b.y, by));
        ((uint2 *)to)[quantise_word(quad)] = make_uint2(quantise_pair<F>(a, scale), quantise_pair<F>(b, scale));
    }
}
#endif
