/* backend_cuda: one GPU, one stream. Launches return at once and are remembered by name and shape, so that an
 * error which only sync sees still says what ran. What the host uploads goes through a ring of pinned
 * buffers: the caller may reuse its memory at once, and a buffer is waited for only when the copies have
 * fallen a whole ring behind. Weights are packed into those same buffers, panels shared out among threads,
 * while the buffers before them travel. */
#include "engine/backend.h"
#include "engine/err.h"
#include "kernels/act.h"
#include "kernels/cuda.h"
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

enum { RING = 4, MOVE_MAX = 64, GRAPHS = 256, UNIT_ROWS = 2 * MATRIX_PANEL };
static const size_t ring_bytes = (size_t)8 << 20;      /* a buffer */
static const size_t reserve_bytes = (size_t)128 << 20; /* for kernels' code and what the driver keeps */

struct block {
    void *p;
    size_t bytes;
    int on_host;
};

/* What was launched last. */
struct launch {
    const char *name;
    int rows, n, k;
};

/* A recorded pass. */
struct graph {
    struct pass_key key;
    cudaGraphExec_t exec; /* owned */
};

struct cuda {
    cudaStream_t stream;         /* owned */
    struct graph graphs[GRAPHS]; /* [n_graphs] */
    struct pass_key recording;   /* while the stream records */
    int n_graphs, eager;
    struct block *blocks; /* owned [n], each owned */
    int n, cap;
    void *ring[RING];       /* owned, pinned, ring_bytes each */
    cudaEvent_t sent[RING]; /* owned; recorded behind a buffer's copy */
    int next;               /* buffer to use next */
    struct launch last;
};

static struct cuda *cuda_of(const struct backend *be)
{
    return be->self;
}

/* An error of a call that names itself. The runtime's memory of it is cleared, so that no later call reports
 * it. */
static int fail(const struct backend *be, cudaError_t rc, const char *what)
{
    cudaGetLastError();
    FAIL(ERR_DEVICE, "cuda: %s on %s: %s (%s)", what, be->device[0] ? be->device : "the GPU",
         cudaGetErrorString(rc), cudaGetErrorName(rc));
}

#define TRY_CUDA(be, call, what)                                                                             \
    do {                                                                                                     \
        cudaError_t cuda_rc_ = (call);                                                                       \
        if (cuda_rc_ != cudaSuccess)                                                                         \
            return fail(be, cuda_rc_, what);                                                                 \
    } while (0)

/* How many GPUs there are, or why none can be used. */
static int count_devices(int *out)
{
    int driver = 0, runtime = CUDART_VERSION;
    cudaDriverGetVersion(&driver);
    if (driver == 0)
        FAIL(ERR_DEVICE,
             "no NVIDIA driver is loaded: install one for CUDA %d.%d or later; a container must be started "
             "with "
             "its GPUs",
             runtime / 1000, runtime % 1000 / 10);
    const cudaError_t rc = cudaGetDeviceCount(out);
    cudaGetLastError();
    if (rc == cudaErrorInsufficientDriver)
        FAIL(ERR_DEVICE, "the NVIDIA driver is for CUDA %d.%d, this program needs %d.%d: update the driver",
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (rc == cudaErrorNoDevice || (rc == cudaSuccess && *out == 0))
        FAIL(ERR_DEVICE,
             "the NVIDIA driver sees no GPU: see what nvidia-smi lists and CUDA_VISIBLE_DEVICES hides");
    if (rc != cudaSuccess)
        FAIL(ERR_DEVICE, "the CUDA runtime does not start: %s (%s)", cudaGetErrorString(rc),
             cudaGetErrorName(rc));
    return 0;
}

static int check_capability(const struct cudaDeviceProp *prop)
{
    if ((prop->major == 9 || prop->major == 10) && prop->minor == 0)
        return 0;
    FAIL(ERR_DEVICE, "%s has compute capability %d.%d: expected 9.0 (H100, H200) or 10.0 (B200)", prop->name,
         prop->major, prop->minor);
}

static void describe_device(FILE *out, int device)
{
    struct cudaDeviceProp prop;
    int driver = 0, runtime = 0;
    size_t free_bytes = 0, total = 0;
    if (cudaGetDeviceProperties(&prop, device) != cudaSuccess) {
        fprintf(out, "cuda %d: cannot be asked: %s\n", device, cudaGetErrorString(cudaGetLastError()));
        return;
    }
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    fprintf(out, "cuda %d: %s\n    compute capability %d.%d, %d multiprocessors, %.1f GiB of memory", device,
            prop.name, prop.major, prop.minor, prop.multiProcessorCount,
            (double)prop.totalGlobalMem / 0x1p30);
    if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free_bytes, &total) == cudaSuccess)
        fprintf(out, ", %.1f GiB free", (double)free_bytes / 0x1p30);
    fprintf(out, "\n    driver for CUDA %d.%d, runtime %d.%d\n", driver / 1000, driver % 1000 / 10,
            runtime / 1000, runtime % 1000 / 10);
    if (check_capability(&prop))
        fprintf(out, "    cannot be used: %s\n", err_text());
}

