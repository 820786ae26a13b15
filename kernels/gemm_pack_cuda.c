/* matrix_pack_cuda: row-major weights to the fragment order of cuda.h, plainly: what the device's packer is
 * held to. Each thread packs whole tiles. */
#include "kernels/cuda.h"
#include "kernels/fp8.h"
#include "kernels/gemm_part.h"
#include <assert.h>
#include <math.h>

enum { TILE = 16, STEP = 16, FRAGMENT = 8, FRAGMENTS = TILE * STEP };

static size_t steps_of(int k)
{
    return ((size_t)k + STEP - 1) / STEP;
}

/* Numbers of a tile of 16 outputs. */
static size_t tile_size(int k, enum matrix_form form)
{
    const size_t steps = steps_of(k);
    return (form == MATRIX_FP8 ? (steps + 1) / 2 * 2 : steps) * FRAGMENTS;
}

size_t matrix_cuda_bytes(int n, int k, enum matrix_form form)
{
    return ((size_t)n + TILE - 1) / TILE * tile_size(k, form) * (form == MATRIX_FP8 ? 1 : sizeof(bf16));
}

/* Where output `row` of a tile keeps input i: lane row % 8 * 4 + i % 8 / 2; of its eight, rows and inputs
 * alternate in pairs: {row < 8, i < 8}, {row >= 8, i < 8}, {row < 8, i >= 8}, {row >= 8, i >= 8}. FP8: two
 * steps to a lane. */
static size_t place(int row, int i, enum matrix_form form)
{
    const size_t lane = (size_t)(row % 8 * 4 + i % 8 / 2),
                 within = (size_t)((i % STEP / 8 * 2 + row / 8) * 2 + i % 2), step = (size_t)(i / STEP);
    if (form == MATRIX_FP8)
        return step / 2 * 2 * FRAGMENTS + lane * 2 * FRAGMENT + step % 2 * FRAGMENT + within;
    return step * FRAGMENTS + lane * FRAGMENT + within;
}

int matrix_cuda_output(const struct matrix_source *from, int n, int tile, int row)
{
    const int half = from->head_dim / 2, tiles = from->head_dim / TILE;
    if (from->flags == MATRIX_INTERLEAVE)
        return tile * (TILE / 2) + row % (TILE / 2) + row / (TILE / 2) * (n / 2);
    if (from->flags == MATRIX_ROTARY)
        return tile / tiles * from->head_dim + tile % tiles * (TILE / 2) + row % (TILE / 2) +
               row / (TILE / 2) * half;
    return tile * TILE + row;
}

/* The part that output j comes from, and its row there. */
static int source(const struct matrix_source *from, int j, int *row)
{
    int part = 0;
    for (*row = j; *row >= from->parts[part].n; part++)
        *row -= from->parts[part].n;
    return part;
}

static float scale_of(const struct matrix_part *p, const struct matrix_view *v, int row, int k)
{
    float most = 0;
    if (p->dtype == DTYPE_FP8)
        return ((const struct scaled *)p->data)->scale[row];
    for (int i = -v->before; i < k + v->after; i++) {
        bf16 w;
        gemm_part_row(p, v, row, i, 1, &w);
        most = fmaxf(most, fabsf(bf16_to_f32(w)));
    }
    return gemm_part_scale(most);
}

static void pack_output(const struct matrix_source *from, int j, int row_of_tile, void *tile, float *scale)
{
    int row;
    const int part = source(from, j, &row);
    const struct matrix_part *p = &from->parts[part];
    const struct matrix_view v = gemm_part_view(from, part);
    if (from->form == MATRIX_FP8)
        scale[j] = scale_of(p, &v, row, from->k);
    for (int i = 0; i < from->k; i++) {
        bf16 w;
        gemm_part_row(p, &v, row, i, 1, &w);
        const size_t at = place(row_of_tile, i, from->form);
        if (from->form == MATRIX_FP8)
            ((uint8_t *)tile)[at] =
                fp8_from_f32(p->dtype == DTYPE_FP8 ? bf16_to_f32(w) : bf16_to_f32(w) / scale[j]);
        else
            ((bf16 *)tile)[at] = w;
    }
}

void matrix_pack_cuda(void *to, float *scale, const struct matrix_source *from)
{
    const int n = matrix_source_n(from), tiles = (n + TILE - 1) / TILE;
    const size_t bytes = tile_size(from->k, from->form) * (from->form == MATRIX_FP8 ? 1 : sizeof(bf16));
    assert(from->flags != MATRIX_INTERLEAVE || (from->n_parts == 2 && from->parts[0].n == from->parts[1].n));
#pragma omp parallel for schedule(static)
    for (int t = 0; t < tiles; t++) {
        char *tile = (char *)to + (size_t)t * bytes;
        memset(tile, 0, bytes);
        for (int row = 0; row < TILE; row++) {
            const int j = matrix_cuda_output(from, n, t, row), half = row % (TILE / 2) + t * (TILE / 2);
            if (j < n && (from->flags != MATRIX_INTERLEAVE || half < n / 2))
                pack_output(from, j, row, tile, scale);
        }
    }
}
