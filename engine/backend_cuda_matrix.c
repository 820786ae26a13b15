/* backend_cuda_matrix: weights reach the device as they are stored and are packed there. A matrix is cut into
 * pieces of whole tiles that fit a buffer of the ring: threads of the host gather a piece's rows from the
 * mapped file into pinned memory while the pieces before it are on their way or being packed. Random weights
 * are made on the device, with no bytes from the host at all. Transposed parts go as they lie in the file, so
 * that threads of the host only ever copy runs of neighbours. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/gemm_part.h"
#include "kernels/pack.h"
#include <stdlib.h>

enum { TILE = 16 };

/* What is uploaded: the parts' own dtype; BF16, converted by the host, where they differ. */
static enum dtype stored_dtype(const struct matrix_source *from)
{
    for (int i = 1; i < from->n_parts; i++)
        if (from->parts[i].dtype != from->parts[0].dtype)
            return DTYPE_BF16;
    return from->parts[0].dtype;
}

static const char *numbers_of(const struct matrix_part *p)
{
    return p->dtype == DTYPE_FP8 ? ((const struct scaled *)p->data)->numbers : p->data;
}

/* Elements of an uploaded row. */
static int line_of(const struct pack *a)
{
    return a->before + a->from->k + a->after;
}

static void copy_row(const struct pack *a, int output, char *to)
{
    int part = 0, row = output;
    for (; row >= a->from->parts[part].n; part++)
        row -= a->from->parts[part].n;
    const struct matrix_part *p = &a->from->parts[part];
    const struct matrix_view v = gemm_part_view(a->from, part);
    const size_t first = v.first + (size_t)row * v.row_step - (size_t)a->before, size = dtype_size(a->dtype);
    if (p->dtype == a->dtype)
        memcpy(to, numbers_of(p) + first * size, (size_t)line_of(a) * size);
    else
        gemm_part_row(p, &v, row, -a->before, line_of(a), (bf16 *)(void *)to);
}

/* The rows of tiles [a->tile, a->tile + a->tiles), as struct pack wants them. */
static void gather(const struct pack *a, int n, int threads, char *to)
{
    const size_t row_bytes = (size_t)line_of(a) * dtype_size(a->dtype);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int i = 0; i < a->tiles * TILE; i++) {
        const int output = matrix_cuda_output(a->from, n, a->tile + i / TILE, i % TILE);
        if (output < n)
            copy_row(a, output, to + (size_t)i * row_bytes);
    }
}

/* Outputs that lie together in a transposed part and in the piece: rows [row, row + n) of the part. */
struct run {
    int part, row, n, at;
};

static int runs_of(const struct pack *a, struct run runs[PACK_PARTS])
{
    const struct matrix_part *parts = a->from->parts;
    const int pair = a->from->flags == MATRIX_INTERLEAVE, per = pair ? TILE / 2 : TILE;
    int n = 0, begin = 0;
    for (int i = 0; i < a->from->n_parts; i++) {
        const int first = a->tile * per - (pair ? 0 : begin), row = first < 0 ? 0 : first;
        const int last = first + a->tiles * per, end = last < parts[i].n ? last : parts[i].n;
        if (row < end)
            runs[n++] = (struct run){i, row, end - row, (pair ? i * a->tiles * per : 0) + row - first};
        begin += parts[i].n;
    }
    return n;
}

static void gather_transposed(const struct pack *a, int threads, char *to)
{
    struct run runs[PACK_PARTS];
    const int n = runs_of(a, runs), lines = line_of(a);
    const size_t size = dtype_size(a->dtype);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int i = 0; i < lines; i++)
        for (int j = 0; j < n; j++) {
            const struct run *r = &runs[j];
            const struct matrix_view v = gemm_part_view(a->from, r->part);
            const size_t first = v.first + (size_t)r->row + (size_t)i * v.col_step;
            memcpy(to + ((size_t)i * a->col_step + (size_t)r->at) * size,
                   numbers_of(&a->from->parts[r->part]) + (first - (size_t)a->before * v.col_step) * size,
                   (size_t)r->n * size);
        }
}

static int launched(struct backend *be, int rc, const struct pack *a, int n)
{
    cuda_of(be)->last = (struct cuda_launch){"pack", a->tiles * TILE, n, a->from->k};
    return cuda_check(be, (cudaError_t)rc, "packing weights");
}

static int transposed(const struct matrix_source *from)
{
    return from->views && from->views[0].col_step != 1;
}

/* Scales that came with the numbers. */
static int upload_scales(struct backend *be, const struct pack *a)
{
    float *to = a->scale;
    for (int i = 0; a->dtype == DTYPE_FP8 && i < a->from->n_parts; i++) {
        const struct scaled *s = a->from->parts[i].data;
        const size_t n = (size_t)a->from->parts[i].n;
        TRY(cuda_upload(be, to, s->scale, n * sizeof *to));
        to += n;
    }
    return 0;
}

