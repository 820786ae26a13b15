/* Attention, rope and moving cells on a CUDA device. Cells that no row may see hold NaN, so that a look at
 * one shows. */
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "tests/expect.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_ROWS = 160, SLOTS = 3, SPLIT = 64 }; /* SPLIT: rows up to which the context is split over blocks */

static const struct {
    int heads, kv_heads, dim;
} shapes[] = {{9, 3, 64}, {32, 8, 128}, {40, 8, 128}, {1, 1, 16},
              {4, 2, 80}, {8, 1, 256},  {16, 2, 128}, {6, 3, 32}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* --- the device -------------------------------------------------------------------------------------------
 */

static void cuda(int rc, const char *what)
{
    if (rc != 0)
        ck_abort_msg("%s: CUDA error %d, %s", what, rc, cudaGetErrorString((enum cudaError)rc));
}

static void *host_new(size_t bytes)
{
    void *p = calloc(1, bytes);
    ck_assert_ptr_nonnull(p);
    return p;
}

static void *device_new(const void *from, size_t bytes)
{
    void *p = NULL;
    cuda((int)cudaMalloc(&p, bytes), "cudaMalloc");
    cuda((int)(from ? cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice) : cudaMemset(p, 0xff, bytes)),
         "upload");
    return p;
}

