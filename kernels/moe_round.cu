/* moe_round: with scales of their own, rows go through quantise.cu; static ones of routed experts through a kernel
 * here, a block a choice, that finds the expert.
 * launch   grid rows * top_k, block 32..512 by k alone; the scales of all experts are an argument
 * moves    4 rows * top_k * k bytes; roof: as kernels/quantise.cu, the launch is the cost */
#include "kernels/moe_round.cuh"
#include "kernels/launch.cuh"
#include "kernels/quantise.cuh"

enum { MAX_THREADS = 512 };

struct choices {
    const uint16_t *from; /* may be x where each is 1 */
    uint16_t *x;
    float *scale;
    const float *square; /* of from, or NULL: 1 / rms is in it */
    const int *expert;
    const float *score; /* NULL: 1 */
    int k, each; /* rows of x a row of from */
    int experts;
    float eps, fixed[MOE_EXPERTS];
};

/* Rows of no expert stay as they are: nobody reads them. */
template <int F>
static __global__ void __launch_bounds__(MAX_THREADS) round_choices(const __grid_constant__ struct choices a)
{
    const int row = (int)blockIdx.x, of = row / a.each, steps = (a.k + ACT_STEP - 1) / ACT_STEP;
    launch_trigger();
    launch_wait();
    const int e = a.expert[row];
    if (e < 0 || e >= a.experts)
        return;
    const float *square = a.square ? a.square + (size_t)of * (size_t)steps : NULL;
    const float by = __fmul_rn(quantise_short(square, steps, a.k, a.eps), a.score ? a.score[row] : 1.0f);
    quantise_row<F>(a.from + act_at(of, 0, a.k), a.x + act_at(row, 0, a.k), a.k, by, a.fixed[e]);
    if (threadIdx.x == 0)
        a.scale[row] = a.fixed[e];
}

/* By the static scales of the routed matrices w. */
static int launch_choices(const struct moe *a, const struct moe_forms *forms, const struct matrix *w, struct choices p,
                          void *stream)
{
    const int quads = (w->k + ACT_STEP - 1) / ACT_STEP * 4, threads = (quads + 31) / 32 * 32;
    const struct launch l = {.grid = (unsigned)(a->rows * a->top_k),
                             .block = (unsigned)(threads < MAX_THREADS ? threads : MAX_THREADS),
                             .stream = stream};
    p.k = w->k;
    p.expert = a->expert, p.experts = a->experts;
    for (int e = 0; e < a->experts; e++)
        p.fixed[e] = w[e].input_scale;
    return forms->x == ACT_F16 ? launch_kernel(&l, round_choices<ACT_F16>, p)
                               : launch_kernel(&l, round_choices<ACT_BF16>, p);
}

/* Rows of one scale: their own, or w's. */
static int launch_rows(const struct moe_forms *forms, const struct matrix *w, struct quantise q, void *stream)
{
    q.k = w->k;
    q.form = forms->x;
    q.fixed = forms->fixed ? w->input_scale : 0;
    return quantise_cuda(&q, stream);
}

int moe_round_input(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream)
{
    const int apart = forms->fixed && forms->rounds[1];
    struct quantise rows = {};
    struct choices p = {};
    int rc = 0;
    if (apart) {
        p.from = (const uint16_t *)a->x, p.x = (uint16_t *)m->rounded, p.scale = m->scale[1];
        p.square = a->square, p.eps = a->eps;
        p.score = a->score;
        p.each = a->top_k;
        rc = launch_choices(a, forms, a->gate_up, p, stream);
    }
    if (rc || !(forms->rounds[0] || (forms->rounds[1] && !apart)))
        return rc;
    rows.from = a->x, rows.x = forms->rounds[0] && forms->rounds[1] ? (void *)a->x : m->rounded;
    rows.scale = m->scale[0];
    rows.square = a->square, rows.eps = a->eps;
    rows.rows = a->rows;
    return launch_rows(forms, a->shared.gate_up, rows, stream);
}

int moe_round_hidden(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream)
{
    struct quantise rows = {};
    struct choices p = {};
    int rc = 0;
    if (forms->rounds[0]) {
        rows.x = m->h[0], rows.scale = m->scale[0], rows.rows = a->rows;
        rc = launch_rows(forms, a->shared.down, rows, stream);
    }
    if (rc || !forms->rounds[1])
        return rc;
    rows.x = m->h[1], rows.scale = m->scale[1], rows.rows = a->rows * a->top_k;
    if (!forms->fixed)
        return launch_rows(forms, a->down, rows, stream);
    p.from = p.x = (uint16_t *)m->h[1], p.scale = m->scale[1], p.each = 1;
    return launch_choices(a, forms, a->down, p, stream);
}
