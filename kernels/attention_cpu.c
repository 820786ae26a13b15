/* attention: one unit of work is a row and a kv head. The query heads that share the kv head go together, up
 * to HEADS at a time, so that keys and values are read once for all of them.
 *
 * Scores: a lane is a cell, so 16 cells take one fused multiply-add a component. Blocks below base are read
 * in place; a position on the row's path lies in any cell, and its score is a lane of that cell's block: the
 * same chain of operations, hence the same bits. From there on everything is by position. Decoding reads each
 * key and value once, 8 bytes a position and component: memory bound. */
#include "kernels/attention.h"
#include "kernels/simd.h"
#include <math.h>
#include <omp.h>

#if defined(KERN_ISA_avx512)
enum { HEADS = 4, BLOCKS = 4, CHUNK = 4 };
#elif defined(KERN_ISA_avx2)
enum { HEADS = 4, BLOCKS = 1, CHUNK = 1 };
#else
enum { HEADS = 2, BLOCKS = 1, CHUNK = 1 };
#endif

/* A row and up to HEADS of the query heads of one kv head. */
struct unit {
    const float *q;     /* [heads][dim] */
    const float *k, *v; /* of the slot and kv head */
    const int *path;    /* cells of positions base.. */
    float *score;       /* [heads][cap] */
    float *y;           /* [heads][dim] */
    int dim, cap, base;
    int first, n; /* positions first..n - 1 */
    float scale;
};

/* out[h * ld + b * 16 ...]: products of the heads with blocks of 16 cells. */
SIMD_FN void score_blocks(const float *k, const float *q, int dim, int heads, int blocks, float *out,
                          size_t ld)
{
    struct v16 acc[HEADS * BLOCKS];
#pragma GCC unroll 16
    for (int i = 0; i < heads * blocks; i++)
        acc[i] = v16_set1(0.0f);
    for (int d = 0; d < dim; d++, k += KV_BLOCK) {
        struct v16 key[BLOCKS];
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            key[b] = v16_load(k + (size_t)b * (size_t)dim * KV_BLOCK);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            struct v16 qd = v16_set1(q[h * dim + d]);
#pragma GCC unroll 4
            for (int b = 0; b < blocks; b++)
                acc[h * blocks + b] = v16_fma(qd, key[b], acc[h * blocks + b]);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++) {
#pragma GCC unroll 4
        for (int b = 0; b < blocks; b++)
            v16_store(out + (size_t)h * ld + b * KV_BLOCK, acc[h * blocks + b]);
    }
}

SIMD_FN void scores(const struct unit *u, int heads)
{
    size_t ld = (size_t)u->cap, size = (size_t)u->dim * KV_BLOCK;
    int below = u->base < u->n ? u->base : u->n, blocks = (below + KV_BLOCK - 1) / KV_BLOCK, held = -1;
    int b = u->first / KV_BLOCK;
    float lane[HEADS * KV_BLOCK];
    for (; b + BLOCKS <= blocks; b += BLOCKS)
        score_blocks(u->k + (size_t)b * size, u->q, u->dim, heads, BLOCKS, u->score + b * KV_BLOCK, ld);
    for (; b < blocks; b++)
        score_blocks(u->k + (size_t)b * size, u->q, u->dim, heads, 1, u->score + b * KV_BLOCK, ld);
    for (int p = below > u->first ? below : u->first; p < u->n; p++) {
        int cell = u->path[p - u->base];
        if (cell / KV_BLOCK != held) {
            held = cell / KV_BLOCK;
            score_blocks(u->k + (size_t)held * size, u->q, u->dim, heads, 1, lane, KV_BLOCK);
        }
        for (int h = 0; h < heads; h++)
            u->score[(size_t)h * ld + (size_t)p] = lane[h * KV_BLOCK + cell % KV_BLOCK];
    }
}

/* Scores [first, n) of one head become exponentials, padded with zeros to whole blocks of positions, so that
 * a position's lane does not depend on where its chunk begins; returns their sum. */
static float exponentials(float *s, int first, int n, float scale)
{
    struct v16 largest = v16_set1(-INFINITY), sum = v16_set1(0.0f);
    const int block = first / KV_BLOCK * KV_BLOCK;
    for (int p = block; p < first; p++)
        s[p] = -INFINITY;
    for (int p = n; p % KV_BLOCK != 0; p++)
        s[p] = -INFINITY;
    for (int p = block; p < n; p += KV_BLOCK) {
        struct v16 t = v16_mul(v16_load(s + p), v16_set1(scale));
        largest = v16_max(largest, t);
        v16_store(s + p, t);
    }
    struct v16 max = v16_set1(v16_largest(largest));
    for (int p = block; p < n; p += KV_BLOCK) {
        struct v16 e = v16_exp(v16_sub(v16_load(s + p), max));
        sum = v16_add(sum, e);
        v16_store(s + p, e);
    }
    return v16_sum(sum);
}

