/* cuda_scene: caches and rows for tests of attention, rope and moving cells, on the host and on the device.
 * Cells that no row may see hold NaN, so that a look at one shows. */
#ifndef TESTS_CUDA_SCENE_H
#define TESTS_CUDA_SCENE_H
#include "kernels/act.h"
#include "kernels/cuda.h"
#include "kernels/fp8.h"
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
enum {
    N_SHAPES = sizeof shapes / sizeof *shapes,
    N_CASES = 2 * N_SHAPES
}; /* a case: a shape, its cells wide or FP8 */

struct scene {
    int heads, kv_heads, dim, cap, n;
    int chunk; /* of struct attention */
    enum kv_form form;
    int token[MAX_ROWS], slot[MAX_ROWS], pos[MAX_ROWS], cell[MAX_ROWS], base[MAX_ROWS], path_off[MAX_ROWS];
    int parent[MAX_ROWS], path[MAX_ROWS * MAX_ROWS];
    float *qkv;
    void *cells[2];   /* keys, values */
    struct rows rows; /* on the device, from here on */
    int *ints;
    float *device_qkv, *scratch;
    void *device_cells[2];
    uint16_t *y;
};

static inline void cuda(int rc, const char *what)
{
    if (rc != 0)
        ck_abort_msg("%s: CUDA error %d, %s", what, rc, cudaGetErrorString((enum cudaError)rc));
}

static inline void *host_new(size_t bytes)
{
    void *p = calloc(1, bytes);
    ck_assert_ptr_nonnull(p);
    return p;
}

static inline void *device_new(const void *from, size_t bytes)
{
    void *p = NULL;
    cuda((int)cudaMalloc(&p, bytes), "cudaMalloc");
    cuda((int)(from ? cudaMemcpy(p, from, bytes, cudaMemcpyHostToDevice) : cudaMemset(p, 0xff, bytes)),
         "upload");
    return p;
}

static inline void upload(void *to, const void *from, size_t bytes)
{
    cuda((int)cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "upload");
}

static inline void download(void *to, const void *from, size_t bytes)
{
    cuda((int)cudaDeviceSynchronize(), "running the kernels");
    cuda((int)cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "download");
}

static inline uint32_t hash(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t h = a * 0x9e3779b1u ^ (b + 0x7f4a7c15u) * 0x85ebca77u ^ (c + 0x165667b1u) * 0xc2b2ae3du;
    h = (h ^ h >> 15) * 0x2c1b3c6du;
    h = (h ^ h >> 12) * 0x297a2d39u;
    return h ^ h >> 15;
}

static inline float value(uint32_t stream, uint32_t a, uint32_t b) /* in [-2, 2) */
{
    return (float)(hash(stream, a, b) >> 8) * 0x1p-22f - 2;
}

static inline size_t row_size(const struct scene *s) /* of qkv */
{
    return (size_t)(s->heads + 2 * s->kv_heads) * (size_t)s->dim;
}

static inline size_t cache_size(const struct scene *s) /* numbers */
{
    return (size_t)SLOTS * (size_t)s->kv_heads * (size_t)s->cap * (size_t)s->dim;
}

static inline size_t cell_bytes(const struct scene *s)
{
    return (size_t)s->dim * (s->form == KV_FP8 ? 1 : sizeof(bf16));
}

static inline size_t cache_bytes(const struct scene *s)
{
    return cache_size(s) / (size_t)s->dim * cell_bytes(s);
}

static inline size_t at(const struct scene *s, int slot, int head, int cell)
{
    return (((size_t)slot * (size_t)s->kv_heads + (size_t)head) * (size_t)s->cap + (size_t)cell) *
           (size_t)s->dim;
}

/* Which: 0 keys, 1 values. */
static inline float cache_get(const struct scene *s, int which, size_t i)
{
    return s->form == KV_FP8 ? fp8_to_f32(((const uint8_t *)s->cells[which])[i])
                             : bf16_to_f32(((const bf16 *)s->cells[which])[i]);
}

static inline void cache_put(struct scene *s, int which, size_t i, float x)
{
    if (s->form == KV_FP8)
        ((uint8_t *)s->cells[which])[i] = fp8_from_f32(x);
    else
        ((bf16 *)s->cells[which])[i] = bf16_from_f32(x);
}

