/* matrix_pack_cuda: row-major weights to the fragment order of cuda.h. A tile is 16 outputs; in it, step by
 * step of 16 inputs, 512 bytes that a warp reads with one 16-byte load a lane. Each thread packs whole tiles;
 * every byte moves once. */
#include "kernels/cuda.h"
#include "kernels/gemm_part.h"
#include <assert.h>

enum { TILE = 16, STEP = 16, FRAGMENT = 8, FRAGMENTS = TILE * STEP };

static size_t steps_of(int k)
{
    return ((size_t)k + STEP - 1) / STEP;
}

size_t matrix_cuda_bytes(int n, int k)
{
    return ((size_t)n + TILE - 1) / TILE * steps_of(k) * FRAGMENTS * sizeof(bf16);
}

/* Where output `row` of a tile keeps input i: lane row % 8 * 4 + i % 8 / 2; of its eight, rows and inputs
 * alternate in pairs: {row < 8, i < 8}, {row >= 8, i < 8}, {row < 8, i >= 8}, {row >= 8, i >= 8}. */
static size_t place(int row, int i)
{
    int lane = row % 8 * 4 + i % 8 / 2, pair = i % STEP / 8 * 2 + row / 8;
    return (size_t)(i / STEP) * FRAGMENTS + (size_t)(lane * FRAGMENT + pair * 2 + i % 2);
}

/* The part and the row in it that a tile's output comes from; NULL: padding. */
static const struct matrix_part *source(const struct matrix_part *parts, int n_parts, enum matrix_flags flags,
                                        int tile, int row, int *from)
{
    if (flags == MATRIX_INTERLEAVE) {
        *from = tile * (TILE / 2) + row % (TILE / 2);
        return *from < parts[0].n ? &parts[row / (TILE / 2)] : NULL;
    }
    *from = tile * TILE + row;
    for (int i = 0; i < n_parts; *from -= parts[i++].n)
        if (*from < parts[i].n)
            return &parts[i];
    return NULL;
}

void matrix_pack_cuda(bf16 *to, int k, const struct matrix_part *parts, int n_parts, enum matrix_flags flags)
{
    int n = 0;
    for (int i = 0; i < n_parts; i++)
        n += parts[i].n;
    assert(flags == MATRIX_PLAIN || (n_parts == 2 && parts[0].n == parts[1].n));
    size_t size = steps_of(k) * FRAGMENTS;
#pragma omp parallel for schedule(static)
    for (int tile = 0; tile < (n + TILE - 1) / TILE; tile++) {
        bf16 *dst = to + (size_t)tile * size;
        memset(dst, 0, size * sizeof(bf16));
        for (int row = 0, from; row < TILE; row++) {
            const struct matrix_part *p = source(parts, n_parts, flags, tile, row, &from);
            for (int i = 0; p && i < k; i++)
                dst[place(row, i)] = gemm_part_at(p, (size_t)from * (size_t)k + (size_t)i);
        }
    }
}
