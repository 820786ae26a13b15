/* backend_cuda_memory: every allocation is remembered and freed at close. What the host uploads goes through
 * a ring of pinned buffers: the caller may reuse its memory at once, and a buffer is waited for only when the
 * copies have fallen a whole ring behind. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

static const size_t reserve_bytes = (size_t)128 << 20; /* for kernels' code and what the driver keeps */

int cuda_check(const struct backend *be, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess)
        return 0;
    cudaGetLastError();
    FAIL(ERR_DEVICE, "cuda: %s on %s: %s (%s)", what, be->device[0] ? be->device : "the GPU",
         cudaGetErrorString(rc), cudaGetErrorName(rc));
}

int cuda_open_ring(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    for (int i = 0; i < CUDA_RING; i++) {
        TRY(cuda_check(be, cudaMallocHost(&c->ring[i], CUDA_RING_BYTES), "pinning host memory"));
        TRY(cuda_check(be, cudaEventCreateWithFlags(&c->sent[i], cudaEventDisableTiming),
                       "creating an event"));
    }
    return cuda_check(be, cudaMalloc(&c->staging, CUDA_RING_BYTES), "allocating memory to stage weights");
}

static void free_block(const struct cuda_block *b)
{
    if (b->on_host)
        cudaFreeHost(b->p);
    else
        cudaFree(b->p);
}

void cuda_close_memory(struct cuda *c)
{
    for (int i = 0; i < c->n; i++)
        free_block(&c->blocks[i]);
    for (int i = 0; i < CUDA_RING; i++) {
        if (c->sent[i])
            cudaEventDestroy(c->sent[i]);
        if (c->ring[i])
            cudaFreeHost(c->ring[i]);
    }
    if (c->staging)
        cudaFree(c->staging);
    free(c->blocks);
}

static int reserve_block(struct cuda *c)
{
    if (c->n < c->cap)
        return 0;
    int cap = c->cap ? 2 * c->cap : 64;
    struct cuda_block *grown = realloc(c->blocks, (size_t)cap * sizeof *grown);
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

int cuda_alloc(struct backend *be, size_t bytes, void **out)
{
    struct cuda *c = cuda_of(be);
    struct cuda_block b = {.bytes = round_up(bytes)};
    size_t free_bytes = 0, total = 0;
    be->allocs++;
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
    TRY(cuda_check(be, rc, "allocating memory"));
    c->blocks[c->n++] = b;
    be->allocated += b.bytes;
    TRY(cuda_check(be, cudaMemsetAsync(b.p, 0, b.bytes, c->stream), "clearing memory"));
    *out = b.p;
    return 0;
}

int cuda_alloc_host(struct backend *be, size_t bytes, void **out)
{
    struct cuda *c = cuda_of(be);
    struct cuda_block b = {.bytes = round_up(bytes), .on_host = 1};
    be->allocs++;
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

void cuda_release(struct backend *be, void *p)
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

size_t cuda_available(struct backend *be)
{
    size_t free_bytes = 0, total = 0;
    (void)be;
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        cudaGetLastError();
    return free_bytes > reserve_bytes ? free_bytes - reserve_bytes : 0;
}

int cuda_ring_take(struct backend *be, void **out)
{
    struct cuda *c = cuda_of(be);
    if (cudaEventQuery(c->sent[c->next]) == cudaErrorNotReady) {
        cudaGetLastError(); /* that is no error */
        be->syncs++;
    }
    TRY(cuda_check(be, cudaEventSynchronize(c->sent[c->next]), "waiting for an upload"));
    *out = c->ring[c->next];
    return 0;
}

int cuda_ring_send(struct backend *be, void *dst, size_t bytes)
{
    struct cuda *c = cuda_of(be);
    TRY(cuda_check(be, cudaMemcpyAsync(dst, c->ring[c->next], bytes, cudaMemcpyHostToDevice, c->stream),
                   "uploading"));
    TRY(cuda_check(be, cudaEventRecord(c->sent[c->next], c->stream), "recording an upload"));
    c->next = (c->next + 1) % CUDA_RING;
    return 0;
}

int cuda_upload(struct backend *be, void *dst, const void *src, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += CUDA_RING_BYTES) {
        const size_t n = bytes - at < CUDA_RING_BYTES ? bytes - at : CUDA_RING_BYTES;
        void *buffer = NULL;
        TRY(cuda_ring_take(be, &buffer));
        memcpy(buffer, (const char *)src + at, n);
        TRY(cuda_ring_send(be, (char *)dst + at, n));
    }
    return 0;
}

int cuda_download(struct backend *be, void *dst, const void *src, size_t bytes)
{
    TRY(cuda_check(be, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToHost, cuda_of(be)->stream),
                   "downloading"));
    return 0;
}
