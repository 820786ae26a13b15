/* cuda_attend: launches of attention on the scenes of cuda_scene, and what they must give. Which way of
 * kernels/attention.cu a launch takes follows from its rows and reach: up to 64 rows a cluster, or split and
 * merge where rows may see more than 8192 positions; more rows walk. */
#ifndef TESTS_CUDA_ATTEND_H
#define TESTS_CUDA_ATTEND_H
#include "tests/cuda_scene.h"

/* --- launches --- */

static inline int first_of(const struct scene *s, int r) /* position that row r sees */
{
    return attention_first(s->chunk, s->pos[r]);
}

static inline int reach_of(const struct scene *s, int first, int n)
{
    int reach = 1;
    for (int r = first; r < first + n; r++)
        reach = s->slot[r] >= 0 && s->pos[r] >= reach ? s->pos[r] + 1 : reach;
    return reach;
}

/* Rows [first, first + n) in one launch. */
static inline struct attention attention_of(const struct scene *s, const struct rows *rows, int first,
                                            int reach)
{
    return (struct attention){.rows = rows,
                              .qkv = s->device_qkv + (size_t)first * row_size(s),
                              .kv = scene_kv(s),
                              .y = s->y,
                              .scratch = s->scratch,
                              .heads = s->heads,
                              .reach = reach,
                              .chunk = s->chunk,
                              .scale = 1 / sqrtf((float)s->dim)};
}

/* What a launch wrote; out [n][heads * dim]. */
static inline void take(const struct scene *s, int n, uint16_t *out)
{
    const int width = s->heads * s->dim;
    const size_t bytes = (size_t)(n + 7) / 8 * 8 * (size_t)width * sizeof(uint16_t);
    uint16_t *act = host_new(bytes);
    download(act, s->y, bytes);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < width; i++)
            out[(size_t)r * (size_t)width + (size_t)i] = act[act_at(r, i, width)];
    free(act);
}

static inline void attend_to(const struct scene *s, int first, int n, int reach, uint16_t *out)
{
    struct rows rows = scene_rows(s, first, n);
    struct attention a = attention_of(s, &rows, first, reach);
    cuda(
        (int)cudaMemset(s->y, 0xff, (size_t)(n + 7) / 8 * 8 * (size_t)(s->heads * s->dim) * sizeof(uint16_t)),
        "cudaMemset");
    cuda(attention_cuda(&a, NULL), "attention_cuda");
    take(s, n, out);
}

static inline void attend(const struct scene *s, int first, int n, uint16_t *out)
{
    attend_to(s, first, n, reach_of(s, first, n), out);
}

static inline uint16_t *outputs_new(const struct scene *s)
{
    return host_new((size_t)MAX_ROWS * (size_t)s->heads * (size_t)s->dim * sizeof(uint16_t));
}

/* Row r of `got` and of `expected` have the same bits. */
static inline void expect_row(const struct scene *s, const uint16_t *got, const uint16_t *expected, int r,
                              const char *when)
{
    const size_t width = (size_t)s->heads * (size_t)s->dim;
    for (size_t i = r * width; i < (r + 1) * width; i++)
        EXPECT_MSG(got[i] == expected[i],
                   "%d/%d heads of %d, %s cells, chunks of %d, row %d (slot %d, position %d, base %d), head "
                   "%d component "
                   "%d, %s: "
                   "%.9g (%04x), expected %.9g (%04x)",
                   s->heads, s->kv_heads, s->dim, s->form == KV_FP8 ? "FP8" : "wide", s->chunk, r, s->slot[r],
                   s->pos[r], s->base[r], (int)(i % width) / s->dim, (int)(i % width) % s->dim, when,
                   bf16_to_f32(got[i]), got[i], bf16_to_f32(expected[i]), expected[i]);
}