static void cuda_describe(FILE *out)
{
    int n = 0;
    if (count_devices(&n))
        fprintf(out, "cuda: cannot be used: %s\n", err_text());
    for (int i = 0; i < n; i++)
        describe_device(out, i);
    err_clear();
}

static int open_device(struct backend *be, int device)
{
    struct cudaDeviceProp prop;
    int count = 0, driver = 0, runtime = 0;
    TRY_CTX(count_devices(&count), "device 'cuda'");
    if (device < 0 || device >= count)
        FAIL(ERR_CONFIG, "device 'cuda': expected GPU 0 to %d, found %d", count - 1, device);
    TRY_CUDA(be, cudaGetDeviceProperties(&prop, device), "asking for the GPU's properties");
    TRY_CTX(check_capability(&prop), "device 'cuda'");
    TRY_CUDA(be, cudaSetDevice(device), "taking the GPU");
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(be->isa, sizeof be->isa, "sm_%d%d", prop.major % 100, prop.minor % 100);
    snprintf(be->device, sizeof be->device, "%.60s (%s, driver %d.%d, runtime %d.%d)", prop.name, be->isa,
             driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    return 0;
}

static int cuda_open(struct backend *be, const struct backend_opts *opts)
{
    TRY(backend_threads(opts, &be->threads));
    TRY(open_device(be, opts->device));
    struct cuda *c = be->self = calloc(1, sizeof *c);
    if (!c)
        FAIL(ERR_MEMORY, "cuda backend: out of memory");
    c->eager = opts->eager;
    be->kv_bytes = sizeof(bf16);
    TRY_CUDA(be, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "creating a stream");
    for (int i = 0; i < RING; i++) {
        TRY_CUDA(be, cudaMallocHost(&c->ring[i], ring_bytes), "pinning host memory");
        TRY_CUDA(be, cudaEventCreateWithFlags(&c->sent[i], cudaEventDisableTiming), "creating an event");
    }
    return 0;
}

static void free_block(const struct block *b)
{
    if (b->on_host)
        cudaFreeHost(b->p);
    else
        cudaFree(b->p);
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
    for (int i = 0; i < c->n; i++)
        free_block(&c->blocks[i]);
    for (int i = 0; i < RING; i++) {
        if (c->sent[i])
            cudaEventDestroy(c->sent[i]);
        if (c->ring[i])
            cudaFreeHost(c->ring[i]);
    }
    if (c->stream)
        cudaStreamDestroy(c->stream);
    cudaGetLastError();
    free(c->blocks);
    free(c);
    be->self = NULL;
}

static int reserve_block(struct cuda *c)
{
    if (c->n < c->cap)
        return 0;
    int cap = c->cap ? 2 * c->cap : 64;
    struct block *grown = realloc(c->blocks, (size_t)cap * sizeof *grown);
    if (!grown)
        FAIL(ERR_MEMORY, "cuda backend: out of memory for a list of %d allocations", cap);
    c->blocks = grown;
    c->cap = cap;
    return 0;
}

static size_t round_up(size_t bytes)
{
    return bytes < 256 ? 256 : bytes + (256 - bytes % 256) % 256;
}

static int cuda_alloc(struct backend *be, size_t bytes, void **out)
{
    struct cuda *c = cuda_of(be);
    struct block b = {.bytes = round_up(bytes)};
    size_t free_bytes = 0, total = 0;
    TRY(reserve_block(c));
    cudaError_t rc = b.bytes < bytes ? cudaErrorMemoryAllocation : cudaMalloc(&b.p, b.bytes);
    if (rc == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total);
        FAIL(ERR_MEMORY,
             "cuda: cannot allocate %zu bytes: %.0f of %.0f MiB are free on %s; a smaller model.max_context, "
             "workload.concurrency or draft.max_nodes needs less",
             bytes, (double)free_bytes / 0x1p20, (double)total / 0x1p20, be->device);
    }
    TRY_CUDA(be, rc, "allocating memory");
    c->blocks[c->n++] = b;
    be->allocated += b.bytes;
    TRY_CUDA(be, cudaMemsetAsync(b.p, 0, b.bytes, c->stream), "clearing memory");
    *out = b.p;
    return 0;
}

