/* gemm_lt: products by cuBLASLt, for many rows at once and as what our own products are compared with.
 *
 * The library (541 MB, part of every CUDA toolkit) is loaded when it is opened, not linked: a program that never prefills more than 64 rows at
 * once starts without it, installing does not copy it, and where it is missing the error says what to install. It is looked for as
 * libcublasLt.so.13 wherever the dynamic loader looks (LD_LIBRARY_PATH, ldconfig, the program's run path), then in the toolkit's own folders.
 *
 * y[r][j] = sum_i w[j][i] x[r][i], times the scales of FP8, f32 sums in the library's order, rounded once to y's type; with accumulate the old
 * y, f32, is added before that. Sums split over k are added in f32. The same product with the same choice has the same bits every time.
 *
 * A shape's plan is made at its first product (a call of the library's heuristics, tens of microseconds) and kept in a table of GEMM_LT_PLANS,
 * the oldest giving way. With the plan there, a product allocates nothing, waits for nothing and may be captured. Not for two threads at once. */
#ifndef KERNELS_GEMM_LT_H
#define KERNELS_GEMM_LT_H
#include "kernels/types.h"

enum { GEMM_LT_PLANS = 64, GEMM_LT_CHOICES = 8 };
#define GEMM_LT_WORKSPACE ((size_t)32 << 20) /* bytes that every product is lent */

enum gemm_lt_type { GEMM_LT_BF16, GEMM_LT_FP8, GEMM_LT_F32 };

struct gemm_lt; /* opaque */

struct gemm_lt_product {
    const void *w, *x;      /* row-major [n, k], [rows, k], both of `in`; FP8: n, k, rows multiples of 16 */
    void *y;                /* row-major [rows, n] of `out`; all three 16-byte aligned, device memory */
    const float *w_scale, *x_scale; /* FP8: device memory, of the whole matrix; NULL: 1 */
    int n, k, rows;
    enum gemm_lt_type in, out; /* BF16 or FP8; F32 or BF16 */
    int accumulate;         /* with out F32 */
    int choice;             /* 0: what the library thinks is fastest; below gemm_lt_choices */
    void *workspace;        /* GEMM_LT_WORKSPACE bytes, 256-byte aligned, borrowed until the product is done */
};

/* Each returns 0, or 1 with a sentence for people in `why` that names the thing, what was found and the fix. */
enum { GEMM_LT_WHY = 512 };
int  gemm_lt_open(struct gemm_lt **out, char why[GEMM_LT_WHY]);
void gemm_lt_close(struct gemm_lt *lt); /* accepts NULL; nothing may be running */
/* How many ways the library proposes for this shape, fastest first as it thinks, at most GEMM_LT_CHOICES: who wants the best times them all. */
int  gemm_lt_choices(struct gemm_lt *lt, const struct gemm_lt_product *a, int *out, char why[GEMM_LT_WHY]);
int  gemm_lt_run(struct gemm_lt *lt, const struct gemm_lt_product *a, void *stream, char why[GEMM_LT_WHY]);
size_t gemm_lt_version(const struct gemm_lt *lt); /* of the library, 130100 for 13.1 */
#endif
