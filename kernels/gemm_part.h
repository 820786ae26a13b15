/* gemm_part: one element of a part of a matrix, as both packers read it. */
#ifndef KERNELS_GEMM_PART_H
#define KERNELS_GEMM_PART_H
#include "kernels/gemm.h"

/* Element i of the part, rounded to bf16. */
static inline bf16 gemm_part_at(const struct matrix_part *p, size_t i)
{
    const char *at = (const char *)p->data + i * dtype_size(p->dtype);
    if (p->dtype == DTYPE_F32) {
        float f;
        memcpy(&f, at, sizeof f);
        return bf16_from_f32(f);
    }
    uint16_t h;
    memcpy(&h, at, sizeof h);
    return p->dtype == DTYPE_BF16 ? h : bf16_from_f32(f16_to_f32(h));
}
#endif