/* Rows of nobody mean nothing. */
static inline void expect_rows(const struct scene *s, const uint16_t *got, const uint16_t *expected, int n,
                               const char *how, int size)
{
    char when[80];
    snprintf(when, sizeof when, "%s, %d rows a launch", how, size);
    for (int r = 0; r < n; r++)
        if (s->slot[r] >= 0)
            expect_row(s, got, expected, r, when);
}

/* All rows in launches of `size`. */
static inline void attend_in(const struct scene *s, int size, int reach, uint16_t *out)
{
    const size_t width = (size_t)s->heads * (size_t)s->dim;
    for (int r = 0, n; r < s->n; r += n) {
        n = s->n - r < size ? s->n - r : size;
        attend_to(s, r, n, reach ? reach : reach_of(s, r, n), out + (size_t)r * width);
    }
}

/* --- exact values --- */

/* Equal keys weigh all values alike, and sums of small integers are exact: y = sum * (1 / n), each operation
 * rounded once. */
static inline void expect_means(struct scene *s, const uint16_t *out, int first, int n)
{
    for (int r = 0; r < n; r++)
        for (int i = 0; i < s->heads * s->dim; i++) {
            int group = s->heads / s->kv_heads, from = first_of(s, first + r),
                seen = s->pos[first + r] + 1 - from;
            float sum = 0, inverse = 1.0f / (float)seen;
            for (int p = from; p < from + seen; p++)
                sum += (float)((p * 7 + i % s->dim + i / s->dim / group) % 8);
            float got = bf16_to_f32(out[(size_t)r * (size_t)(s->heads * s->dim) + (size_t)i]);
            float expected = bf16_to_f32(bf16_from_f32(sum * inverse));
            EXPECT_MSG(got == expected,
                       "%d rows, %d positions up to %d, head %d component %d: %.9g, expected %.9g", n, seen,
                       s->pos[first + r], i / s->dim, i % s->dim, got, expected);
        }
}

/* Positions [from, to) of slot 1; all other cells are NaN. */
static inline struct scene *means_scene(int of, int cap, int from, int to)
{
    struct scene *s = scene_new(of, cap);
    for (int p = from; p < to; p++)
        for (int h = 0; h < s->kv_heads; h++)
            for (int d = 0; d < s->dim; d++) {
                cache_put(s, 0, at(s, 1, h, p) + (size_t)d, (float)(d % 3));
                cache_put(s, 1, at(s, 1, h, p) + (size_t)d, (float)((p * 7 + d + h) % 8));
            }
    return s;
}

/* --- trees --- */

/* A committed text in every slot and n nodes of random trees after them, the first `slots` of them mixed,
 * cells anywhere behind the texts. */
static inline void scene_grow_in(struct scene *s, uint32_t seed, const int committed[SLOTS], int n, int slots)
{
    char *taken = host_new((size_t)SLOTS * (size_t)s->cap);
    int offset = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        for (int p = 0; p < committed[slot]; p++)
            cell_set(s, slot, p, slot * 100000 + p);
    for (s->n = 0; s->n < n; s->n++) {
        int i = s->n, slot = (int)(hash(seed, 1, (uint32_t)i) % 8),
            parent = (int)(hash(seed, 2, (uint32_t)i) % (uint32_t)(i + 1)) - 1;
        slot = slot < slots ? slot : 0;
        while (parent >= 0 && s->slot[parent] != slot)
            parent--;
        int depth = parent < 0 ? 0 : s->pos[parent] - committed[slot] + 1;
        int cell = committed[slot] + (int)(hash(seed, 3, (uint32_t)i) % (uint32_t)(s->cap - committed[slot]));
        while (taken[slot * s->cap + cell])
            cell = cell + 1 < s->cap ? cell + 1 : committed[slot];
        taken[slot * s->cap + cell] = 1;
        s->token[i] = 50000 + i;
        s->slot[i] = slot;
        s->parent[i] = parent;
        s->cell[i] = cell;
        s->pos[i] = committed[slot] + depth;
        s->base[i] = committed[slot];
        s->path_off[i] = offset;
        for (int node = i, d = depth; d >= 0; node = s->parent[node], d--)
            s->path[offset + d] = s->cell[node];
        offset += depth + 1;
        cell_set(s, slot, cell, s->token[i]);
    }
    free(taken);
}

