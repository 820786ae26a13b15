/* backend_cuda: one GPU, one stream. Launches return at once and are remembered by name and shape, so that an
 * error which only sync sees still says what ran. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/act.h"
#include "kernels/cuda.h"
#include <stdlib.h>

enum { MOVE_MAX = 64, PREFILL_ROWS = 8192, AHEAD = 2 };

static int cuda_open(struct backend *be, const struct backend_opts *opts)
{
    TRY(backend_threads(opts, &be->threads));
    TRY(cuda_open_device(be, opts->device));
    struct cuda *c = be->self = calloc(1, sizeof *c);
    if (!c)
        FAIL(ERR_MEMORY, "cuda backend: out of memory");
    c->eager = opts->eager;
    be->prefill_rows = PREFILL_ROWS;
    be->transposes = 1;
    be->ahead = AHEAD;
    TRY(cuda_check(be, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream"));
    return cuda_open_ring(be);
}

/* Errors are of no use here: whoever waited for a result has seen them. */
static void cuda_close(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    if (!c)
        return;
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    for (int i = 0; i < c->n_graphs; i++)
        cudaGraphExecDestroy(c->graphs[i].exec);
    cuda_bulk_close(c);
    cuda_close_marks(c);
    cuda_close_nvml(c);
    cuda_close_memory(c);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    cudaGetLastError();
    free(c);
    be->self = NULL;
}

static size_t cuda_act_bytes(const struct backend *be, int rows, int k)
{
    (void)be;
    return ((size_t)rows + ACT_ROWS - 1) / ACT_ROWS * act_tile(k) * sizeof(bf16);
}

static size_t cuda_gemm_bytes(const struct backend *be, int rows, int n, int k)
{
    (void)be;
    return cuda_bulk_gemm_bytes(rows, n, k);
}

static size_t cuda_kv_bytes(const struct backend *be, enum kv_form form)
{
    (void)be;
    return form == KV_FP8 ? 1 : sizeof(bf16);
}

static size_t cuda_attention_bytes(const struct backend *be, int rows, int heads, int kv_heads, int head_dim,
                                   int cap)
{
    (void)be;
    (void)kv_heads;
    return attention_cuda_scratch(rows, heads, head_dim, cap) * sizeof(float);
}

/* Every operation ends here: what it was is remembered, and said when the launch was refused. */
int cuda_launched(struct backend *be, int rc, struct cuda_launch what)
{
    cuda_of(be)->last = what;
    be->launches++;
    if (rc == cudaSuccess)
        return 0;
    cudaGetLastError();
    FAIL(ERR_DEVICE, "cuda: %s of %d rows [%d, %d] could not be launched on %s: %s (%s)%s", what.name,
         what.rows, what.n, what.k, be->device, cudaGetErrorString((cudaError_t)rc),
         cudaGetErrorName((cudaError_t)rc),
         rc == cudaErrorNoKernelImageForDevice ? "; build with CMAKE_CUDA_ARCHITECTURES that include this GPU"
                                               : "");
}

static int cuda_embed(struct backend *be, const struct embed *a)
{
    return cuda_launched(be, embed_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"embed", a->rows, a->w->n, a->w->k});
}

static int cuda_rmsnorm(struct backend *be, const struct rmsnorm *a)
{
    if (a->bulk)
        return cuda_bulk_rmsnorm(be, a);
    return cuda_launched(be, rmsnorm_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"rmsnorm", a->rows, a->dim, a->dim});
}

static int cuda_gemm(struct backend *be, const struct gemm *a)
{
    if (a->bulk)
        return cuda_bulk_gemm(be, a);
    return cuda_launched(be, gemm_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"gemm", a->rows, a->w->n, a->w->k});
}

static int cuda_swiglu(struct backend *be, const struct gemm *a)
{
    if (a->bulk)
        return cuda_bulk_swiglu(be, a);
    return cuda_launched(be, swiglu_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"swiglu", a->rows, a->w->n, a->w->k});
}

static int cuda_rope_table(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim,
                           float *cos_sin)
{
    return cuda_launched(be, rope_table_cuda(rows, inv_freq, head_dim, cos_sin, cuda_of(be)->stream),
                         (struct cuda_launch){"rope_table", rows->n, head_dim, head_dim});
}

static int cuda_residual(struct backend *be, const struct residual *a)
{
    if (a->product.bulk)
        return cuda_bulk_residual(be, a);
    const struct matrix *w = a->product.w;
    return cuda_launched(be, residual_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"residual", a->product.rows, w->n, w->k});
}

/* What only Llama 4 asks for. */
static int refuse(const struct backend *be, const char *what)
{
    FAIL(ERR_LIMIT, "cuda: %s cannot be computed on %s yet: device cpu computes Llama 4", what, be->device);
}

static int cuda_rope_temperature(struct backend *be, const struct temperature *a)
{
    return cuda_launched(be, rope_temperature_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"rope_temperature", a->rows->n, 1, 1});
}

static int cuda_qkv(struct backend *be, const struct qkv *a)
{
    if (a->product.bulk)
        return cuda_bulk_qkv(be, a);
    const struct matrix *w = a->product.w;
    return cuda_launched(be, qkv_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"qkv", a->product.rows, w->n, w->k});
}

static int cuda_quantise(struct backend *be, const struct quantise *a)
{
    if (a->bulk)
        return cuda_bulk_quantise(be, a);
    return cuda_launched(be, quantise_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"quantise", a->rows, a->k, a->k});
}

static int cuda_attention(struct backend *be, const struct attention *a)
{
    if (a->chunk > 0 && a->reach > a->chunk)
        return refuse(be, "attention past a chunk");
    if (a->bulk)
        return cuda_bulk_attention(be, a);
    return cuda_launched(be, attention_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"attention", a->rows->n, a->heads, a->kv.head_dim});
}