static int pack_stored(struct backend *be, struct pack *a, int n, int tiles)
{
    const struct cuda *c = cuda_of(be);
    const int apart = transposed(a->from);
    if (a->from->views && a->from->form == MATRIX_FP8 && a->dtype != DTYPE_FP8) {
        a->before = a->from->views[0].before;
        a->after = a->from->views[0].after;
    }
    const size_t tile_bytes = (size_t)TILE * (size_t)line_of(a) * dtype_size(a->dtype);
    const int most = (int)(CUDA_RING_BYTES / tile_bytes);
    if (most == 0)
        FAIL(ERR_LIMIT, "a matrix [%d, %d] cannot be packed on %s: expected at most %zu inputs", n,
             a->from->k, be->device, CUDA_RING_BYTES / TILE / dtype_size(a->dtype));
    TRY(upload_scales(be, a));
    a->rows = c->staging;
    for (a->tile = 0; a->tile < tiles; a->tile += most) {
        void *buffer = NULL;
        a->tiles = tiles - a->tile < most ? tiles - a->tile : most;
        a->row_step = apart ? 1 : (size_t)line_of(a);
        a->col_step = apart ? (size_t)a->tiles * TILE : 1;
        TRY(cuda_ring_take(be, &buffer));
        if (apart)
            gather_transposed(a, be->threads, buffer);
        else
            gather(a, n, be->threads, buffer);
        TRY(cuda_ring_send(be, c->staging, (size_t)a->tiles * tile_bytes));
        TRY(launched(be, pack_cuda(a, c->stream), a, n));
    }
    return 0;
}

/* Sources that the device does not unravel: numbers rounded before beside others. */
static int for_the_host(const struct matrix_source *from)
{
    int fp8 = 0, apart = 0;
    for (int i = 0; i < from->n_parts; i++) {
        fp8 += from->parts[i].dtype == DTYPE_FP8;
        apart += from->views && from->views[i].col_step != 1;
    }
    if (apart && (apart < from->n_parts || from->n_parts > PACK_PARTS || from->flags == MATRIX_ROTARY))
        return 1;
    for (int i = 1; i < from->n_parts; i++)
        if ((fp8 || apart) && from->parts[i].dtype != from->parts[0].dtype)
            return 1;
    return 0;
}

static int pack_on_host(struct backend *be, const struct pack *a, int n, size_t bytes)
{
    const size_t scales = (size_t)n * sizeof(float);
    char *packed = malloc(bytes + scales);
    if (!packed)
        FAIL(ERR_MEMORY, "a matrix [%d, %d]: out of memory for its %zu bytes on the host", n, a->from->k,
             bytes + scales);
    matrix_pack_cuda(packed, (float *)(void *)(packed + bytes), a->from);
    int rc = cuda_upload(be, a->to, packed, bytes);
    if (rc == 0 && a->scale)
        rc = cuda_upload(be, a->scale, packed + bytes, scales);
    free(packed);
    return rc;
}

static int pack_synthetic(struct backend *be, struct pack *a, int n, int tiles)
{
    if (a->from->n_parts > PACK_PARTS)
        FAIL(ERR_LIMIT, "a random matrix of %d parts cannot be made on %s: expected at most %d",
             a->from->n_parts, be->device, PACK_PARTS);
    a->tiles = tiles;
    return launched(be, pack_cuda(a, cuda_of(be)->stream), a, n);
}

static int fill(struct backend *be, struct pack *a, int n, size_t bytes)
{
    const int tiles = (n + TILE - 1) / TILE;
    if (a->dtype == DTYPE_SYNTHETIC)
        return pack_synthetic(be, a, n, tiles);
    return for_the_host(a->from) ? pack_on_host(be, a, n, bytes) : pack_stored(be, a, n, tiles);
}

int cuda_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from)
{
    const int n = matrix_source_n(from);
    const size_t bytes = matrix_cuda_bytes(n, from->k, from->form),
                 scales = from->form == MATRIX_FP8 ? (size_t)n * sizeof(float) : 0;
    struct pack a = {.from = from, .dtype = stored_dtype(from)};
    void *data = NULL, *scale = NULL;
    int rc = cuda_alloc(be, bytes, &data);
    if (rc == 0 && scales)
        rc = cuda_alloc(be, scales, &scale);
    a.to = data;
    a.scale = scale;
    if (rc == 0)
        rc = fill(be, &a, n, bytes);
    if (rc) {
        cuda_release(be, scale);
        cuda_release(be, data);
        return rc;
    }
    *w = (struct matrix){.n = n,
                         .k = from->k,
                         .form = from->form,
                         .data = data,
                         .scale = scale,
                         .bytes = bytes + scales,
                         .flags = from->flags,
                         .head_dim = from->head_dim};
    return 0;
}