static int cuda_alloc_host(struct backend *be, size_t bytes, void **out)
{
    struct cuda *c = cuda_of(be);
    struct block b = {.bytes = round_up(bytes), .on_host = 1};
    TRY(reserve_block(c));
    if (b.bytes < bytes || cudaMallocHost(&b.p, b.bytes) != cudaSuccess) {
        cudaGetLastError();
        FAIL(ERR_MEMORY, "cuda: cannot pin %zu bytes of host memory", bytes);
    }
    memset(b.p, 0, b.bytes);
    c->blocks[c->n++] = b;
    *out = b.p;
    return 0;
}

static void cuda_release(struct backend *be, void *p)
{
    struct cuda *c = cuda_of(be);
    for (int i = c->n - 1; p && i >= 0; i--)
        if (c->blocks[i].p == p) {
            free_block(&c->blocks[i]);
            be->allocated -= c->blocks[i].on_host ? 0 : c->blocks[i].bytes;
            c->blocks[i] = c->blocks[--c->n];
            return;
        }
}

static size_t cuda_available(struct backend *be)
{
    size_t free_bytes = 0, total = 0;
    (void)be;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        cudaGetLastError();
    return free_bytes > reserve_bytes ? free_bytes - reserve_bytes : 0;
}

/* A pinned buffer that no copy reads any more; ring_send sends it and turns to the next. */
static int ring_take(struct backend *be, void **out)
{
    struct cuda *c = cuda_of(be);
    TRY_CUDA(be, cudaEventSynchronize(c->sent[c->next]), "waiting for an upload");
    *out = c->ring[c->next];
    return 0;
}

static int ring_send(struct backend *be, void *dst, size_t bytes)
{
    struct cuda *c = cuda_of(be);
    TRY_CUDA(be, cudaMemcpyAsync(dst, c->ring[c->next], bytes, cudaMemcpyHostToDevice, c->stream),
             "uploading");
    TRY_CUDA(be, cudaEventRecord(c->sent[c->next], c->stream), "recording an upload");
    c->next = (c->next + 1) % RING;
    return 0;
}

static int cuda_upload(struct backend *be, void *dst, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += ring_bytes) {
        const size_t n = bytes - at < ring_bytes ? bytes - at : ring_bytes;
        void *buffer = NULL;
        TRY(ring_take(be, &buffer));
        memcpy(buffer, (const char *)src + at, n);
        TRY(ring_send(be, (char *)dst + at, n));
    }
    return 0;
}

static int cuda_download(struct backend *be, void *dst, const void *src, size_t bytes)
{
    TRY_CUDA(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda_of(be)->stream),
             "downloading");
    return 0;
}

/* Rows [from, to) of the packed matrix; both are multiples of UNIT_ROWS, but for the end of a plain matrix.
 */
static void pack_rows(bf16 *buffer, int k, const struct matrix_part *parts, int n_parts,
                      enum matrix_flags flags, int from, int to)
{
    struct matrix_part some[8];
    int n = 0, first = 0;
    for (int i = 0; i < n_parts; i++) {
        const int scale = flags == MATRIX_INTERLEAVE ? 2 : 1, start = flags == MATRIX_INTERLEAVE ? 0 : first;
        const int lo = from / scale > start ? from / scale - start : 0;
        const int hi = to / scale - start < parts[i].n ? to / scale - start : parts[i].n;
        first += parts[i].n;
        if (lo >= hi)
            continue;
        some[n] = parts[i];
        some[n].data = (const char *)parts[i].data + (size_t)lo * (size_t)k * dtype_size(parts[i].dtype);
        some[n++].n = hi - lo;
    }
    matrix_pack_cuda(buffer, k, some, n, flags);
}

