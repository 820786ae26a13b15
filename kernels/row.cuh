/* row: what kernels share that spread a row of logits over a cluster of blocks. */
#ifndef KERNELS_ROW_CUH
#define KERNELS_ROW_CUH
#include <cooperative_groups.h>
#include <stdint.h>

enum { ROW_QUAD = 4 };
static constexpr unsigned ROW_LANES = 0xffffffffu;

/* Every row of `vocab` begins where a load of 16 bytes may. */
static inline int row_wide(const float *logits, int vocab)
{
    return vocab % ROW_QUAD == 0 && (uintptr_t)logits % sizeof(float4) == 0;
}

/* Ids i .. i + 3, i a multiple of four, NaN past the last id: which is larger than nothing. */
static __device__ inline float4 row_quad(const float *row, int i, int vocab, int wide)
{
    const float none = __int_as_float(0x7fffffff);
    if (wide)
        return i < vocab ? *(const float4 *)(row + i) : make_float4(none, none, none, none);
    return make_float4(i < vocab ? row[i] : none, i + 1 < vocab ? row[i + 1] : none,
                       i + 2 < vocab ? row[i + 2] : none, i + 3 < vocab ? row[i + 3] : none);
}

/* The two halves of the cluster's barrier. Its first round, arrive early and wait late, says that all blocks
 * have begun and so have their shared memory. */
static __device__ inline void row_arrive(void)
{
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

static __device__ inline void row_wait(void)
{
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

/* The first block's copy of something in shared memory. */
template <class T> static __device__ inline T *row_first(T *shared)
{
    return cooperative_groups::this_cluster().map_shared_rank(shared, 0);
}
#endif
