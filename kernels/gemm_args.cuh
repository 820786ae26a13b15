/* gemm_args: what a matrix product is told, by value. */
#ifndef KERNELS_GEMM_ARGS_CUH
#define KERNELS_GEMM_ARGS_CUH
#include "kernels/act.h"
#include "kernels/cuda.h"

enum { TILE = 16, LANES = 32, ROW_BLOCK = 64, OCTET = 8, MAX_CLUSTER = 4 };
enum epilogue {
    EPILOGUE_STORE,
    EPILOGUE_ADD,
    EPILOGUE_SWIGLU,
    EPILOGUE_RESIDUAL,
    EPILOGUE_ROTARY,
    EPILOGUE_ANY
};

struct gemm_args {
    const uint4 *w;     /* [tiles][loads][32] fragments */
    const float *scale; /* of w's outputs, or NULL */
    const uint2 *x;     /* act */
    void *y; /* f32 [rows, n]; SWIGLU: act [rows, n / 2]; RESIDUAL: the stream x; ROTARY: q of rope.qkv */
    const float *square;    /* of x, or NULL */
    float *inverse_rms;     /* [rows], of square, or NULL: each block makes its own */
    const float *row_scale; /* of x, or NULL */
    int n, k, rows;
    int tiles;       /* of 16 outputs */
    int steps;       /* of 16 inputs */
    int loads;       /* of 16 bytes a lane: as many steps, or half of them for FP8 */
    int log2_slices; /* of K */
    float eps;
    enum epilogue epilogue;
    enum act_form y_form;
    const float *gain; /* RESIDUAL: of the norm, with its outputs */
    void *normed;
    float *normed_square;
    const float *cos_sin;     /* ROTARY; NULL: queries and keys stay as they are */
    const float *temperature; /* ROTARY, of the queries; NULL: 1 */
    int raw;                  /* ROTARY: no cosines, no cache, all of q, k, v to y: another kernel follows */
    const int *slot, *cell;
    struct kv_layer kv;
    int heads;
    uint32_t per_head; /* 2^32 / tiles of a head, rounded up; 0: a tile is a head */
};

/* The sizes of a product, its K in an octet of slices. */
static inline struct gemm_args gemm_args_of(const struct matrix *w, int rows)
{
    struct gemm_args p = {};
    p.n = w->n;
    p.k = w->k;
    p.rows = rows;
    p.tiles = (w->n + TILE - 1) / TILE;
    p.steps = (w->k + ACT_STEP - 1) / ACT_STEP;
    p.loads = w->form == MATRIX_FP8 ? (p.steps + 1) / 2 : p.steps;
    p.log2_slices = 3;
    return p;
}
#endif