static int cuda_matrix(struct backend *be, struct matrix *w, int k, const struct matrix_part *parts,
                       int n_parts, enum matrix_flags flags)
{
    void *data = NULL, *buffer = NULL;
    int n = 0;
    for (int i = 0; i < n_parts; i++)
        n += parts[i].n;
    const size_t unit = matrix_cuda_bytes(UNIT_ROWS, k);
    if (unit > ring_bytes || n_parts > 8)
        FAIL(ERR_LIMIT,
             "cuda: expected a matrix of at most 8 parts and %zu inputs, found %d parts of %d inputs",
             ring_bytes / (UNIT_ROWS * sizeof(bf16)), n_parts, k);
    const size_t bytes = matrix_cuda_bytes(n, k);
    const int units = (n + UNIT_ROWS - 1) / UNIT_ROWS, batch = (int)(ring_bytes / unit);
    TRY(cuda_alloc(be, bytes, &data));
    for (int at = 0; at < units; at += batch) {
        const int end = units - at < batch ? units : at + batch;
        TRY(ring_take(be, &buffer));
        pack_rows(buffer, k, parts, n_parts, flags, at * UNIT_ROWS, end < units ? end * UNIT_ROWS : n);
        const size_t offset = (size_t)at * unit, whole = (size_t)(end - at) * unit;
        TRY(ring_send(be, (char *)data + offset, whole < bytes - offset ? whole : bytes - offset));
    }
    *w = (struct matrix){.n = n, .k = k, .data = data, .bytes = bytes};
    return 0;
}

static size_t cuda_act_bytes(const struct backend *be, int rows, int k)
{
    (void)be;
    return ((size_t)rows + ACT_ROWS - 1) / ACT_ROWS * act_tile(k) * sizeof(bf16);
}

static size_t cuda_gemm_bytes(const struct backend *be, int k)
{
    (void)be;
    (void)k;
    return 0;
}

static size_t cuda_attention_bytes(const struct backend *be, int rows, int heads, int kv_heads, int head_dim,
                                   int cap)
{
    (void)be;
    (void)kv_heads;
    return attention_cuda_scratch(rows, heads, head_dim, cap) * sizeof(float);
}

/* Every operation ends here: what it was is remembered, and said when the launch was refused. */
static int launched(struct backend *be, int rc, struct launch what)
{
    cuda_of(be)->last = what;
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
    return launched(be, embed_cuda(a, cuda_of(be)->stream),
                    (struct launch){"embed", a->rows, a->w->n, a->w->k});
}

static int cuda_rmsnorm(struct backend *be, const struct rmsnorm *a)
{
    return launched(be, rmsnorm_cuda(a, cuda_of(be)->stream),
                    (struct launch){"rmsnorm", a->rows, a->dim, a->dim});
}

static int cuda_gemm(struct backend *be, const struct gemm *a)
{
    return launched(be, gemm_cuda(a, cuda_of(be)->stream),
                    (struct launch){"gemm", a->rows, a->w->n, a->w->k});
}

static int cuda_swiglu(struct backend *be, const struct gemm *a)
{
    return launched(be, swiglu_cuda(a, cuda_of(be)->stream),
                    (struct launch){"swiglu", a->rows, a->w->n, a->w->k});
}

static int cuda_rope_table(struct backend *be, const struct rows *rows, const float *inv_freq, int head_dim,
                           float *cos_sin)
{
    return launched(be, rope_table_cuda(rows, inv_freq, head_dim, cos_sin, cuda_of(be)->stream),
                    (struct launch){"rope_table", rows->n, head_dim, head_dim});
}

static int cuda_rope(struct backend *be, const struct rope *a)
{
    return launched(be, rope_cuda(a, cuda_of(be)->stream),
                    (struct launch){"rope", a->rows->n, a->heads, a->kv.head_dim});
}

static int cuda_attention(struct backend *be, const struct attention *a)
{
    return launched(be, attention_cuda(a, cuda_of(be)->stream),
                    (struct launch){"attention", a->rows->n, a->heads, a->kv.head_dim});
}

