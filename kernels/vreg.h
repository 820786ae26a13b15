/* vreg: one register of floats of the instruction set a *_cpu.c is compiled for. A row's bits must not depend
 * on how a compiler fuses a * b + c in one place or another, so where rounding matters the fusing is written
 * out: vreg_fma rounds once where the machine can, in every inlined copy. */
#ifndef KERNELS_VREG_H
#define KERNELS_VREG_H
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VREG_BYTES 64
#elif defined(__AVX2__)
#define VREG_BYTES 32
#else
#define VREG_BYTES 16
#endif
enum { VREG_LANES = VREG_BYTES / 4 };

typedef float vreg __attribute__((vector_size(VREG_BYTES)));
typedef int32_t vint __attribute__((vector_size(VREG_BYTES)));
typedef uint32_t vuint __attribute__((vector_size(VREG_BYTES)));

#define SIMD_FN static inline __attribute__((always_inline))

SIMD_FN vreg vreg_set1(float x)
{
    return x - (vreg){0};
}

SIMD_FN vreg vreg_fma(vreg a, vreg b, vreg c)
{
#if defined(__AVX512F__)
    return (vreg)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vreg)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* m is a comparison's result, all ones or all zeros in a lane. */
SIMD_FN vreg vreg_select(vint m, vreg yes, vreg no)
{
    return (vreg)((m & (vint)yes) | (~m & (vint)no));
}

/* The second argument where either is NaN. */
SIMD_FN vreg vreg_max(vreg a, vreg b)
{
#if defined(__AVX512F__)
    return (vreg)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vreg)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return vreg_select(a > b, a, b);
#endif
}

SIMD_FN vreg vreg_min(vreg a, vreg b)
{
#if defined(__AVX512F__)
    return (vreg)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (vreg)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return vreg_select(a < b, a, b);
#endif
}

/* exp within 2 ulp, subnormal results included; exp(-inf) = 0, overflow gives inf, NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2, n rounded by adding 1.5 * 2^23 and read from the low bits of that sum.
 * exp(r) is Taylor's series to r^7 (remainder under 6e-9). 2^n is applied in two halves, so that neither
 * leaves the range of normal numbers and a subnormal result rounds once. */
SIMD_FN vreg vreg_exp(vreg x)
{
    const float magic = 0x1.8p23f;
    x = vreg_min(vreg_set1(89.0f), vreg_max(vreg_set1(-104.0f), x));
    vreg shifted = vreg_fma(x, vreg_set1(0x1.715476p+0f), vreg_set1(magic));
    vreg n = shifted - magic;
    vreg r = vreg_fma(n, vreg_set1(-0x1.62e400p-1f), x); /* ln 2 in two parts, the first exact times n */
    r = vreg_fma(n, vreg_set1(-0x1.7f7d1cp-20f), r);
    vreg p = vreg_set1(1.0f / 5040);
    p = vreg_fma(p, r, vreg_set1(1.0f / 720));
    p = vreg_fma(p, r, vreg_set1(1.0f / 120));
    p = vreg_fma(p, r, vreg_set1(1.0f / 24));
    p = vreg_fma(p, r, vreg_set1(1.0f / 6));
    p = vreg_fma(p, r, vreg_set1(0.5f));
    p = vreg_fma(p, r, vreg_set1(1.0f));
    p = vreg_fma(p, r, vreg_set1(1.0f));
#if defined(__AVX512F__)
    return (vreg)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    vint e = (vint)shifted - (vint)vreg_set1(magic), half = e >> 1;
    return p * (vreg)((half + 127) << 23) * (vreg)((e - half + 127) << 23);
#endif
}
#endif
