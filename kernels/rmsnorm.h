/* rmsnorm: y[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * w      Source: Zhang, Sennrich, arXiv 1910.07467.
 * shapes   x f32 [rows, dim]; w f32 [dim]; y act [rows, dim], on the CPU y may be x
 * math     f32, 16 partial sums by column modulo 16, added pairwise: an order fixed by dim alone */
#ifndef KERNELS_RMSNORM_H
#define KERNELS_RMSNORM_H
#include "kernels/types.h"

struct rmsnorm {
    const float *x, *w;
    void *y;
    int rows, dim, threads;
    float eps;
};
void rmsnorm_ref(const struct rmsnorm *a);
#endif
