/* simd: 16 floats as a value, in as many registers as the instruction set needs (avx512 1, avx2 2, portable
 * 4). For *_cpu.c only; registers and what a single one can do: kernels/vreg.h. */
#ifndef KERNELS_SIMD_H
#define KERNELS_SIMD_H
#include "kernels/vreg.h"

enum { V16_REGS = 16 / VREG_LANES };

struct v16 {
    vreg r[V16_REGS];
};
struct v16i {
    vint r[V16_REGS];
};

SIMD_FN struct v16 v16_load(const float *p)
{
    struct v16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

SIMD_FN void v16_store(float *p, struct v16 v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n <= 16 floats of p, the other lanes filled. */
SIMD_FN struct v16 v16_load_part(const float *p, int n, float fill)
{
    float t[16];
    for (int i = 0; i < 16; i++)
        t[i] = i < n ? p[i] : fill;
    return v16_load(t);
}

#define V16_EACH for (int i_ = 0; i_ < V16_REGS; i_++)

SIMD_FN struct v16 v16_set1(float x)
{
    struct v16 v;
    V16_EACH v.r[i_] = vreg_set1(x);
    return v;
}

SIMD_FN struct v16 v16_add(struct v16 a, struct v16 b)
{
    V16_EACH a.r[i_] += b.r[i_];
    return a;
}

SIMD_FN struct v16 v16_sub(struct v16 a, struct v16 b)
{
    V16_EACH a.r[i_] -= b.r[i_];
    return a;
}

SIMD_FN struct v16 v16_mul(struct v16 a, struct v16 b)
{
    V16_EACH a.r[i_] *= b.r[i_];
    return a;
}

SIMD_FN struct v16 v16_fma(struct v16 a, struct v16 b, struct v16 c)
{
    V16_EACH c.r[i_] = vreg_fma(a.r[i_], b.r[i_], c.r[i_]);
    return c;
}

SIMD_FN struct v16 v16_max(struct v16 a, struct v16 b)
{
    V16_EACH a.r[i_] = vreg_max(a.r[i_], b.r[i_]);
    return a;
}

SIMD_FN struct v16 v16_min(struct v16 a, struct v16 b)
{
    V16_EACH a.r[i_] = vreg_min(a.r[i_], b.r[i_]);
    return a;
}

SIMD_FN struct v16 v16_exp(struct v16 a)
{
    V16_EACH a.r[i_] = vreg_exp(a.r[i_]);
    return a;
}

/* Lanes added pairwise: i with i + 8, then i + 4, i + 2, i + 1. */
SIMD_FN float v16_sum(struct v16 v)
{
    float t[16];
    v16_store(t, v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            t[i] += t[i + half];
    return t[0];
}

SIMD_FN float v16_largest(struct v16 v)
{
    float t[16];
    v16_store(t, v);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
    return t[0];
}
#endif