static inline struct scene *scene_new(int of, int cap)
{
    struct scene *s = host_new(sizeof *s);
    s->heads = shapes[of % N_SHAPES].heads;
    s->kv_heads = shapes[of % N_SHAPES].kv_heads;
    s->dim = shapes[of % N_SHAPES].dim;
    s->form = of < N_SHAPES ? KV_WIDE : KV_FP8;
    s->cap = cap;
    s->qkv = host_new(MAX_ROWS * row_size(s) * sizeof(float));
    for (int i = 0; i < 2; i++) {
        s->cells[i] = host_new(cache_bytes(s));
        memset(s->cells[i], 0xff, cache_bytes(s)); /* NaN in either form */
    }
    for (size_t i = 0; i < MAX_ROWS * row_size(s); i++)
        s->qkv[i] = value(3, 0, (uint32_t)i);
    return s;
}

static inline void cell_set(struct scene *s, int slot, int cell, int token)
{
    for (int h = 0; h < s->kv_heads; h++)
        for (int d = 0; d < s->dim; d++)
            for (int which = 0; which < 2; which++)
                cache_put(s, which, at(s, slot, h, cell) + (size_t)d,
                          value(1 + (uint32_t)which, (uint32_t)token, (uint32_t)(h * 1000 + d)));
}

/* One more row of plain text: cells are positions. */
static inline void row_add(struct scene *s, int slot, int pos)
{
    int i = s->n++;
    s->slot[i] = slot;
    s->pos[i] = s->cell[i] = pos;
    s->base[i] = pos + 1;
}

static inline void rows_upload(struct scene *s)
{
    const int *const arrays[] = {s->token, s->slot, s->pos, s->cell, s->base, s->path_off, s->path};
    for (int i = 0; i < 7; i++)
        upload(s->ints + i * MAX_ROWS, arrays[i],
               (size_t)(i < 6 ? MAX_ROWS : MAX_ROWS * MAX_ROWS) * sizeof(int));
}

static inline void scene_upload(struct scene *s)
{
    s->ints = device_new(NULL, (6 * MAX_ROWS + MAX_ROWS * MAX_ROWS) * sizeof(int));
    s->rows = (struct rows){.token = s->ints,
                            .slot = s->ints + MAX_ROWS,
                            .pos = s->ints + 2 * MAX_ROWS,
                            .cell = s->ints + 3 * MAX_ROWS,
                            .base = s->ints + 4 * MAX_ROWS,
                            .path_off = s->ints + 5 * MAX_ROWS,
                            .path = s->ints + 6 * MAX_ROWS};
    rows_upload(s);
    s->device_qkv = device_new(s->qkv, MAX_ROWS * row_size(s) * sizeof(float));
    for (int i = 0; i < 2; i++)
        s->device_cells[i] = device_new(s->cells[i], cache_bytes(s));
    s->y = device_new(NULL, MAX_ROWS * (size_t)s->heads * (size_t)s->dim * sizeof *s->y);
    s->scratch = device_new(NULL, attention_cuda_scratch(MAX_ROWS, s->heads, s->dim, s->cap) * sizeof(float));
}

static inline void scene_free(struct scene *s)
{
    void *device[] = {s->ints, s->device_qkv, s->device_cells[0], s->device_cells[1], s->y, s->scratch};
    for (int i = 0; i < 6; i++)
        cuda((int)cudaFree(device[i]), "cudaFree");
    free(s->qkv);
    free(s->cells[0]);
    free(s->cells[1]);
    free(s);
}

static inline struct kv_layer scene_kv(const struct scene *s)
{
    return (struct kv_layer){
        s->device_cells[0], s->device_cells[1], SLOTS, s->kv_heads, s->dim, s->cap, s->form};
}

static inline struct rows scene_rows(const struct scene *s, int first, int n)
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

/* The same cache as the reference reads it: f32, numbers as the cells hold them. */
static inline struct kv_layer reference_kv(const struct scene *s)
{
    struct kv_layer kv = {host_new(cache_size(s) * sizeof(float)),
                          host_new(cache_size(s) * sizeof(float)),
                          SLOTS,
                          s->kv_heads,
                          s->dim,
                          s->cap,
                          s->form};
    for (int slot = 0; slot < SLOTS; slot++)
        for (int h = 0; h < s->kv_heads; h++)
            for (int cell = 0; cell < s->cap; cell++)
                for (int d = 0; d < s->dim; d++) {
                    kv_key(&kv, slot, h, cell)[d * KV_BLOCK] =
                        cache_get(s, 0, at(s, slot, h, cell) + (size_t)d);
                    kv_value(&kv, slot, h, cell)[d] = cache_get(s, 1, at(s, slot, h, cell) + (size_t)d);
                }
    return kv;
}
#endif
