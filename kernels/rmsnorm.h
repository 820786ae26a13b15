/* rmsnorm: y[r, :] = x[r, :] / sqrt(mean(x[r, :]^2) + eps) * w      Source: Zhang, Sennrich, arXiv 1910.07467.
 * shapes   x f32 [rows, dim]; w f32 [dim]; y act [rows, dim], on the CPU y.act may be x
 * math     f32, 16 partial sums by column modulo 16, added pairwise: an order fixed by dim alone */
#ifndef KERNELS_RMSNORM_H
#define KERNELS_RMSNORM_H
#include "kernels/types.h"

/* A norm on its way into products (struct gemm). CPU, and CUDA in bulk: act is the norm and square is not used. CUDA otherwise: act is
 * x * w without 1 / rms, square f32 [rows, ceil(dim / 16)] holds the sums of squares of each 16 inputs, and a product multiplies each row
 * by 1 / rms at its end: then whoever makes x can make the act, with no pass over whole rows. */
struct normed {
    void *act;     /* [rows, dim] */
    float *square; /* CUDA: [rows, ceil(dim / 16)] */
    enum act_form form;
};

struct rmsnorm {
    const float *x, *w;
    struct normed y;
    int rows, dim, threads;
    int bulk;
    float eps;
};
void rmsnorm_ref(const struct rmsnorm *a);
#endif
