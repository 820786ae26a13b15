/* pack: weights to the order of kernels/cuda.h on the device: what matrix_pack_cuda does on the host, bit for bit.
 * source   rows as a checkpoint stores them, those of tiles [tile, tile + tiles) in the order of the tiles: dtype [tiles][16][k], so that
 *          a piece of whole tiles may be uploaded and packed while the next is read; where matrix_cuda_output knows no output the row
 *          may hold anything. Or parts of DTYPE_SYNTHETIC and one seed, made here
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
    int tile, tiles;
    void *to;     /* the matrix's data, from its first tile on */
    float *scale; /* NULL unless FP8 */
};
KERN_API int pack_cuda(const struct pack *a, void *stream);
#endif