static void download(void *to, const void *from, size_t bytes)
{
    cuda((int)cudaDeviceSynchronize(), "running the kernels");
    cuda((int)cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download");
}

/* --- scenes: caches and rows, on the host and on the device -----------------------------------------------
 */

struct scene {
    int heads, kv_heads, dim, cap, n;
    int token[MAX_ROWS], slot[MAX_ROWS], pos[MAX_ROWS], cell[MAX_ROWS], base[MAX_ROWS], path_off[MAX_ROWS];
    int parent[MAX_ROWS], path[MAX_ROWS * MAX_ROWS];
    float *qkv;
    bf16 *k, *v;
    struct rows rows; /* on the device, from here on */
    int *ints;
    float *device_qkv, *scratch;
    bf16 *device_k, *device_v, *y;
};

static uint32_t hash(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca77u ^ (c + 0x165667b1u) * 0xc2b2ae3du;
    h = (h ^ h >> 15) * 0x2c1b3c6du;
    h = (h ^ h >> 12) * 0x297a2d39u;
    return h ^ h >> 15;
}

static float value(uint32_t stream, uint32_t a, uint32_t b) /* in [-2, 2) */
{
    return (float)(hash(stream, a, b) >> 8) * 0x1p-22f - 2;
}

static size_t row_size(const struct scene *s) /* of qkv */
{
    return (size_t)(s->heads + 2 * s->kv_heads) * (size_t)s->dim;
}

static size_t cache_size(const struct scene *s)
{
    return (size_t)SLOTS * (size_t)s->kv_heads * (size_t)s->cap * (size_t)s->dim;
}

static size_t at(const struct scene *s, int slot, int head, int cell)
{
    return (((size_t)slot * (size_t)s->kv_heads + (size_t)head) * (size_t)s->cap + (size_t)cell) *
           (size_t)s->dim;
}

static struct scene *scene_new(int shape, int cap)
{
    struct scene *s = host_new(sizeof *s);
    s->heads = shapes[shape].heads;
    s->kv_heads = shapes[shape].kv_heads;
    s->dim = shapes[shape].dim;
    s->cap = cap;
    s->qkv = host_new(MAX_ROWS * row_size(s) * sizeof(float));
    s->k = host_new(cache_size(s) * sizeof(bf16));
    s->v = host_new(cache_size(s) * sizeof(bf16));
    memset(s->k, 0xff, cache_size(s) * sizeof(bf16)); /* NaN */
    memset(s->v, 0xff, cache_size(s) * sizeof(bf16));
    for (size_t i = 0; i < MAX_ROWS * row_size(s); i++)
        s->qkv[i] = value(3, 0, (uint32_t)i);
    return s;
}

static void cell_set(struct scene *s, int slot, int cell, int token)
{
    for (int h = 0; h < s->kv_heads; h++)
        for (int d = 0; d < s->dim; d++) {
            s->k[at(s, slot, h, cell) + (size_t)d] =
                bf16_from_f32(value(1, (uint32_t)token, (uint32_t)(h * 1000 + d)));
            s->v[at(s, slot, h, cell) + (size_t)d] =
                bf16_from_f32(value(2, (uint32_t)token, (uint32_t)(h * 1000 + d)));
        }
}

/* One more row of plain text: cells are positions. */
static void row_add(struct scene *s, int slot, int pos)
{
    int i = s->n++;
    s->slot[i] = slot;
    s->pos[i] = s->cell[i] = pos;
    s->base[i] = pos + 1;
}

static void scene_upload(struct scene *s)
{
    const int *arrays[] = {s->token, s->slot, s->pos, s->cell, s->base, s->path_off, s->path};
    int **to[] = {(int **)&s->rows.token, (int **)&s->rows.slot, (int **)&s->rows.pos,
                  (int **)&s->rows.cell,  (int **)&s->rows.base, (int **)&s->rows.path_off,
                  (int **)&s->rows.path};
    s->ints = device_new(NULL, (6 * MAX_ROWS + MAX_ROWS * MAX_ROWS) * sizeof(int));
    for (int i = 0; i < 7; i++) {
        size_t n = i < 6 ? MAX_ROWS : MAX_ROWS * MAX_ROWS;
        *to[i] = s->ints + i * MAX_ROWS;
        cuda((int)cudaMemcpy(*to[i], arrays[i], n * sizeof(int), cudaMemcpyHostToDevice), "upload of rows");
    }
    s->device_qkv = device_new(s->qkv, MAX_ROWS * row_size(s) * sizeof(float));
    s->device_k = device_new(s->k, cache_size(s) * sizeof(bf16));
    s->device_v = device_new(s->v, cache_size(s) * sizeof(bf16));
    s->y = device_new(NULL, MAX_ROWS * (size_t)s->heads * (size_t)s->dim * sizeof(bf16));
    s->scratch = device_new(NULL, attention_cuda_scratch(MAX_ROWS, s->heads, s->dim, s->cap) * sizeof(float));
}

static void scene_free(struct scene *s)
{
    void *device[] = {s->ints, s->device_qkv, s->device_k, s->device_v, s->y, s->scratch};
    for (int i = 0; i < 6; i++)
        cuda((int)cudaFree(device[i]), "cudaFree");
    free(s->qkv);
    free(s->k);
    free(s->v);
    free(s);
}

static struct kv_layer scene_kv(const struct scene *s)
{
    return (struct kv_layer){s->device_k, s->device_v, SLOTS, s->kv_heads, s->dim, s->cap, KV_WIDE};
}

static struct rows scene_rows(const struct scene *s, int first, int n)
{
    return (struct rows){n,
                         s->rows.token + first,
                         s->rows.slot + first,
                         s->rows.pos + first,
                         s->rows.cell + first,
                         s->rows.base + first,
                         s->rows.path_off + first,
                         s->rows.path};
}

/* Rows [first, first + n) in one launch; out bf16 [n][heads * dim]. */
static void attend(const struct scene *s, int first, int n, bf16 *out)
{
    int width = s->heads * s->dim;
    size_t bytes = (size_t)(n + 7) / 8 * 8 * (size_t)width * sizeof(bf16);
    struct rows rows = scene_rows(s, first, n);
    struct attention a = {.rows = &rows,
                          .qkv = s->device_qkv + (size_t)first * row_size(s),
                          .kv = scene_kv(s),
                          .y = s->y,
                          .scratch = s->scratch,
                          .heads = s->heads,
                          .scale = 1 / sqrtf((float)s->dim)};
    bf16 *act = host_new(bytes);
    cuda((int)cudaMemset(s->y, 0xff, bytes), "cudaMemset");
    cuda(attention_cuda(&a, NULL), "attention_cuda");
    download(act, s->y, bytes);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < width; i++)
            out[(size_t)r * (size_t)width + (size_t)i] = act[act_at(r, i, width)];
    free(act);
}

static bf16 *outputs_new(const struct scene *s)
{
    return host_new((size_t)MAX_ROWS * (size_t)s->heads * (size_t)s->dim * sizeof(bf16));
}

/* Row r of `got` and of `expected` have the same bits. */
static void expect_row(const struct scene *s, const bf16 *got, const bf16 *expected, int r, const char *when)
{
    size_t width = (size_t)s->heads * (size_t)s->dim;
    for (size_t i = 0; i < width; i++)
        EXPECT_MSG(got[(size_t)r * width + i] == expected[(size_t)r * width + i],
                   "%d/%d heads of %d, row %d (slot %d, position %d, base %d), head %d component %d, %s: "
                   "%.9g (%04x), expected %.9g (%04x)",
                   s->heads, s->kv_heads, s->dim, r, s->slot[r], s->pos[r], s->base[r], (int)i / s->dim,
                   (int)i % s->dim, when, bf16_to_f32(got[(size_t)r * width + i]), got[(size_t)r * width + i],
                   bf16_to_f32(expected[(size_t)r * width + i]), expected[(size_t)r * width + i]);
}

/* --- exact values -----------------------------------------------------------------------------------------
 */