/* Later cells never are sources of earlier ones, so a long path is moved piece by piece. */
static int cuda_kv_move(struct backend *be, const struct kv_move *a)
{
    for (int at = 0; at < a->n; at += MOVE_MAX) {
        struct kv_move part = *a;
        part.src += at;
        part.dst += at;
        part.n = a->n - at < MOVE_MAX ? a->n - at : MOVE_MAX;
        TRY(launched(be, kv_move_cuda(&part, cuda_of(be)->stream),
                     (struct launch){"kv_move", part.n, a->kv.kv_heads, a->kv.head_dim}));
    }
    return 0;
}

static int cuda_logits(struct backend *be, const struct logits *a)
{
    return launched(be, logits_cuda(a, cuda_of(be)->stream),
                    (struct launch){"logits", a->rows, a->vocab, a->vocab});
}

static int cuda_read(struct backend *be, const void *data, size_t bytes, uint64_t *sum)
{
    _Static_assert(sizeof(unsigned long long) == sizeof *sum, "the checksum has 64 bits");
    return launched(be, read_cuda(data, bytes, (unsigned long long *)(void *)sum, cuda_of(be)->stream),
                    (struct launch){"read", (int)(bytes >> 20), 1 << 20, 1});
}

static int same_pass(struct pass_key a, struct pass_key b)
{
    return a.owner == b.owner && a.rows == b.rows && a.flags == b.flags;
}

/* A pass that is new is recorded while its operations are enqueued, then launched like any later one. When
 * the table is full, and for whoever wants to see single operations, they run as they come. */
static int cuda_pass_begin(struct backend *be, struct pass_key key, int *recorded)
{
    struct cuda *c = cuda_of(be);
    *recorded = 0;
    for (int i = 0; i < c->n_graphs; i++)
        if (same_pass(c->graphs[i].key, key)) {
            TRY_CUDA(be, cudaGraphLaunch(c->graphs[i].exec, c->stream), "launching a recorded pass");
            c->last = (struct launch){"a recorded pass", key.rows, 0, 0};
            *recorded = 1;
            return 0;
        }
    if (c->eager || c->n_graphs == GRAPHS)
        return 0;
    TRY_CUDA(be, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "recording a pass");
    c->recording = key;
    return 0;
}

static int cuda_pass_end(struct backend *be, int error)
{
    struct cuda *c = cuda_of(be);
    cudaGraph_t graph = NULL;
    struct graph new = {.key = c->recording};
    if (!c->recording.owner)
        return error;
    c->recording = (struct pass_key){0};
    cudaError_t rc = cudaStreamEndCapture(c->stream, &graph);
    if (!error && rc == cudaSuccess)
        rc = cudaGraphInstantiate(&new.exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (error)
        return error;
    TRY_CUDA(be, rc, "recording a pass");
    c->graphs[c->n_graphs++] = new;
    TRY_CUDA(be, cudaGraphLaunch(new.exec, c->stream), "launching a recorded pass");
    return 0;
}

static void cuda_pass_forget(struct backend *be, const void *owner)
{
    struct cuda *c = cuda_of(be);
    for (int i = c->n_graphs - 1; i >= 0; i--)
        if (c->graphs[i].key.owner == owner) {
            cudaGraphExecDestroy(c->graphs[i].exec);
            c->graphs[i] = c->graphs[--c->n_graphs];
        }
}

static int cuda_sync(struct backend *be)
{
    const struct cuda *c = cuda_of(be);
    const cudaError_t rc = cudaStreamSynchronize(c->stream);
    if (rc == cudaSuccess)
        return 0;
    FAIL(ERR_DEVICE,
         "cuda: an operation failed on %s: %s (%s); the last one launched was %s of %d rows [%d, %d]. The "
         "GPU is lost to this "
         "process; compute-sanitizer finds the operation",
         be->device, cudaGetErrorString(rc), cudaGetErrorName(rc), c->last.name ? c->last.name : "none",
         c->last.rows, c->last.n, c->last.k);
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
    .attention_bytes = cuda_attention_bytes,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .gemm = cuda_gemm,
    .swiglu = cuda_swiglu,
    .rope_table = cuda_rope_table,
    .rope = cuda_rope,
    .attention = cuda_attention,
    .kv_move = cuda_kv_move,
    .logits = cuda_logits,
    .read = cuda_read,
    .pass_begin = cuda_pass_begin,
    .pass_end = cuda_pass_end,
    .pass_forget = cuda_pass_forget,
    .sync = cuda_sync,
};