/* Later cells never are sources of earlier ones, so a long path is moved piece by piece. */
static int cuda_kv_move(struct backend *be, const struct kv_move *a)
{
    for (int at = 0; at < a->n; at += MOVE_MAX) {
        struct kv_move part = *a;
        part.src += at;
        part.dst += at;
        part.n = a->n - at < MOVE_MAX ? a->n - at : MOVE_MAX;
        TRY(cuda_launched(be, kv_move_cuda(&part, cuda_of(be)->stream),
                          (struct cuda_launch){"kv_move", part.n, a->kv.kv_heads, a->kv.head_dim}));
    }
    return 0;
}

static int cuda_logits(struct backend *be, const struct logits *a)
{
    return cuda_launched(be, logits_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"logits", a->rows, a->vocab, a->vocab});
}

static int cuda_ngram(struct backend *be, const struct ngram *a)
{
    return cuda_launched(be, ngram_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"ngram", a->trees->slots, a->min, a->max});
}

static int cuda_step_plan(struct backend *be, const struct step *s, int rows)
{
    return cuda_launched(be, step_plan_cuda(s, rows, cuda_of(be)->stream),
                         (struct cuda_launch){"step_plan", rows, s->trees.slots, s->trees.max_nodes});
}

static int cuda_step_commit(struct backend *be, const struct step_commit *a)
{
    const struct trees *t = &a->step->trees;
    return cuda_launched(be, step_commit_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"step_commit", t->slots, t->max_nodes, a->n_layers});
}

static int cuda_stamp(struct backend *be, int64_t *at)
{
    return cuda_launched(be, step_stamp_cuda(at, cuda_of(be)->stream),
                         (struct cuda_launch){"stamp", 1, 1, 1});
}

static size_t cuda_accept_bytes(const struct backend *be, int slots, int max_nodes, int vocab)
{
    (void)be;
    (void)vocab;
    return accept_cuda_bytes(slots, max_nodes);
}

static int cuda_accept(struct backend *be, const struct accept *a)
{
    return cuda_launched(be, accept_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"accept", a->trees->slots, a->trees->max_nodes, a->vocab});
}

static int cuda_node_stats(struct backend *be, const struct node_stats *a)
{
    return cuda_launched(be, node_stats_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"node_stats", a->trees->slots, a->trees->max_nodes, a->vocab});
}

static int cuda_read(struct backend *be, const void *data, size_t bytes, uint64_t *sum)
{
    _Static_assert(sizeof(unsigned long long) == sizeof *sum, "the checksum has 64 bits");
    return cuda_launched(be, read_cuda(data, bytes, (unsigned long long *)(void *)sum, cuda_of(be)->stream),
                         (struct cuda_launch){"read", (int)(bytes >> 20), 1 << 20, 1});
}

static int device_error(struct backend *be, cudaError_t rc)
{
    const struct cuda *c = cuda_of(be);
    FAIL(ERR_DEVICE,
         "cuda: an operation failed on %s: %s (%s); the last one launched was %s of %d rows [%d, %d]. The "
         "GPU is lost to this "
         "process; compute-sanitizer finds the operation",
         be->device, cudaGetErrorString(rc), cudaGetErrorName(rc), c->last.name ? c->last.name : "none",
         c->last.rows, c->last.n, c->last.k);
}

static int cuda_sync(struct backend *be)
{
    be->syncs++;
    const cudaError_t rc = cudaStreamSynchronize(cuda_of(be)->stream);
    return rc == cudaSuccess ? 0 : device_error(be, rc);
}

static int cuda_poll(struct backend *be, int *idle)
{
    const cudaError_t rc = cudaStreamQuery(cuda_of(be)->stream);
    if (rc != cudaSuccess && rc != cudaErrorNotReady)
        return device_error(be, rc);
    cudaGetLastError(); /* "not ready" is remembered as if it were one */
    *idle = rc == cudaSuccess;
    return 0;
}

const struct backend_ops backend_cuda = {
    .name = "cuda",
    .describe = cuda_describe,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .alloc_host = cuda_alloc_host,
    .release = cuda_release,
    .available = cuda_available,
    .upload = cuda_upload,
    .download = cuda_download,
    .matrix = cuda_matrix,
    .act_bytes = cuda_act_bytes,
    .gemm_bytes = cuda_gemm_bytes,
    .kv_bytes = cuda_kv_bytes,
    .attention_bytes = cuda_attention_bytes,
    .moe_bytes = cuda_moe_bytes,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .gemm = cuda_gemm,
    .swiglu = cuda_swiglu,
    .rope_table = cuda_rope_table,
    .residual = cuda_residual,
    .qkv = cuda_qkv,
    .quantise = cuda_quantise,
    .rope_temperature = cuda_rope_temperature,
    .attention = cuda_attention,
    .route = cuda_route,
    .moe = cuda_moe,
    .kv_move = cuda_kv_move,
    .logits = cuda_logits,
    .ngram = cuda_ngram,
    .step_plan = cuda_step_plan,
    .step_commit = cuda_step_commit,
    .stamp = cuda_stamp,
    .accept_bytes = cuda_accept_bytes,
    .accept = cuda_accept,
    .node_stats = cuda_node_stats,
    .read = cuda_read,
    .pass_begin = cuda_pass_begin,
    .pass_end = cuda_pass_end,
    .pass_forget = cuda_pass_forget,
    .sync = cuda_sync,
    .poll = cuda_poll,
    .mark = cuda_mark,
    .marks = cuda_marks,
    .clocks = cuda_clocks,
    .rival_ask = cuda_rival_ask,
    .rival = cuda_rival,
};