/* Equal keys weigh all values alike, and sums of small integers are exact: y = sum * (1 / n), each operation
 * rounded once. */
static void expect_means(struct scene *s, const bf16 *out, int first, int n)
{
    for (int r = 0; r < n; r++)
        for (int i = 0; i < s->heads * s->dim; i++) {
            int group = s->heads / s->kv_heads, seen = s->pos[first + r] + 1;
            float sum = 0, inverse = 1.0f / (float)seen;
            for (int p = 0; p < seen; p++)
                sum += (float)((p * 7 + i % s->dim + i / s->dim / group) % 8);
            float got = bf16_to_f32(out[(size_t)r * (size_t)(s->heads * s->dim) + (size_t)i]);
            float expected = bf16_to_f32(bf16_from_f32(sum * inverse));
            EXPECT_MSG(got == expected, "%d rows, context %d, head %d component %d: %.9g, expected %.9g", n,
                       seen, i / s->dim, i % s->dim, got, expected);
        }
}

static struct scene *means_scene(int shape, int cap, int filled)
{
    struct scene *s = scene_new(shape, cap);
    for (int p = 0; p < filled; p++)
        for (int h = 0; h < s->kv_heads; h++)
            for (int d = 0; d < s->dim; d++) {
                s->k[at(s, 1, h, p) + (size_t)d] = bf16_from_f32((float)(d % 3));
                s->v[at(s, 1, h, p) + (size_t)d] = bf16_from_f32((float)((p * 7 + d + h) % 8));
            }
    return s;
}

START_TEST(equal_keys_average_the_values_of_every_context_exactly)
{
    static const int sizes[] = {1, 16, SPLIT, 150};
    for (int context = 1, n, launch = 0; context <= 2100; context += n, launch++) {
        n = sizes[launch % 4];
        struct scene *s = means_scene(3, 2304, context - 1 + n); /* what follows is NaN */
        bf16 *out = outputs_new(s);
        for (int i = 0; i < n; i++)
            row_add(s, 1, context - 1 + i);
        scene_upload(s);
        attend(s, 0, n, out);
        expect_means(s, out, 0, n);
        free(out);
        scene_free(s);
    }
}
END_TEST

START_TEST(long_contexts_average_exactly_at_every_chunk_boundary)
{
    static const int ends[] = {2048, 2304, 4096, 8192, 9216, 32768};
    struct scene *s = means_scene(7, 32784, 32784);
    bf16 *out = outputs_new(s);
    for (int i = 0; i < 6; i++)
        for (int d = -1; d <= 1; d++)
            row_add(s, 1, ends[i] + d - 1);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_means(s, out, 0, s->n);
    for (int r = 0; r < s->n; r++) {
        attend(s, r, 1, out);
        expect_means(s, out, r, 1);
    }
    free(out);
    scene_free(s);
}
END_TEST

/* A query along one key, keys of +-1: that score is far above all others, whose exponentials underflow. y is
 * that key's value. */
START_TEST(an_overwhelming_key_takes_all_at_every_position)
{
    struct scene *s = scene_new(0, 2048);
    bf16 *out = outputs_new(s);
    int in = (int)row_size(s), width = s->heads * s->dim, last = 2040;
    for (int p = 0; p <= last; p++) {
        cell_set(s, 2, p, p);
        for (int h = 0; h < s->kv_heads; h++)
            for (int d = 0; d < s->dim; d++)
                s->k[at(s, 2, h, p) + (size_t)d] =
                    hash(5, (uint32_t)p, (uint32_t)(h * 1000 + d)) & 0x8000 ? 0x3f80 : 0xbf80;
    }
    for (int i = 0; i < SPLIT + 36; i++)
        row_add(s, 2, i % 2 ? last : last - i);
    scene_upload(s);
    for (int first = 0; first <= last; first += s->n) {
        for (int r = 0; r < s->n; r++)
            for (int i = 0; i < width; i++) {
                int p = (first + r) % (s->pos[r] + 1);
                s->qkv[r * in + i] =
                    1000 * bf16_to_f32(s->k[at(s, 2, i / s->dim / 3, p) + (size_t)(i % s->dim)]);
            }
        cuda((int)cudaMemcpy(s->device_qkv, s->qkv, MAX_ROWS * row_size(s) * sizeof(float),
                             cudaMemcpyHostToDevice),
             "upload");
        for (int walk = 0; walk < 2; walk++) {
            attend(s, 0, walk ? s->n : SPLIT, out);
            for (int r = 0; r < (walk ? s->n : SPLIT); r++)
                for (int i = 0; i < width; i++) {
                    int p = (first + r) % (s->pos[r] + 1);
                    bf16 expected = s->v[at(s, 2, i / s->dim / 3, p) + (size_t)(i % s->dim)];
                    EXPECT_MSG(bf16_to_f32(out[r * width + i]) == bf16_to_f32(expected),
                               "row %d at %d, key %d, head %d component %d: %.9g, expected %.9g", r,
                               s->pos[r], p, i / s->dim, i % s->dim, bf16_to_f32(out[r * width + i]),
                               bf16_to_f32(expected));
                }
        }
    }
    free(out);
    scene_free(s);
}
END_TEST