static inline void scene_grow(struct scene *s, uint32_t seed, const int committed[SLOTS], int n)
{
    scene_grow_in(s, seed, committed, n, SLOTS);
}

/* Cells that no row sees, as all rows of their slot are in later chunks, become NaN. */
static inline void scene_forget(struct scene *s)
{
    for (int slot = 0; slot < SLOTS; slot++) {
        int from = s->cap;
        for (int r = 0; r < s->n; r++)
            from = s->slot[r] == slot && first_of(s, r) < from ? first_of(s, r) : from;
        for (int h = 0; from < s->cap && h < s->kv_heads; h++)
            for (int which = 0; which < 2; which++)
                memset((char *)s->cells[which] + at(s, slot, h, 0) / (size_t)s->dim * cell_bytes(s), 0xff,
                       (size_t)from * cell_bytes(s));
    }
}

/* What row r of `from` sees becomes cells 0.. of its slot, here and on the device. */
static inline void text_set(struct scene *s, const struct scene *from, int r)
{
    const struct rows rows = {.base = from->base, .path_off = from->path_off, .path = from->path};
    const int first = first_of(from, r), n = from->pos[r] + 1 - first;
    const size_t size = cell_bytes(s), pitch = (size_t)s->cap * size,
                 begin = at(s, from->slot[r], 0, 0) / (size_t)s->dim * size;
    for (int which = 0; which < 2; which++) {
        char *to = (char *)s->cells[which] + begin;
        const char *cells = (const char *)from->cells[which] + begin;
        for (int h = 0; h < s->kv_heads; h++)
            for (int p = 0; p < n; p++)
                memcpy(to + (size_t)h * pitch + (size_t)p * size,
                       cells + (size_t)h * pitch + (size_t)rows_cell(&rows, r, first + p) * size, size);
        cuda((int)cudaMemcpy2D((char *)s->device_cells[which] + begin, pitch, to, pitch, (size_t)n * size,
                               (size_t)s->kv_heads, cudaMemcpyHostToDevice),
             "cells");
    }
}

/* Every row of a tree alone, what it sees laid out from position 0 on as plain text without chunks, in a
 * cache of its own. */
static inline void attend_as_texts(const struct scene *tree, int of, uint16_t *out)
{
    struct scene *s = scene_new(of, tree->cap);
    for (int r = 0; r < tree->n; r++)
        row_add(s, tree->slot[r], tree->pos[r] - first_of(tree, r));
    scene_upload(s);
    for (int r = 0; r < tree->n; r++) {
        text_set(s, tree, r);
        attend(s, r, 1, out + (size_t)r * (size_t)(s->heads * s->dim));
    }
    scene_free(s);
}

/* --- the reference --- */

/* Error of one output that is y without rounding, |v| <= 2. W is the largest sum of |q k| scale.
 *   score     q is off by 2^-17 of itself; a tensor core may cut each of 17 addends at 2^-23 of the largest,
 * dim / 16 times; scaling, conversion to log2 and the difference from the maximum (at most 2 W) 8 roundings
 * of 2^-24: W (2^-17 + (1.1 dim + 4) 2^-23) weight    twice that, as it is relative to a sum of such;
 * exponentials 2^-22, one more a block for the change of maximum p         rounded to bf16, 8 bits, so 2^-8
 * at most, in weights that add up to 1: |v - y| <= 4 apart sums      n / 16 products of 17 addends, and two
 * roundings a block y         rounded to bf16, another 2^-8 */
