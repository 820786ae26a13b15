/* read: every block reads 64 KB, eight 16-byte loads a thread at a time; the sum of 64-bit words is the CPU's.
 * launch   grid ceil(bytes / 64 KB), block 512
 * moves    bytes; whole numbers, so one atomic a block leaves the sum without an order */
#include "kernels/cuda.h"
#include "kernels/launch.cuh"

enum { THREADS = 512, LOADS = 8 };

static __global__ void __launch_bounds__(THREADS) read_kernel(const ulonglong2 *data, size_t n, unsigned long long *out)
{
    const size_t first = (size_t)blockIdx.x * (THREADS * LOADS) + threadIdx.x;
    __shared__ unsigned long long part[THREADS / 32];
    ulonglong2 word[LOADS];
    unsigned long long sum = 0;
    launch_trigger();
    launch_wait();
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        word[i] = first + (size_t)i * THREADS < n ? data[first + (size_t)i * THREADS] : make_ulonglong2(0, 0);
#pragma unroll
    for (int i = 0; i < LOADS; i++)
        sum += word[i].x + word[i].y;
    for (int step = 16; step > 0; step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    for (int i = 1; i < THREADS / 32; i++)
        sum += part[i];
    atomicAdd(out, sum);
}

KERN_API int read_cuda(const void *data, size_t bytes, unsigned long long *out, void *stream)
{
    const size_t n = bytes / sizeof(ulonglong2), per_block = THREADS * LOADS, blocks = (n + per_block - 1) / per_block;
    const cudaError_t rc = cudaMemsetAsync(out, 0, sizeof *out, (cudaStream_t)stream);
    if (rc != cudaSuccess || n == 0)
        return rc;
    const struct launch l = {.grid = (unsigned)blocks, .block = THREADS, .stream = stream};
    return launch_kernel(&l, read_kernel, (const ulonglong2 *)data, n, out);
}
