/* kv_move: a thread takes 16 bytes of every cell in turn, in any form of the cache. src[i] >= dst + i and src
 * increases, so a write never reaches a cell that is read later, and BATCH reads may precede their writes.
 * launch   grid [kv_heads, 2]: keys, values; block 32
 * moves    8 * kv_heads * head_dim bytes a cell, half of it as E4M3; latency is all: n / 8 round trips to
 *          memory, at most 8 */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { THREADS = 32, BATCH = 8, MAX_CELLS = 64 };

struct cells {
    int src[MAX_CELLS];
};

static __global__ void __launch_bounds__(THREADS)
    kv_move_kernel(const __grid_constant__ struct kv_layer kv, int slot, int dst, int n,
                   const __grid_constant__ struct cells cells)
{
    const size_t words =
        (size_t)kv.head_dim * (kv.form == KV_FP8 ? 1 : sizeof(bf16)) / sizeof(uint4); /* of a cell */
    const size_t head = (size_t)slot * (size_t)kv.kv_heads + blockIdx.x;
    uint4 *base = (uint4 *)(blockIdx.y == 0 ? kv.k : kv.v) + head * (size_t)kv.cap * words;
    launch_trigger();
    launch_wait();
    for (size_t word = threadIdx.x; word < words; word += THREADS)
        for (int first = 0; first < n; first += BATCH) {
            uint4 held[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (first + i < n)
                    held[i] = base[(size_t)cells.src[first + i] * words + word];
#pragma unroll
            for (int i = 0; i < BATCH; i++)
                if (first + i < n)
                    base[(size_t)(dst + first + i) * words + word] = held[i];
        }
}

KERN_API int kv_move_cuda(const struct kv_move *a, void *stream)
{
    struct cells cells = {{0}};
    if (a->n == 0)
        return 0;
    if (a->n < 0 || a->n > MAX_CELLS)
        return cudaErrorInvalidValue;
    memcpy(cells.src, a->src, (size_t)a->n * sizeof *a->src);
    const struct launch l = {dim3((unsigned)a->kv.kv_heads, 2), dim3(THREADS), 0, 0, stream};
    return launch_kernel(&l, kv_move_kernel, a->kv, a->slot, a->dst, a->n, cells);
}
