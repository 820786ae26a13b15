/* backend_cuda_matrix: weights reach the device as they are stored and are packed there. A matrix is cut into
 * pieces of whole tiles that fit a buffer of the ring: threads of the host gather a piece's rows from the
 * mapped file into pinned memory while the pieces before it are on their way or being packed. Random weights
 * are made on the device, with no bytes from the host at all. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/gemm_part.h"
#include "kernels/pack.h"

enum { TILE = 16 };

/* What is uploaded: the parts' own dtype; BF16, converted by the host, where they differ. */
static enum dtype stored_dtype(const struct matrix_source *from)
{
    for (int i = 1; i < from->n_parts; i++)
        if (from->parts[i].dtype != from->parts[0].dtype)
            return DTYPE_BF16;
    return from->parts[0].dtype;
}

static void copy_row(const struct matrix_source *from, int output, enum dtype dtype, char *to)
{
    const struct matrix_part *p = from->parts;
    int row = output;
    for (; row >= p->n; p++)
        row -= p->n;
    const size_t first = (size_t)row * (size_t)from->k, size = dtype_size(dtype);
    if (p->dtype == dtype)
        memcpy(to, (const char *)p->data + first * size, (size_t)from->k * size);
    else
        gemm_part_read(p, first, from->k, (bf16 *)(void *)to);
}

/* The rows of tiles [a->tile, a->tile + a->tiles), as struct pack wants them. */
static void gather(const struct pack *a, int n, int threads, char *to)
{
    const size_t row_bytes = (size_t)a->from->k * dtype_size(a->dtype);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int i = 0; i < a->tiles * TILE; i++) {
        const int output = matrix_cuda_output(a->from, n, a->tile + i / TILE, i % TILE);
        if (output < n)
            copy_row(a->from, output, a->dtype, to + (size_t)i * row_bytes);
    }
}

static int launched(struct backend *be, int rc, const struct pack *a, int n)
{
    cuda_of(be)->last = (struct cuda_launch){"pack", a->tiles * TILE, n, a->from->k};
    return cuda_check(be, (cudaError_t)rc, "packing weights");
}

static int pack_stored(struct backend *be, struct pack *a, int n, int tiles)
{
    const struct cuda *c = cuda_of(be);
    const size_t tile_bytes = (size_t)TILE * (size_t)a->from->k * dtype_size(a->dtype);
    const int most = (int)(CUDA_RING_BYTES / tile_bytes);
    if (most == 0)
        FAIL(ERR_LIMIT, "a matrix [%d, %d] cannot be packed on %s: expected at most %zu inputs", n,
             a->from->k, be->device, CUDA_RING_BYTES / TILE / dtype_size(a->dtype));
    a->rows = c->staging;
    for (a->tile = 0; a->tile < tiles; a->tile += most) {
        void *buffer = NULL;
        a->tiles = tiles - a->tile < most ? tiles - a->tile : most;
        TRY(cuda_ring_take(be, &buffer));
        gather(a, n, be->threads, buffer);
        TRY(cuda_ring_send(be, c->staging, (size_t)a->tiles * tile_bytes));
        TRY(launched(be, pack_cuda(a, c->stream), a, n));
    }
    return 0;
}

static int pack_synthetic(struct backend *be, struct pack *a, int n, int tiles)
{
    if (a->from->n_parts > PACK_PARTS)
        FAIL(ERR_LIMIT, "a random matrix of %d parts cannot be made on %s: expected at most %d",
             a->from->n_parts, be->device, PACK_PARTS);
    a->tiles = tiles;
    return launched(be, pack_cuda(a, cuda_of(be)->stream), a, n);
}

static int check_parts(const struct backend *be, const struct matrix_source *from)
{
    for (int i = 0; i < from->n_parts; i++)
        if (from->parts[i].dtype == DTYPE_FP8)
            FAIL(ERR_LIMIT,
                 "a matrix of stored FP8 numbers cannot be packed on %s; the cpu backend packs them",
                 be->device);
    return 0;
}

int cuda_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from)
{
    TRY(check_parts(be, from));
    const int n = matrix_source_n(from), tiles = (n + TILE - 1) / TILE;
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
        rc = a.dtype == DTYPE_SYNTHETIC ? pack_synthetic(be, &a, n, tiles) : pack_stored(be, &a, n, tiles);
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