/* --- trees ------------------------------------------------------------------------------------------------
 */

/* A committed text in every slot and n nodes of random trees after them, slots mixed, cells anywhere behind
 * the texts. */
static void scene_grow(struct scene *s, uint32_t seed, const int committed[SLOTS], int n)
{
    char *taken = host_new((size_t)SLOTS * (size_t)s->cap);
    int offset = 0;
    for (int slot = 0; slot < SLOTS; slot++)
        for (int p = 0; p < committed[slot]; p++)
            cell_set(s, slot, p, slot * 100000 + p);
    for (s->n = 0; s->n < n; s->n++) {
        int i = s->n, slot = (int)(hash(seed, 1, (uint32_t)i) % 8),
            parent = (int)(hash(seed, 2, (uint32_t)i) % (uint32_t)(i + 1)) - 1;
        slot = slot < SLOTS ? slot : 0;
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

/* Every row of a tree alone, its sequence laid out as plain text in a cache of its own. */
static void attend_as_chains(const struct scene *tree, int shape, const int committed[SLOTS], bf16 *out)
{
    struct scene *s = scene_new(shape, tree->cap);
    size_t pitch = at(s, 0, 1, 0) * sizeof(bf16);
    for (int slot = 0; slot < SLOTS; slot++)
        for (int p = 0; p < committed[slot]; p++)
            cell_set(s, slot, p, slot * 100000 + p);
    for (int i = 0; i < tree->n; i++)
        row_add(s, tree->slot[i], tree->pos[i]);
    scene_upload(s);
    for (int i = 0; i < tree->n; i++) {
        size_t first = at(s, s->slot[i], 0, tree->base[i]),
               bytes = (size_t)(tree->pos[i] - tree->base[i] + 1) * (size_t)s->dim * sizeof(bf16);
        for (int node = i; node >= 0; node = tree->parent[node])
            cell_set(s, s->slot[i], tree->pos[node], tree->token[node]);
        cuda((int)cudaMemcpy2D(s->device_k + first, pitch, s->k + first, pitch, bytes, (size_t)s->kv_heads,
                               cudaMemcpyHostToDevice),
             "keys");
        cuda((int)cudaMemcpy2D(s->device_v + first, pitch, s->v + first, pitch, bytes, (size_t)s->kv_heads,
                               cudaMemcpyHostToDevice),
             "values");
        attend(s, i, 1, out + (size_t)i * (size_t)(s->heads * s->dim));
    }
    scene_free(s);
}

START_TEST(a_node_sees_exactly_its_sequence_bit_for_bit)
{
    static const int committed[][SLOTS] = {{0, 1, 63}, {64, 65, 127}, {200, 15, 128}, {600, 0, 17}};
    for (uint32_t c = 0; c < 4; c++) {
        struct scene *s = scene_new(_i, 768);
        size_t width = (size_t)s->heads * (size_t)s->dim;
        bf16 *out = outputs_new(s), *expected = outputs_new(s);
        scene_grow(s, c, committed[c], c == 3 ? 100 : SPLIT);
        scene_upload(s);
        attend_as_chains(s, _i, committed[c], expected);
        attend(s, 0, s->n, out);
        for (int r = 0; r < s->n; r++)
            expect_row(s, out, expected, r, "all rows together");
        for (int size = 1; size <= SPLIT; size += size < 4 ? 1 : 7) {
            for (int r = 0; r < s->n; r += size)
                attend(s, r, s->n - r < size ? s->n - r : size, out + (size_t)r * width);
            for (int r = 0; r < s->n; r++) {
                char when[40];
                snprintf(when, sizeof when, "%d rows a launch", size);
                expect_row(s, out, expected, r, when);
            }
        }
        free(out);
        free(expected);
        scene_free(s);
    }
}
END_TEST

/* A prompt's rows: split at 1 to 64 rows, one walk at more. */
START_TEST(a_row_of_a_prompt_is_the_same_in_every_batch)
{
    struct scene *s = scene_new(_i, 2560);
    size_t width = (size_t)s->heads * (size_t)s->dim;
    bf16 *out = outputs_new(s), *expected = outputs_new(s);
    for (int p = 0; p < 2400; p++)
        cell_set(s, 0, p, p);
    for (int i = 0; i < MAX_ROWS; i++)
        row_add(s, 0, i < 80 ? i : 2200 + i);
    scene_upload(s);
    for (int r = 0; r < s->n; r++)
        attend(s, r, 1, expected + (size_t)r * width);
    for (int size = 2; size <= MAX_ROWS; size += size < 8 ? 1 : 19) {
        for (int r = 0; r < s->n; r += size)
            attend(s, r, s->n - r < size ? s->n - r : size, out + (size_t)r * width);
        for (int r = 0; r < s->n; r++) {
            char when[40];
            snprintf(when, sizeof when, "%d rows a launch", size);
            expect_row(s, out, expected, r, when);
        }
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* A value that later rows alone may see is NaN: the rows before it keep their bits, those after it are NaN.
 */
START_TEST(a_nan_reaches_only_the_rows_that_see_it)
{
    struct scene *s = scene_new(1, 256);
    size_t width = (size_t)s->heads * (size_t)s->dim;
    bf16 *out = outputs_new(s), *expected = outputs_new(s);
    for (int i = 0; i < 100; i++) {
        cell_set(s, 0, i, i);
        row_add(s, 0, i);
    }
    memset(s->v + at(s, 0, 2, 70), 0xff, sizeof(bf16)); /* component 0 of kv head 2, heads 8 to 11 */
    scene_upload(s);
    for (int r = 0; r < s->n; r++)
        attend(s, r, 1, expected + (size_t)r * width);
    attend(s, 0, s->n, out);
    for (int r = 0; r < s->n; r++) {
        expect_row(s, out, expected, r, "all rows together");
        EXPECT_MSG(!!isnan(bf16_to_f32(out[(size_t)r * width + 8 * 128])) == (r >= 70), "row %d: %g", r,
                   bf16_to_f32(out[(size_t)r * width + 8 * 128]));
        EXPECT(!isnan(bf16_to_f32(out[(size_t)r * width + 8 * 128 + 1])));
    }
    free(out);
    free(expected);
    scene_free(s);
}
END_TEST

/* --- the reference ----------------------------------------------------------------------------------------
 */

/* The same cache as the reference reads it. */
static struct kv_layer reference_kv(const struct scene *s)
{
    struct kv_layer kv = {host_new(cache_size(s) * sizeof(float)),
                          host_new(cache_size(s) * sizeof(float)),
                          SLOTS,
                          s->kv_heads,
                          s->dim,
                          s->cap,
                          KV_WIDE};
    for (int slot = 0; slot < SLOTS; slot++)
        for (int h = 0; h < s->kv_heads; h++)
            for (int cell = 0; cell < s->cap; cell++)
                for (int d = 0; d < s->dim; d++) {
                    kv_key(&kv, slot, h, cell)[d * KV_BLOCK] =
                        bf16_to_f32(s->k[at(s, slot, h, cell) + (size_t)d]);
                    kv_value(&kv, slot, h, cell)[d] = bf16_to_f32(s->v[at(s, slot, h, cell) + (size_t)d]);
                }
    return kv;
}

/* Error of one output that is y without rounding, |v| <= 2. W is the largest sum of |q k| scale.
 *   score     q is off by 2^-17 of itself; a tensor core may cut each of 17 addends at 2^-23 of the largest,
 * dim / 16 times; scaling, conversion to log2 and the difference from the maximum (at most 2 W) 8 roundings
 * of 2^-24: W (2^-17 + (1.1 dim + 4) 2^-23) weight    twice that, as it is relative to a sum of such;
 * exponentials 2^-22, one more a block for the change of maximum p         rounded to bf16, 2^-9, in weights
 * that add up to 1: |v - y| <= 4 apart sums      n / 16 products of 17 addends, and two roundings a block y
 * rounded to bf16 */
static double bound(const struct scene *s, const struct kv_layer *kv, int r, int h, double y)
{
    const float *q = s->qkv + (size_t)r * row_size(s) + (size_t)h * (size_t)s->dim;
    struct rows rows = {.base = s->base, .path_off = s->path_off, .path = s->path};
    double largest = 0;
    for (int p = 0; p <= s->pos[r]; p++) {
        const float *k = kv_key(kv, s->slot[r], h / (s->heads / s->kv_heads), rows_cell(&rows, r, p));
        double size = 0;
        for (int d = 0; d < s->dim; d++)
            size += fabs((double)q[d] * k[d * KV_BLOCK]);
        largest = fmax(largest, size / sqrt(s->dim));
    }
    double score = largest * (0x1p-17 + (1.1 * s->dim + 4) * 0x1p-23), n = s->pos[r] + 1, blocks = n / 64 + 1;
    double weight = 2 * (score + (blocks + 1) * 0x1p-22);
    return 2 * weight + 4 * 0x1p-9 + 2 * (n * 1.1 * 0x1p-23 + blocks * 0x1p-23) + fabs(y) * 0x1p-9;
}

static void expect_reference(struct scene *s, const bf16 *out)
{
    struct kv_layer kv = reference_kv(s);
    int width = s->heads * s->dim, where = 0;
    float *y = host_new((size_t)s->n * (size_t)width * sizeof(float));
    double worst = 0, errors = 0, values = 0;
    struct rows rows = {s->n, s->token, s->slot, s->pos, s->cell, s->base, s->path_off, s->path};
    struct attention ref = {
        .rows = &rows, .qkv = s->qkv, .kv = kv, .y = y, .heads = s->heads, .scale = 1 / sqrtf((float)s->dim)};
    attention_ref(&ref);
    for (int i = 0; i < s->n * width; i += s->dim) {
        double limit = bound(s, &kv, i / width, i % width / s->dim, 0);
        for (int j = i; j < i + s->dim; j++) {
            double error = fabs((double)bf16_to_f32(out[j]) - y[j]),
                   share = error / (limit + fabs(y[j]) * 0x1p-9);
            errors += error * error;
            values += (double)y[j] * y[j];
            if (!(share <= worst)) {
                worst = share;
                where = j;
            }
        }
    }
    printf("%d/%d heads of %d: worst at row %d head %d component %d, %.1f %% of the bound; error %.2e of the "
           "outputs' size\n",
           s->heads, s->kv_heads, s->dim, where / width, where % width / s->dim, where % s->dim, 100 * worst,
           sqrt(errors / values));
    EXPECT_MSG(worst <= 1, "row %d (position %d) head %d component %d is %.9g, expected %.9g", where / width,
               s->pos[where / width], where % width / s->dim, where % s->dim, bf16_to_f32(out[where]),
               y[where]);
    /* The bound is blind to one key among many. Two independent roundings of 2^-9 at most (rms 2^-9 / sqrt(3)
     * each at worst, p's over values of the size of the output's own spread) make 2^-9 in all; scores add
     * less. */
    EXPECT_MSG(sqrt(errors / values) <= 0x1p-8,
               "errors are %.3e of the outputs, expected at most 2^-8 = 3.9e-3", sqrt(errors / values));
    free(y);
    free(kv.k);
    free(kv.v);
}

START_TEST(it_is_within_its_bound_of_the_reference)
{
    static const int committed[SLOTS] = {250, 60, 0};
    struct scene *s = scene_new(_i, 400);
    bf16 *out = outputs_new(s);
    scene_grow(s, 77, committed, s->heads * s->dim > 4000 ? 4 : 24);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_reference(s, out);
    free(out);
    scene_free(s);
}
END_TEST

START_TEST(it_is_within_its_bound_at_every_block_boundary)
{
    struct scene *s = scene_new(7, 2048);
    bf16 *out = outputs_new(s);
    for (int p = 0; p < 2048; p++)
        cell_set(s, 0, p, p);
    for (int end = 64; end <= 1984; end += 64)
        for (int d = -1; d <= 1; d++)
            row_add(s, 0, end + d - 1);
    scene_upload(s);
    attend(s, 0, s->n, out);
    expect_reference(s, out);
    free(out);
    scene_free(s);
}
END_TEST

/* --- rope -------------------------------------------------------------------------------------------------
 */

enum { ROPE_ROWS = 70, ROPE_CAP = 160 };

static struct scene *rope_scene(int shape)
{
    struct scene *s = scene_new(shape, ROPE_CAP);
    for (int i = 0; i < ROPE_ROWS; i++) {
        row_add(s, i % SLOTS, 1873 * i);
        s->cell[i] = 2 * i + 1;
    }
    scene_upload(s);
    return s;
}

static float *inv_freq_new(int dim)
{
    float *f = host_new((size_t)dim * sizeof *f);
    for (int j = 0; j < dim / 2; j++)
        f[j] = powf(10000, -2.0f * (float)j / (float)dim);
    return f;
}

/* Rotates rows in launches of `size`; the table comes back, [ROPE_ROWS][dim]. */
static float *rotate(struct scene *s, int size)
{
    size_t bytes = (size_t)ROPE_ROWS * (size_t)s->dim * sizeof(float);
    float *inv_freq = inv_freq_new(s->dim),
          *frequencies = device_new(inv_freq, (size_t)s->dim * sizeof *inv_freq);
    float *table = device_new(NULL, bytes), *out = host_new(bytes);
    for (int first = 0; first < ROPE_ROWS; first += size) {
        struct rows rows = scene_rows(s, first, ROPE_ROWS - first < size ? ROPE_ROWS - first : size);
        float *part = table + (size_t)first * (size_t)s->dim;
        struct rope a = {.rows = &rows,
                         .qkv = s->device_qkv + (size_t)first * row_size(s),
                         .cos_sin = part,
                         .kv = scene_kv(s),
                         .heads = s->heads};
        cuda(rope_table_cuda(&rows, frequencies, s->dim, part, NULL), "rope_table_cuda");
        cuda(rope_cuda(&a, NULL), "rope_cuda");
    }
    download(out, table, bytes);
    cuda((int)cudaFree(frequencies), "cudaFree");
    cuda((int)cudaFree(table), "cudaFree");
    free(inv_freq);
    return out;
}

/* CUDA states 2 ulp for sincosf; an ulp is 2^-24 below 1. */
START_TEST(the_rope_table_holds_cosines_then_sines_of_far_positions)
{
    struct scene *s = rope_scene(_i);
    float *table = rotate(s, ROPE_ROWS), *inv_freq = inv_freq_new(s->dim);
    int half = s->dim / 2;
    for (int r = 0; r < ROPE_ROWS; r++)
        for (int j = 0; j < half; j++) {
            float angle = (float)s->pos[r] * inv_freq[j];
            double c = fabs(table[r * 2 * half + j] - cos(angle)),
                   d = fabs(table[r * 2 * half + half + j] - sin(angle));
            EXPECT_MSG(c <= 0x1p-23 && d <= 0x1p-23,
                       "position %d, frequency %d, angle %.9g: off by %.3g and %.3g", s->pos[r], j, angle, c,
                       d);
        }
    free(table);
    free(inv_freq);
    scene_free(s);
}
END_TEST

/* Against the reference with the device's table: |x| <= 2, two products and a sum, 3 roundings of at most 4;
 * keys then to bf16. */
START_TEST(rope_is_within_its_bound_and_fills_its_cells_alone)
{
    struct scene *s = rope_scene(_i);
    float *table = rotate(s, ROPE_ROWS), *qkv = host_new(MAX_ROWS * row_size(s) * sizeof(float));
    struct kv_layer ref_kv = reference_kv(s);
    struct rows rows = {.n = ROPE_ROWS, .slot = s->slot, .pos = s->pos, .cell = s->cell};
    struct rope ref = {.rows = &rows, .qkv = s->qkv, .cos_sin = table, .kv = ref_kv, .heads = s->heads};
    double slack = 3 * 4 * 0x1p-24;
    size_t written = 0;
    rope_ref(&ref);
    download(qkv, s->device_qkv, MAX_ROWS * row_size(s) * sizeof(float));
    download(s->k, s->device_k, cache_size(s) * sizeof(bf16));
    download(s->v, s->device_v, cache_size(s) * sizeof(bf16));
    for (int r = 0; r < ROPE_ROWS; r++) {
        const float *expected = s->qkv + (size_t)r * row_size(s), *key = expected + s->heads * s->dim,
                    *val = key + s->kv_heads * s->dim;
        for (int i = 0; i < s->heads * s->dim; i++)
            EXPECT_MSG(fabs((double)qkv[(size_t)r * row_size(s) + (size_t)i] - expected[i]) <= slack,
                       "row %d query element %d is %.9g, expected %.9g", r, i,
                       qkv[(size_t)r * row_size(s) + (size_t)i], expected[i]);
        for (int i = 0; i < s->kv_heads * s->dim; i++) {
            size_t place = at(s, s->slot[r], i / s->dim, s->cell[r]) + (size_t)(i % s->dim);
            float k = bf16_to_f32(s->k[place]);
            EXPECT_MSG(fabs((double)k - key[i]) <= slack + (fabs(key[i]) + slack) * 0x1p-8,
                       "row %d key element %d is %.9g, expected %.9g", r, i, k, key[i]);
            EXPECT_MSG(s->v[place] == bf16_from_f32(val[i]), "row %d value element %d is %04x, expected %04x",
                       r, i, s->v[place], bf16_from_f32(val[i]));
        }
    }
    for (size_t i = 0; i < cache_size(s); i++)
        written += (size_t)(s->k[i] != 0xffff) + (size_t)(s->v[i] != 0xffff);
    ck_assert_uint_eq(written, (size_t)(2 * ROPE_ROWS * s->kv_heads * s->dim));
    free(qkv);
    free(table);
    free(ref_kv.k);
    free(ref_kv.v);
    scene_free(s);
}
END_TEST

START_TEST(a_row_of_rope_is_the_same_in_every_batch)
{
    static const int sizes[] = {2, 9, ROPE_ROWS};
    struct scene *alone = rope_scene(_i);
    size_t qkv = ROPE_ROWS * row_size(alone) * sizeof(float), cache = cache_size(alone) * sizeof(bf16);
    char *got = host_new(qkv + cache), *expected = host_new(qkv + cache);
    free(rotate(alone, 1));
    download(expected, alone->device_qkv, qkv);
    download(expected + qkv, alone->device_k, cache);
    for (int i = 0; i < 3; i++) {
        struct scene *batch = rope_scene(_i);
        free(rotate(batch, sizes[i]));
        download(got, batch->device_qkv, qkv);
        download(got + qkv, batch->device_k, cache);
        for (size_t j = 0; j < qkv + cache; j++)
            EXPECT_MSG(got[j] == expected[j], "%d rows a launch: byte %zu of %s differs", sizes[i],
                       j < qkv ? j : j - qkv, j < qkv ? "qkv" : "the keys");
        scene_free(batch);
    }
    free(got);
    free(expected);
    scene_free(alone);
}
END_TEST

/* --- moving cells -----------------------------------------------------------------------------------------
 */

START_TEST(moved_cells_hold_what_their_sources_held)
{
    for (uint32_t seed = 0; seed < 6; seed++) {
        struct scene *s = scene_new(_i, 320);
        int src[64], n = seed == 5 ? 64 : 1 + (int)(hash(seed, 8, 0) % 64), dst = 30;
        size_t bytes = cache_size(s) * sizeof(bf16);
        bf16 *k = host_new(bytes), *v = host_new(bytes);
        for (int cell = 0; cell < s->cap; cell++)
            cell_set(s, 1, cell, cell);
        scene_upload(s);
        for (int i = 0, from = dst + (int)(hash(seed, 9, 0) % 3); i < n;
             i++, from += 1 + (int)(hash(seed, 10, (uint32_t)i) % 4))
            src[i] = from;
        for (int i = 0; i < n; i++)
            cell_set(s, 1, dst + i, src[i]);
        cuda(kv_move_cuda(&(struct kv_move){.kv = scene_kv(s), .slot = 1, .dst = dst, .n = n, .src = src},
                          NULL),
             "kv_move_cuda");
        download(k, s->device_k, bytes);
        download(v, s->device_v, bytes);
        for (size_t i = 0; i < cache_size(s); i++)
            EXPECT_MSG(k[i] == s->k[i] && v[i] == s->v[i],
                       "%d cells, element %zu (cell %zu): %04x %04x, expected %04x %04x", n, i,
                       i / (size_t)s->dim % (size_t)s->cap, k[i], v[i], s->k[i], s->v[i]);
        free(k);
        free(v);
        scene_free(s);
    }
}
END_TEST

START_TEST(more_than_64_moves_are_refused)
{
    int src[65] = {0};
    ck_assert_int_ne(kv_move_cuda(&(struct kv_move){.n = 65, .src = src}, NULL), 0);
    ck_assert_int_eq(kv_move_cuda(&(struct kv_move){.n = 0, .src = src}, NULL), 0);
}
END_TEST

int main(void)
{
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("test_cuda_attention: skipped, no CUDA device\n");
        return 77;
    }
    Suite *s = suite_create("cuda_attention");
    TCase *c = tcase_create("cuda_attention");
    tcase_add_test(c, equal_keys_average_the_values_of_every_context_exactly);
    tcase_add_test(c, long_contexts_average_exactly_at_every_chunk_boundary);
    tcase_add_test(c, an_overwhelming_key_takes_all_at_every_position);
    tcase_add_loop_test(c, a_node_sees_exactly_its_sequence_bit_for_bit, 0, N_SHAPES);
    tcase_add_loop_test(c, a_row_of_a_prompt_is_the_same_in_every_batch, 0, N_SHAPES);
    tcase_add_test(c, a_nan_reaches_only_the_rows_that_see_it);
    tcase_add_loop_test(c, it_is_within_its_bound_of_the_reference, 0, N_SHAPES);
    tcase_add_test(c, it_is_within_its_bound_at_every_block_boundary);
    tcase_add_loop_test(c, the_rope_table_holds_cosines_then_sines_of_far_positions, 0, N_SHAPES);
    tcase_add_loop_test(c, rope_is_within_its_bound_and_fills_its_cells_alone, 0, N_SHAPES);
    tcase_add_loop_test(c, a_row_of_rope_is_the_same_in_every_batch, 0, N_SHAPES);
    tcase_add_loop_test(c, moved_cells_hold_what_their_sources_held, 0, N_SHAPES);
    tcase_add_test(c, more_than_64_moves_are_refused);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, CK_NORMAL);
    int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
