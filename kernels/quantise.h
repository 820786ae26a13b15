/* quantise: an act to FP8, each row with a scale of its own (dynamic, per token) or all with one that was measured before (static, per tensor):
 *   scale[r] = max_i |x[r][i]| / 448 (1 when all are 0), or `fixed`;  x[r][i] = e4m3(x[r][i] / scale[r]), to nearest even, saturating
 * so that a product over x times row_scale = scale (struct gemm) is the product over the rounded activations. The numbers stay in the act's own
 * type, which holds every E4M3 exactly: what is tested is the accuracy of FP8 activations, not their speed (the tensor cores
 * of sm_90 multiply E4M3 as F16 anyway).
 * shapes   x, from act [rows, k], CUDA: in `form`; scale f32 [rows]
 * math     a row alone; the maximum is exact, so nothing depends on an order. A normed act (CUDA: without 1 / rms) may be quantised: 1 / rms
 *          cancels between x and a scale of its own; before a fixed one it is multiplied in, and the product is told no squares
 * moves    4 rows k bytes on CUDA */
#ifndef KERNELS_QUANTISE_H
#define KERNELS_QUANTISE_H
#include "kernels/types.h"

/* What FP8 matrices multiply: acts as they are, or rounded by either kind of scale. */
enum rounding { ROUND_NONE, ROUND_DYNAMIC, ROUND_STATIC };

struct quantise {
    void *x;
    const void *from; /* NULL: x itself; else x is only written; not in bulk */
    float *scale;
    int rows, k, threads;
    float fixed;         /* 0: dynamic */
    const float *square; /* CUDA, with fixed and not in bulk: of the struct normed whose act is rounded, or NULL; and its eps */
    float eps;
    enum act_form form;  /* CUDA: either, in bulk BF16 */
    int bulk;            /* CUDA: x becomes number * scale, rounded to bf16, and scale 1 */
};
void quantise_ref(const struct quantise *a); /* f32 rows; also the CPU's path */
#endif
