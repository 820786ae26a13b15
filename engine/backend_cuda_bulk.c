/* backend_cuda_bulk: the operations of a long prefill pass (kernels/types.h, "Bulk"). A product unpacks its
 * weights to rows, then is cuBLASLt's; that costs a read and a write of each weight a pass, which thousands
 * of rows make small: hence prefill_rows. What a product is lent holds, one after the other, cuBLASLt's
 * workspace, the unpacked matrix, and the [rows, n] between a swiglu's product and its end. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/bulk.h"
#include "kernels/cuda.h"
#include "kernels/gemm_lt.h"

enum { ALIGN = 256 };

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t unpacked_bytes(int n, int k)
{
    return aligned((size_t)n * (size_t)k * sizeof(bf16));
}

size_t cuda_bulk_gemm_bytes(int rows, int n, int k)
{
    if (rows <= BULK_ROWS)
        return aligned((size_t)rows * sizeof(float));
    return GEMM_LT_WORKSPACE + unpacked_bytes(n, k) + (size_t)rows * (size_t)n * sizeof(bf16);
}

static void *unpacked_of(const struct gemm *a)
{
    return (char *)a->scratch + GEMM_LT_WORKSPACE;
}

static void *middle_of(const struct gemm *a)
{
    return (char *)unpacked_of(a) + unpacked_bytes(a->w->n, a->w->k);
}

/* cuBLASLt is loaded by the first product that needs it. */
int cuda_open_lt(struct cuda *c)
{
    char why[GEMM_LT_WHY] = "";
    if (c->lt || gemm_lt_open(&c->lt, why) == 0)
        return 0;
    FAIL(ERR_DEVICE, "cuda: %s", why);
}

void cuda_bulk_close(struct cuda *c)
{
    gemm_lt_close(c->lt);
    c->lt = NULL;
}

static int product(struct backend *be, const struct gemm *a, void *y, enum gemm_lt_type type)
{
    struct cuda *c = cuda_of(be);
    const struct unpack unpack = {.w = a->w, .to = unpacked_of(a)};
    const struct gemm_lt_product p = {.w = unpack.to,
                                      .x = a->x,
                                      .y = y,
                                      .n = a->w->n,
                                      .k = a->w->k,
                                      .rows = a->rows,
                                      .in = GEMM_LT_BF16,
                                      .out = type,
                                      .accumulate = a->accumulate,
                                      .workspace = a->scratch};
    char why[GEMM_LT_WHY] = "";
    TRY(cuda_open_lt(c));
    TRY(cuda_launched(be, unpack_cuda(&unpack, c->stream),
                      (struct cuda_launch){"unpacking for a product", a->rows, p.n, p.k}));
    if (gemm_lt_run(c->lt, &p, c->stream, why))
        FAIL(ERR_DEVICE, "cuda: %s", why);
    return cuda_launched(be, cudaSuccess, (struct cuda_launch){"a product in bulk", a->rows, p.n, p.k});
}

int cuda_bulk_gemm(struct backend *be, const struct gemm *a)
{
    return product(be, a, a->y, GEMM_LT_F32);
}

int cuda_bulk_swiglu(struct backend *be, const struct gemm *a)
{
    const struct swiglu_bulk end = {.gate_up = middle_of(a), .y = a->y, .rows = a->rows, .m = a->w->n / 2};
    TRY(product(be, a, middle_of(a), GEMM_LT_BF16));
    return cuda_launched(be, swiglu_bulk_cuda(&end, cuda_of(be)->stream),
                         (struct cuda_launch){"swiglu in bulk", a->rows, end.m, end.m});
}

int cuda_bulk_rmsnorm(struct backend *be, const struct rmsnorm *a)
{
    return cuda_launched(be, rmsnorm_bulk_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"rmsnorm in bulk", a->rows, a->dim, a->dim});
}

int cuda_bulk_residual(struct backend *be, const struct residual *a)
{
    TRY(cuda_bulk_gemm(be, &a->product));
    return cuda_bulk_rmsnorm(be, &a->norm);
}

int cuda_bulk_qkv(struct backend *be, const struct qkv *a)
{
    TRY(cuda_bulk_gemm(be, &a->product));
    return cuda_launched(be, rope_cuda(&a->rope, cuda_of(be)->stream),
                         (struct cuda_launch){"rope", a->rope.rows->n, a->rope.heads, a->rope.kv.head_dim});
}

int cuda_bulk_quantise(struct backend *be, const struct quantise *a)
{
    return cuda_launched(be, quantise_bulk_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"quantise in bulk", a->rows, a->k, a->k});
}

int cuda_bulk_attention(struct backend *be, const struct attention *a)
{
    return cuda_launched(be, attention_bulk_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"attention in bulk", a->rows->n, a->heads, a->kv.head_dim});
}
