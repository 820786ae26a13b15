/* act: activations as a CUDA matrix product reads them: bf16 in the order of the B fragments of mma.m16n8k16, so that a lane's
 * 8-byte load is its whole fragment. Rows are the 8 columns of a tile.
 *   [ceil(rows / 8)][ceil(k / 16)][32 lanes][4];  lane l holds row tile * 8 + l / 4, inputs step * 16 + l % 4 * 2 + {0, 1, 8, 9}
 * Rows past the last of a tile are undefined and touch no other row; inputs past k are zero. */
#ifndef KERNELS_ACT_H
#define KERNELS_ACT_H
#include "kernels/types.h"

#ifdef __CUDACC__
#define ACT_FN __host__ __device__ static inline
#else
#define ACT_FN static inline
#endif

enum { ACT_ROWS = 8, ACT_STEP = 16 };

ACT_FN size_t act_tile(int k) /* elements a tile of 8 rows */
{
    return (size_t)((k + ACT_STEP - 1) / ACT_STEP) * ACT_STEP * ACT_ROWS;
}

/* Where input i of a row stands. */
ACT_FN size_t act_at(int row, int i, int k)
{
    int lane = row % ACT_ROWS * 4 + i % 8 / 2, slot = i % ACT_STEP / 8 * 2 + i % 2;
    return (size_t)(row / ACT_ROWS) * act_tile(k) + (size_t)(i / ACT_STEP) * ACT_STEP * ACT_ROWS + (size_t)(lane * 4 + slot);
}
#endif
