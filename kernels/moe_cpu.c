/* route and moe. Experts are taken one after the other; the rows that chose one are gathered, go through its
 * two products together and are added to where they belong: an expert's weights stream from memory once, and
 * copying its rows is nothing beside them. The shared expert is one that every row chose. */
#include "kernels/moe.h"
#include "kernels/quantise.h"
#include <math.h>

void KERN_NAME(gemm)(const struct gemm *a);
void KERN_NAME(swiglu)(const struct gemm *a);
void KERN_NAME(rmsnorm)(const struct rmsnorm *a);
void KERN_NAME(route)(const struct route *a);
void KERN_NAME(moe)(const struct moe *a);

static int among(const int *chosen, int n, int e)
{
    for (int i = 0; i < n; i++)
        if (chosen[i] == e)
            return 1;
    return 0;
}

/* The largest logit that is not among those chosen, the lowest index of equals. */
static int best_left(const float *logits, int experts, const int *chosen, int n)
{
    int best = -1;
    for (int e = 0; e < experts; e++)
        if ((best < 0 || logits[e] > logits[best]) && !among(chosen, n, e))
            best = e;
    return best;
}

void KERN_NAME(route)(const struct route *a)
{
    const int experts = a->product.w->n, k = a->top_k;
    KERN_NAME(gemm)(&a->product);
    for (int r = 0; r < a->product.rows; r++) {
        const float *logits = (const float *)a->product.y + (size_t)r * (size_t)experts;
        int *expert = a->expert + (size_t)r * (size_t)k;
        float *score = a->score + (size_t)r * (size_t)k;
        for (int j = 0; j < k; j++) {
            expert[j] = a->slot[r] < 0 ? -1 : best_left(logits, experts, expert, j);
            score[j] = expert[j] < 0 ? 0.0f : 1.0f / (1.0f + expf(-logits[expert[j]]));
        }
    }
}

/* The scratch as this file uses it; moe_scratch has room for it. */
struct room {
    float *x, *h, *out;   /* [rows, hidden], [rows, ffn], [rows, hidden] */
    float *score, *scale; /* [rows] of the gathered rows */
    int *row;             /* [rows] which these are */
};

static float *take(float **at, size_t floats)
{
    float *p = *at;
    *at += (floats + 15) / 16 * 16;
    return p;
}

static struct room room_of(const struct moe *a)
{
    const size_t rows = (size_t)a->rows;
    float *at = a->scratch;
    struct room m;
    m.x = take(&at, rows * (size_t)a->shared.down->n);
    m.out = take(&at, rows * (size_t)a->shared.down->n);
    m.h = take(&at, rows * (size_t)a->shared.down->k);
    m.score = take(&at, rows);
    m.scale = take(&at, rows);
    m.row = (int *)(void *)take(&at, rows);
    return m;
}

/* The rows that chose expert e; e -1: all of them, for the shared one. */
static int find_rows(const struct moe *a, int e, const struct room *m)
{
    int n = 0;
    for (int r = 0; r < a->rows; r++) {
        if (e < 0) {
            m->score[n] = 1.0f;
            m->row[n++] = r;
        }
        for (int j = r * a->top_k; e >= 0 && j < (r + 1) * a->top_k; j++)
            if (a->expert[j] == e) {
                m->score[n] = a->score[j];
                m->row[n++] = r;
            }
    }
    return n;
}

static int rounds(const struct moe *a, const struct matrix *w)
{
    return a->round && w->form == MATRIX_FP8;
}

/* Leaves the factors of the rows in scale. */
static void round_rows(const struct moe *a, const struct matrix *w, float *x, int rows, float *scale)
{
    quantise_ref(&(struct quantise){.x = x,
                                    .scale = scale,
                                    .rows = rows,
                                    .k = w->k,
                                    .threads = a->threads,
                                    .fixed = a->round == ROUND_STATIC ? w->input_scale : 0});
}

/* The n gathered rows as the first product reads them: their scores go into them before a static scale, else
 * stay factors. */
static void round_inputs(const struct moe *a, const struct matrix *w, const struct room *m, int n)
{
    const size_t hidden = (size_t)w->k;
    if (!rounds(a, w))
        return;
    for (size_t i = 0; a->round == ROUND_STATIC && i < (size_t)n; i++) {
        for (size_t j = 0; j < hidden; j++)
            m->x[i * hidden + j] *= m->score[i];
        m->score[i] = 1;
    }
    round_rows(a, w, m->x, n, m->scale);
    for (int i = 0; i < n; i++)
        m->score[i] *= m->scale[i];
}

static struct gemm product(const struct moe *a, const struct matrix *w, const float *x, float *y, int rows)
{
    return (struct gemm){.w = w, .x = x, .y = y, .rows = rows, .threads = a->threads, .scratch = a->gemm};
}

/* Add what expert e gives to the n rows in m. */
static void run_expert(const struct moe *a, struct expert e, const struct room *m, int n)
{
    const size_t hidden = (size_t)e.down->n;
    for (int i = 0; i < n; i++)
        memcpy(m->x + (size_t)i * hidden, (const float *)a->x + (size_t)m->row[i] * hidden,
               hidden * sizeof(float));
    struct gemm gate_up = product(a, e.gate_up, m->x, m->h, n), down = product(a, e.down, m->h, m->out, n);
    round_inputs(a, e.gate_up, m, n);
    gate_up.row_scale = m->score;
    KERN_NAME(swiglu)(&gate_up);
    if (rounds(a, e.down)) {
        round_rows(a, e.down, m->h, n, m->scale);
        down.row_scale = m->scale;
    }
    KERN_NAME(gemm)(&down);
    for (int i = 0; i < n; i++)
        for (size_t j = 0; j < hidden; j++)
            a->y[(size_t)m->row[i] * hidden + j] += m->out[(size_t)i * hidden + j];
}

void KERN_NAME(moe)(const struct moe *a)
{
    const struct room m = room_of(a);
    if (a->partial)
        memset(a->y, 0, (size_t)a->rows * (size_t)a->shared.down->n * sizeof *a->y);
    run_expert(a, a->shared, &m, find_rows(a, -1, &m));
    for (int e = 0; e < a->experts; e++) {
        const int n = find_rows(a, e, &m);
        if (n > 0)
            run_expert(a, (struct expert){&a->gate_up[e], &a->down[e]}, &m, n);
    }
    if (!a->partial)
        KERN_NAME(rmsnorm)(&a->norm);
}
