/* gather: rows of x by number, as they are or normed, put beside what stands in the result already.
 *   v = x[from[r], :]                            without w
 *   v = v / sqrt(mean(v^2) + eps) * w            with w
 *   y[r, column .. column + dim) = v, the same in act, whichever of the two there is
 * Rows with from[r] < 0 stay as they were. So the parts of a concatenation and the rows to keep need no operation of their own.
 * shapes   x f32 [any, dim]; from i32 [rows], NULL: from[r] = r; w f32 [dim] or NULL; y f32 [rows, k] or NULL, x itself when from is NULL and
 *          k = dim; act [rows, k] or NULL, normed all the way: its products have no `square`
 * needs    CUDA: dim and column even
 * math     without w exact, an act rounded once; with w f32, the CPU as kernels/rmsnorm.h, CUDA in the order of kernels/gather.cu: fixed by dim
 * moves    8 bytes a number, or 6 for an act */
#ifndef KERNELS_GATHER_H
#define KERNELS_GATHER_H
#include "kernels/types.h"

struct gather {
    const float *x;
    const int *from;
    const float *w;
    float *y;
    void *act;
    int k, column;      /* of y and act; 0 <= column <= k - dim */
    enum act_form form; /* of the act */
    int rows, dim, threads;
    float eps;
};
void gather_ref(const struct gather *a); /* an act is f32, row-major; double sums */
KERN_API int gather_cuda(const struct gather *a, void *stream);
#endif
