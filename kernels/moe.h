/* moe: the feed-forward part of a layer with routed experts (Llama 4).
 *
 * route: logits[r, :] = R x[r, :];  the top_k largest of each row, ties to the lowest index, best first, and the sigmoid of each: no
 *        softmax, no renormalisation.
 * shapes   product.w R [experts, hidden], x act, y f32 [rows, experts]; slot [rows]; expert, score [rows, top_k]
 * needs    1 <= top_k <= experts
 * math     logits as gemm, f32; a row alone. A row of nobody (slot -1) chooses nothing: expert -1, score 0. A NaN is never larger, so
 *          whatever the logits are, the experts of a row differ and lie in range.
 *
 * moe: y[r, :] += D_s swiglu(G_s x[r, :]) + sum over chosen e of D_e swiglu(G_e (score_e x[r, :])), then norm.
 * shapes   x act [rows, hidden], the norm of y; y f32 [rows, hidden]; shared.gate_up, gate_up[e] [2 ffn, hidden], MATRIX_INTERLEAVE;
 *          shared.down, down[e] [hidden, ffn]; norm.x is y, norm.y.act may be x
 *          partial: y = 0 first, and norm is not read
 * math     products as gemm and swiglu, f32; the score multiplies what gate_up gives, which is the product with score * x rounded once
 *          at its end, but score * x itself where that is rounded by a static scale. The shared expert is added to y first, then a row's experts in rising order: a row's bits depend on the row, its
 *          experts and the weights alone, never on what other rows choose.
 * moves    each distinct expert's weights once, for all rows that chose it; CUDA: from memory, see kernels/moe.cu */
#ifndef KERNELS_MOE_H
#define KERNELS_MOE_H
#include "kernels/gemm.h"
#include "kernels/quantise.h"

struct route {
    struct gemm product;
    const int *slot;
    int *expert;
    float *score;
    int top_k;
    enum act_form x_form; /* CUDA: of product.x, see moe_act_form */
};

/* Weights of one expert. */
struct expert {
    const struct matrix *gate_up, *down;
};

struct moe {
    struct expert shared;
    const struct matrix *gate_up, *down; /* of the routed experts, [experts] */
    const void *x;
    const float *square; /* as in struct gemm */
    float *y;
    const int *expert;  /* [rows, top_k] as route gives them; -1: none */
    const float *score;
    struct rmsnorm norm;
    int rows, experts, top_k, threads;
    enum rounding round; /* what an FP8 matrix multiplies goes through quantise first; static: by the matrix's input_scale */
    int bulk;
    int partial; /* 1: y = the sum, whatever y held, and no norm: a rank's term of struct reduce */
    float eps;
    float *gemm;   /* what gemm.scratch needs for any of these matrices */
    void *scratch; /* moe_scratch bytes, 64-byte aligned, borrowed */
};

/* CUDA: of what a shared and a routed matrix multiply both, acts in F16 only where both are FP8. */
KERN_FN enum act_form moe_act_form(const struct matrix *shared, const struct matrix *routed)
{
    return shared->form == MATRIX_FP8 && routed->form == MATRIX_FP8 ? ACT_F16 : ACT_BF16;
}

/* Bytes of the CPU's scratch: of moe_ref and of every instruction set. */
size_t moe_scratch(int rows, int hidden, int ffn);
void route_ref(const struct route *a); /* double */
void moe_ref(const struct moe *a);     /* double sums, a row and an expert at a time */
#endif
