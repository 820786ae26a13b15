/* gemm: y[r, :] = W x[r, :]  or  y[r, :] += W x[r, :], for 1 to any number of rows by one code path.
 * shapes   W [n, k] prepared by matrix_pack; x act [rows, k], y f32 [rows, n], row-major, dense; row_scale f32 [rows]
 * needs    x, y do not overlap; any alignment of x and y (64 bytes is fastest)
 * math     f32; y[r][j] = sum over i = 0..k-1 ascending of fma(W[j][i], x[r][i], acc), one chain an output (portable:
 *          multiply, then add), acc starting at 0; then times W's scale of the output, times row_scale[r], each where there is one;
 *          the old y added last. So a row's bits depend on the row and W alone.
 *
 * swiglu: y[r, :] = silu(G x[r, :]) * (U x[r, :]), silu(a) = a / (1 + exp(-a))
 * shapes   W [2 m, k] packed from the parts G, U with MATRIX_INTERLEAVE; x act [rows, k]; y act [rows, m]
 * math     both products as gemm; exp by the instruction set's own polynomial, within 2 ulp */
#ifndef KERNELS_GEMM_H
#define KERNELS_GEMM_H
#include "kernels/rmsnorm.h"

enum { MATRIX_PANEL = 16 };

/* A weight matrix in the CPU's order: panels of 16 outputs, within a panel pairs of inputs, bf16
 * [ceil(n/16)][ceil(k/2)][16][2], zero padded: one 64-byte line is 16 outputs times 2 inputs, so a lane is an
 * output and no sum crosses lanes. Interleaved matrices alternate a panel of G and a panel of U. */
struct matrix {
    int n, k;    /* outputs and inputs as the model counts them; interleaved: n = 2 m */
    enum matrix_form form;
    void *data;   /* owned by the backend that packed it, 64-byte aligned; CPU: bf16 in both forms */
    float *scale; /* owned likewise, f32 [n] in the order of the outputs before interleaving (G, then U): weight = number * scale; NULL: 1 */
    size_t bytes; /* of data and scale */
    unsigned flags; /* CUDA: the enum matrix_flags that say how its outputs are ordered */
    int head_dim;   /* with MATRIX_ROTARY */
    float input_scale; /* inputs were calibrated as number * input_scale; 0: they were not */
};

/* Weights that were rounded before: number [j][i] * scale[j]. A matrix in FP8 keeps both as they are. */
struct scaled {
    const void *numbers; /* E4M3, row-major [n, k] */
    const float *scale;  /* [n] */
};
struct matrix_part {
    const void *data; /* row-major [n, k] in dtype, any alignment; SYNTHETIC: a struct synthetic, FP8: a struct scaled; borrowed for the call */
    enum dtype dtype; /* F32 and F16 are rounded to bf16, to nearest even */
    int n;
};
/* Where a part's numbers lie in its data: number (j, i) is element first + j * row_step + i * col_step. A part may be some columns
 * of a matrix: `before` columns lie left of its first and `after` right of its last, and the scale of an output that is rounded to
 * FP8 here is that of all of them, so that a share of a matrix has the numbers of the whole. */
struct matrix_view {
    size_t first, row_step, col_step;
    int before, after;
};
enum matrix_flags {
    MATRIX_PLAIN = 0,
    MATRIX_INTERLEAVE = 1, /* exactly two parts of equal n % 16 == 0: G and U of a swiglu */
    MATRIX_ROTARY = 2      /* queries, keys, values: CUDA keeps the two components that a rotation pairs in one tile; the CPU as plain */
};

/* What a matrix is made of. */
struct matrix_source {
    const struct matrix_part *parts; /* [n_parts], stacked along n */
    const struct matrix_view *views; /* [n_parts], or NULL: rows of k lie one behind the other */
    int n_parts, k;
    enum matrix_flags flags;
    enum matrix_form form; /* FP8: scale = largest magnitude of the output's weights / 448, numbers rounded to nearest even */
    int head_dim; /* with MATRIX_ROTARY: a multiple of 16 that divides every part's n */
};
int matrix_source_n(const struct matrix_source *from); /* the sum of the parts' n */

size_t matrix_packed_bytes(int n, int k); /* of data, in either form */
/* Fill w->data, and w->scale of FP8, from parts stacked along n. The caller has set w->n (the sum of the parts' n), w->k, w->form, w->data
 * (matrix_packed_bytes bytes) and, for FP8, w->scale; w->bytes is set here. */
void matrix_pack(struct matrix *w, const struct matrix_part *parts, int n_parts, enum matrix_flags flags, int threads);
void matrix_pack_from(struct matrix *w, const struct matrix_source *from, int threads); /* MATRIX_ROTARY is as plain here */
float matrix_at(const struct matrix *w, int row, int col); /* of a plain matrix, scale included */

struct gemm {
    const struct matrix *w;
    const void *x;
    void *y;
    int rows, threads;
    int accumulate; /* 0: y = W x, 1: y += W x */
    const float *square;    /* NULL, or of the struct normed (kernels/rmsnorm.h) whose act x is, and its eps */
    float eps;
    const float *row_scale; /* NULL, or of the struct quantise (kernels/quantise.h) that x went through */
    enum act_form y_form;   /* of an act y (swiglu) */
    int bulk;
    float *scratch; /* CPU: [threads][gemm_scratch(k)], rows regrouped; CUDA: [rows], 1 / rms of each, in bulk more. 64-byte aligned, borrowed;
                       contents mean nothing after */
};
/* The end of a block: product.y += W x, the residual stream, then its norm for the product that comes next; norm.x is product.y and
 * product.accumulate is 1. On CUDA one kernel, unless in bulk. */
struct residual {
    struct gemm product;
    struct rmsnorm norm;
};
size_t gemm_scratch(int k); /* floats a thread, a multiple of 16, for any number of rows and any instruction set */
void gemm_ref(const struct gemm *a);   /* double sums */
void swiglu_ref(const struct gemm *a); /* y [rows, n / 2]; accumulate is 0 */
#endif
