/* backend_cuda: the inside of the CUDA backend, shared by its files: backend_cuda.c (the table and its launches),
 * backend_cuda_device.c (finding and opening a GPU), backend_cuda_memory.c (memory and copies), backend_cuda_matrix.c (weights),
 * backend_cuda_graph.c (recorded passes and time stamps), backend_cuda_bulk.c (long prefill passes),
 * backend_cuda_moe.c (layers of experts), backend_cuda_rival.c (cuBLASLt to compare with). Nothing here is seen outside them. */
#ifndef ENGINE_BACKEND_CUDA_H
#define ENGINE_BACKEND_CUDA_H
#include "engine/backend.h"
#include <cuda_runtime_api.h>

enum { CUDA_RING = 4, CUDA_GRAPHS = 256 };
#define CUDA_RING_BYTES ((size_t)8 << 20) /* a buffer */

struct cuda_block {
    void *p;
    size_t bytes;
    int on_host;
};

/* What was launched last. */
struct cuda_launch {
    const char *name;
    int rows, n, k;
};

/* A recorded pass. */
struct cuda_graph {
    struct pass_key key;
    cudaGraphExec_t exec; /* owned */
};

struct cuda {
    cudaStream_t stream;                   /* owned */
    struct cuda_graph graphs[CUDA_GRAPHS]; /* [n_graphs] */
    struct pass_key recording;             /* while the stream records */
    int n_graphs, eager;
    struct cuda_block *blocks; /* owned [n], each owned */
    int n, cap;
    void *ring[CUDA_RING];       /* owned, pinned, CUDA_RING_BYTES each */
    cudaEvent_t sent[CUDA_RING]; /* owned; recorded behind a buffer's copy */
    int next;                    /* buffer to use next */
    void *staging;               /* owned [CUDA_RING_BYTES] on the device: weights as stored, before they are packed */
    struct cuda_launch last;
    struct gemm_lt *lt; /* owned; NULL before the first product in bulk */
    cudaEvent_t marks[BACKEND_MARKS]; /* owned, each from its first use on */
    size_t launches_before;           /* the pass that is being recorded */
    struct cuda_nvml *nvml;           /* owned; NULL before the clocks are asked for */
};

static inline struct cuda *cuda_of(const struct backend *be)
{
    return be->self;
}

/* ERR_DEVICE for a call that was refused, by what it was for; 0 when it was not. The runtime's memory of the error is cleared, so that no
 * later call reports it. */
int cuda_check(const struct backend *be, cudaError_t rc, const char *what);
int  cuda_launched(struct backend *be, int rc, struct cuda_launch what); /* where every operation ends, see backend_cuda.c */

void cuda_describe(FILE *out);
int  cuda_open_device(struct backend *be, int device);

int  cuda_alloc(struct backend *be, size_t bytes, void **out);
int  cuda_alloc_host(struct backend *be, size_t bytes, void **out);
void cuda_release(struct backend *be, void *p);
size_t cuda_available(struct backend *be);
int  cuda_upload(struct backend *be, void *dst, const void *src, size_t bytes);
int  cuda_download(struct backend *be, void *dst, const void *src, size_t bytes);
int  cuda_open_ring(struct backend *be);
int  cuda_ring_take(struct backend *be, void **out); /* a pinned buffer that no copy reads any more */
int  cuda_ring_send(struct backend *be, void *dst, size_t bytes); /* the one taken last, to the device; then the next one's turn */
void cuda_close_memory(struct cuda *c); /* frees everything that was allocated, ring and staging included */

int  cuda_matrix(struct backend *be, struct matrix *w, const struct matrix_source *from);

int  cuda_pass_begin(struct backend *be, struct pass_key key, int *recorded);
int  cuda_pass_end(struct backend *be, int error);
void cuda_pass_forget(struct backend *be, const void *owner);
int  cuda_mark(struct backend *be, int i);
int  cuda_marks(struct backend *be, int n, int64_t *ns);
void cuda_close_marks(struct cuda *c);
void cuda_clocks(struct backend *be, struct backend_clocks *out);
void cuda_close_nvml(struct cuda *c);

/* The operations of the table where their argument says bulk. gemm_bytes: for one product of that matrix. */
size_t cuda_bulk_gemm_bytes(int rows, int n, int k);
int  cuda_bulk_gemm(struct backend *be, const struct gemm *a);
int  cuda_bulk_swiglu(struct backend *be, const struct gemm *a);
int  cuda_bulk_rmsnorm(struct backend *be, const struct rmsnorm *a);
int  cuda_bulk_residual(struct backend *be, const struct residual *a);
int  cuda_bulk_qkv(struct backend *be, const struct qkv *a);
int  cuda_bulk_quantise(struct backend *be, const struct quantise *a);
int  cuda_bulk_attention(struct backend *be, const struct attention *a);
int  cuda_open_lt(struct cuda *c); /* cuBLASLt, when it is not open yet; ERR_DEVICE says what to install */
void cuda_bulk_close(struct cuda *c);

int  cuda_route(struct backend *be, const struct route *a);
int  cuda_moe(struct backend *be, const struct moe *a);
size_t cuda_moe_bytes(const struct backend *be, int rows, int hidden, int ffn, int experts, int top_k);

int  cuda_rival_ask(struct backend *be, struct rival *a);
int  cuda_rival(struct backend *be, const struct rival *a);
#endif
