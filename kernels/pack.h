/* pack: weights to the order of kernels/cuda.h on the device: what matrix_pack_cuda does on the host, bit for bit.
 * source   rows as a checkpoint stores them, those of tiles [tile, tile + tiles) in the order of the tiles: dtype [tiles][16][k], so that
 *          a piece of whole tiles may be uploaded and packed while the next is read; where matrix_cuda_output knows no output the row
 *          may hold anything. Row `at` begins at element at * row_step, and its columns are col_step apart; k of them, after
 *          `before` and before `after` others, which only the scale of an output that is rounded here looks at. The rows of transposed
 *          sources are in the order of pack_transposed_row. Or parts of DTYPE_SYNTHETIC and one seed, made here
 * FP8      numbers rounded before keep their bits, and scale is the caller's to fill
 * result   to: whole tiles, zero padded; scale f32 [n] of FP8, those of the tiles' outputs
 * needs    rows and to 16-byte aligned */
#ifndef KERNELS_PACK_H
#define KERNELS_PACK_H
#include "kernels/cuda.h"

enum { PACK_PARTS = 4 };

struct pack {
    const struct matrix_source *from; /* host; its parts' data is read for DTYPE_SYNTHETIC alone, then n_parts <= PACK_PARTS */
    const void *rows;                 /* NULL: synthetic */
    enum dtype dtype;                 /* of rows */
    size_t row_step, col_step;        /* row_step 0: k, and col_step 1; col_step > 1: transposed, row_step is 1. Synthetic: from the views */
    int before, after;                /* synthetic: from the first part's view, the same for all */
    int tile, tiles;
    void *to;     /* the matrix's data, from its first tile on */
    float *scale; /* NULL unless FP8 */
};
/* Row of a transposed piece of `tiles` tiles that holds row `row` of its tile `tile`, from 0: those of a part lie together. */
KERN_FN int pack_transposed_row(enum matrix_flags flags, int tiles, int tile, int row)
{
    return flags == MATRIX_INTERLEAVE ? row / 8 * tiles * 8 + tile * 8 + row % 8 : tile * 16 + row;
}
KERN_API int pack_cuda(const struct pack *a, void *stream);
#endif
