/* embed: y[r, :] = W[token[r], :]
 * shapes   W [vocab, dim] as packed by matrix_pack (a tied embedding is stored once, as the output head needs it);
 *          token i32 [rows], 0 <= token < vocab; y f32 [rows, dim]
 * math     exact */
#ifndef KERNELS_EMBED_H
#define KERNELS_EMBED_H
#include "kernels/gemm.h"

struct embed {
    const struct matrix *w;
    const int *token;
    float *y;
    int rows;
};
void embed_ref(const struct embed *a); /* also the CPU's path: it copies */
#endif
