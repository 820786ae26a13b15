/* route and moe row by row: each expert of a row in turn, with the reference of each product. */
#include "kernels/moe.h"
#include "kernels/quantise.h"
#include <math.h>

/* Rows of inputs, of hidden activations and of results, two factors and an index a row, each 64-byte aligned.
 */
size_t moe_scratch(int rows, int hidden, int ffn)
{
    const size_t n = (size_t)rows, line = 16;
    const size_t wide = (n * (size_t)hidden + line - 1) / line * line, narrow = (n + line - 1) / line * line;
    return (2 * wide + (n * (size_t)ffn + line - 1) / line * line + 3 * narrow) * sizeof(float);
}

/* How many logits of the row come before number e. */
static int place(const float *logits, int experts, int e)
{
    int before = 0;
    for (int i = 0; i < experts; i++)
        before += logits[i] > logits[e] || (logits[i] == logits[e] && i < e);
    return before;
}

void route_ref(const struct route *a)
{
    const int experts = a->product.w->n, k = a->top_k;
    gemm_ref(&a->product);
    for (int r = 0; r < a->product.rows; r++) {
        const float *logits = (const float *)a->product.y + (size_t)r * (size_t)experts;
        for (int j = 0; j < k; j++) {
            a->expert[(size_t)r * (size_t)k + (size_t)j] = -1;
            a->score[(size_t)r * (size_t)k + (size_t)j] = 0;
        }
        for (int e = 0; e < experts && a->slot[r] >= 0; e++) {
            const int at = place(logits, experts, e);
            if (at < k) {
                a->expert[(size_t)r * (size_t)k + (size_t)at] = e;
                a->score[(size_t)r * (size_t)k + (size_t)at] = (float)(1 / (1 + exp(-(double)logits[e])));
            }
        }
    }
}

/* Multiplied by `by`: after the product, in *scale, or before a static scale. */
static void round_row(const struct moe *a, const struct matrix *w, float by, float *x, float *scale)
{
    const int rounds = a->round && w->form == MATRIX_FP8, fixed = rounds && a->round == ROUND_STATIC;
    for (int i = 0; fixed && i < w->k; i++)
        x[i] *= by;
    *scale = 1;
    if (rounds)
        quantise_ref(&(struct quantise){
            .x = x, .scale = scale, .rows = 1, .k = w->k, .fixed = fixed ? w->input_scale : 0});
    *scale *= fixed ? 1 : by;
}

/* Add what one expert gives for row r. */
static void add_expert(const struct moe *a, struct expert e, int r, float score)
{
    const int hidden = e.gate_up->k;
    float *x = a->scratch, *h = x + hidden, scale;
    memcpy(x, (const float *)a->x + (size_t)r * (size_t)hidden, (size_t)hidden * sizeof *x);
    round_row(a, e.gate_up, score, x, &scale);
    swiglu_ref(&(struct gemm){.w = e.gate_up, .x = x, .y = h, .rows = 1, .row_scale = &scale});
    round_row(a, e.down, 1, h, &scale);
    gemm_ref(&(struct gemm){.w = e.down,
                            .x = h,
                            .y = a->y + (size_t)r * (size_t)e.down->n,
                            .rows = 1,
                            .accumulate = 1,
                            .row_scale = &scale});
}

void moe_ref(const struct moe *a)
{
    if (a->partial)
        memset(a->y, 0, (size_t)a->rows * (size_t)a->shared.down->n * sizeof *a->y);
    for (int r = 0; r < a->rows; r++) {
        add_expert(a, a->shared, r, 1);
        for (int e = 0; e < a->experts; e++)
            for (int j = r * a->top_k; j < (r + 1) * a->top_k; j++)
                if (a->expert[j] == e)
                    add_expert(a, (struct expert){&a->gate_up[e], &a->down[e]}, r, a->score[j]);
    }
    if (!a->partial)
        rmsnorm_ref(&a->norm);
}