/* Components [at, at + chunk * 16) of the weighted sum of values. */
SIMD_FN void values(const struct unit *u, const float *sum, int heads, int at, int chunk)
{
    struct v16 acc[HEADS * CHUNK];
#pragma GCC unroll 16
    for (int i = 0; i < heads * chunk; i++)
        acc[i] = v16_set1(0.0f);
    for (int p = u->first; p < u->n; p++) {
        int cell = p < u->base ? p : u->path[p - u->base];
        const float *v = u->v + (size_t)cell * (size_t)u->dim + at;
        struct v16 value[CHUNK];
#pragma GCC unroll 4
        for (int c = 0; c < chunk; c++)
            value[c] = v16_load(v + c * 16);
#pragma GCC unroll 4
        for (int h = 0; h < heads; h++) {
            struct v16 e = v16_set1(u->score[(size_t)h * (size_t)u->cap + (size_t)p]);
#pragma GCC unroll 4
            for (int c = 0; c < chunk; c++)
                acc[h * chunk + c] = v16_fma(e, value[c], acc[h * chunk + c]);
        }
    }
#pragma GCC unroll 4
    for (int h = 0; h < heads; h++) {
        struct v16 scale = v16_set1(1.0f / sum[h]);
#pragma GCC unroll 4
        for (int c = 0; c < chunk; c++)
            v16_store(u->y + h * u->dim + at + c * 16, v16_mul(acc[h * chunk + c], scale));
    }
}

SIMD_FN void attend(const struct unit *u, int heads)
{
    float sum[HEADS];
    int at = 0;
    scores(u, heads);
    for (int h = 0; h < heads; h++)
        sum[h] = exponentials(u->score + (size_t)h * (size_t)u->cap, u->first, u->n, u->scale);
    for (; at + CHUNK * 16 <= u->dim; at += CHUNK * 16)
        values(u, sum, heads, at, CHUNK);
    for (; at < u->dim; at += 16)
        values(u, sum, heads, at, 1);
}

static void attend_some(const struct unit *u, int heads)
{
    switch (heads) {
    case 1:
        attend(u, 1);
        break;
    case 2:
        attend(u, 2);
        break;
#if !defined(KERN_ISA_portable)
    case 3:
        attend(u, 3);
        break;
    case 4:
        attend(u, 4);
        break;
#endif
    }
}

static void attend_group(const struct attention *a, int r, int head, float *scratch)
{
    const struct rows *rows = a->rows;
    int dim = a->kv.head_dim, group = a->heads / a->kv.kv_heads;
    if (rows->slot[r] < 0)
        return;
    for (int h = 0; h < group; h += HEADS) {
        size_t first = (size_t)(head * group + h) * (size_t)dim;
        struct unit u = {
            .q = a->qkv + (size_t)r * (size_t)(a->heads + 2 * a->kv.kv_heads) * (size_t)dim + first,
            .k = kv_key(&a->kv, rows->slot[r], head, 0),
            .v = kv_value(&a->kv, rows->slot[r], head, 0),
            .path = rows->path + (rows->base[r] <= rows->pos[r] ? rows->path_off[r] : 0),
            .score = scratch,
            .y = (float *)a->y + (size_t)r * (size_t)a->heads * (size_t)dim + first,
            .dim = dim,
            .cap = a->kv.cap,
            .base = rows->base[r],
            .first = attention_first(a->chunk, rows->pos[r]),
            .n = rows->pos[r] + 1,
            .scale = a->scale,
        };
        attend_some(&u, group - h < HEADS ? group - h : HEADS);
    }
}

/* Work goes out by kv head, then row, so that neighbouring units read the same keys. */
void KERN_NAME(attention)(const struct attention *a)
{
    int rows = a->rows->n, units = rows * a->kv.kv_heads;
    size_t each = attention_scratch(a->heads, a->kv.kv_heads, a->kv.head_dim, a->kv.cap);
    long long keys = 0;
    for (int r = 0; r < rows; r++)
        keys += a->rows->pos[r] + 1 - attention_first(a->chunk, a->rows->pos[r]);
#pragma omp parallel for num_threads(a->threads) schedule(static) if (a->threads > 1 && keys > 128)
    for (int i = 0; i < units; i++)
        attend_group(a, i % rows, i / rows, a->scratch + (size_t)omp_get_thread_num() * each);
}
