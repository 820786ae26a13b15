/* bulk: the kernels of a long prefill pass on CUDA (kernels/types.h, "Bulk"). Acts are bf16, row-major, dense; products are cuBLASLt's
 * (kernels/gemm_lt.h), which knows no fragment order, so each is preceded by unpack_cuda. Launchers as in kernels/cuda.h, but a row's bits are
 * promised to be the same only for the same pass: the same rows from the same position. */
#ifndef KERNELS_BULK_H
#define KERNELS_BULK_H
#include "kernels/attention.h"
#include "kernels/quantise.h"

/* unpack: a matrix in fragment order (kernels/cuda.h) to row-major numbers, outputs in the order before interleaving (G, then U) and before
 * pairing (MATRIX_ROTARY).
 * shapes   to bf16 [n, k]: the numbers of a BF16 matrix, number * scale[output] of an FP8 one, rounded once to nearest even
 * needs    w as matrix_pack_cuda leaves it, its flags and head_dim those it was packed with; `to` 16-byte aligned; any n, any k (k % 8 == 0 is fast) */
struct unpack {
    const struct matrix *w;
    bf16 *to;
};
KERN_API int unpack_cuda(const struct unpack *a, void *stream);

/* y = x / sqrt(mean(x^2) + eps) * w: struct rmsnorm with bulk; y.act bf16 [rows, dim], y.square is not used. f32 sums, rounded once at the end. */
KERN_API int rmsnorm_bulk_cuda(const struct rmsnorm *a, void *stream);

/* y[r][j] = silu(g[r][j]) * u[r][j], silu(a) = a / (1 + exp(-a)), in f32, rounded once.
 * shapes   gate_up bf16 [rows, 2 m], g then u; y bf16 [rows, m]; both 16-byte aligned; any m (m % 8 == 0 is fast) */
struct swiglu_bulk {
    const bf16 *gate_up;
    bf16 *y;
    int rows, m;
};
KERN_API int swiglu_bulk_cuda(const struct swiglu_bulk *a, void *stream);

/* struct quantise with bulk: x bf16 [rows, k] becomes number * scale, scale as quantise.h has it, rounded to bf16; a->scale[r] becomes 1. */
KERN_API int quantise_bulk_cuda(const struct quantise *a, void *stream);

/* struct attention with bulk: rows of one live slot at consecutive positions from rows.pos[0] on, cells = positions; of the arrays of struct
 * rows only slot[0] and pos[0] are read. q is rounded to bf16, weights before they multiply values too; y bf16 [rows, heads * head_dim].
 * needs    head_dim a multiple of 16, at most 256 (64 and 128 are fast)
 * A value that is no number in the cell of a later row of the pass may reach earlier rows up to 63 positions before it; cells that no row of
 * the pass sees may hold anything. */
KERN_API int attention_bulk_cuda(const struct attention *a, void *stream);
#endif