static inline double bound(const struct scene *s, const struct kv_layer *kv, int r, int h)
{
    const float *q = s->qkv + (size_t)r * row_size(s) + (size_t)h * (size_t)s->dim;
    struct rows rows = {.base = s->base, .path_off = s->path_off, .path = s->path};
    double largest = 0;
    for (int p = first_of(s, r); p <= s->pos[r]; p++) {
        const float *k = kv_key(kv, s->slot[r], h / (s->heads / s->kv_heads), rows_cell(&rows, r, p));
        double size = 0;
        for (int d = 0; d < s->dim; d++)
            size += fabs((double)q[d] * k[d * KV_BLOCK]);
        largest = fmax(largest, size / sqrt(s->dim));
    }
    const double score = largest * (0x1p-17 + (1.1 * s->dim + 4) * 0x1p-23),
                 n = s->pos[r] + 1 - first_of(s, r), blocks = n / 64 + 1;
    const double weight = 2 * (score + (blocks + 1) * 0x1p-22);
    return 2 * weight + 4 * 0x1p-8 + 2 * (n * 1.1 * 0x1p-23 + blocks * 0x1p-23);
}

static inline void expect_reference(struct scene *s, const uint16_t *out)
{
    struct kv_layer kv = reference_kv(s);
    const int width = s->heads * s->dim;
    int where = 0;
    float *y = host_new((size_t)s->n * (size_t)width * sizeof(float));
    double worst = 0, errors = 0, values = 0;
    struct rows rows = {s->n, s->token, s->slot, s->pos, s->cell, s->base, s->path_off, s->path};
    struct attention ref = {.rows = &rows,
                            .qkv = s->qkv,
                            .kv = kv,
                            .y = y,
                            .heads = s->heads,
                            .chunk = s->chunk,
                            .scale = 1 / sqrtf((float)s->dim)};
    attention_ref(&ref);
    for (int i = 0; i < s->n * width; i += s->dim) {
        const double limit = bound(s, &kv, i / width, i % width / s->dim);
        for (int j = i; j < i + s->dim; j++) {
            const double error = fabs((double)bf16_to_f32(out[j]) - y[j]),
                         share = error / (limit + fabs(y[j]) * 0x1p-8);
            errors += error * error;
            values += (double)y[j] * y[j];
            if (!(share <= worst)) {
                worst = share;
                where = j;
            }
        }
    }
    printf("%d/%d heads of %d, %s cells, chunks of %d: worst at row %d head %d component %d, %.1f %% of the "
           "bound; error "
           "%.2e of the "
           "outputs' size\n",
           s->heads, s->kv_heads, s->dim, s->form == KV_FP8 ? "FP8" : "wide", s->chunk, where / width,
           where % width / s->dim, where % s->dim, 100 * worst, sqrt(errors / values));
    EXPECT_MSG(worst <= 1, "row %d (position %d) head %d component %d is %.9g, expected %.9g", where / width,
               s->pos[where / width], where % width / s->dim, where % s->dim, bf16_to_f32(out[where]),
               y[where]);
    /* The bound is blind to one key among many. Two independent roundings of 2^-8 at most, rms 2^-8 / sqrt(3)
     * each at worst (p's over values of the size of the outputs' own spread), make 0.82 * 2^-8; scores add
     * less than what is left. */
    EXPECT_MSG(sqrt(errors / values) <= 0x1p-8,
               "errors are %.3e of the outputs, expected at most 2^-8 = 3.9e-3", sqrt(errors / values));
    free(y);
    free(kv.k);
    free(kv.v);
}

/* All rows of a scene that was just laid, in launches of SPLIT and in one. */
static inline void expect_reference_split_and_whole(struct scene *s)
{
    uint16_t *out = outputs_new(s);
    scene_upload(s);
    attend_in(s, SPLIT, 0, out);
    expect_reference(s, out);
    attend(s, 0, s->n, out);
    expect_reference(s, out);
    free(out);
}
#endif
