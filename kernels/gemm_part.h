/* gemm_part: the elements of a part of a matrix, as the packers of the host read them, and the scale of an FP8 output. */
#ifndef KERNELS_GEMM_PART_H
#define KERNELS_GEMM_PART_H
#include "kernels/fp8.h"
#include "kernels/gemm.h"
#include "kernels/synthetic.h"

/* Element i of the part, rounded to bf16; of FP8 the number without its scale, which bf16 holds exactly. */
static inline bf16 gemm_part_at(const struct matrix_part *p, size_t i)
{
    if (p->dtype == DTYPE_SYNTHETIC)
        return synthetic_at(p->data, i);
    if (p->dtype == DTYPE_FP8)
        return bf16_from_f32(fp8_to_f32(((const uint8_t *)((const struct scaled *)p->data)->numbers)[i]));
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

/* Elements [first, first + n); a Philox call serves all it covers. */
static inline void gemm_part_read(const struct matrix_part *p, size_t first, int n, bf16 *out)
{
    if (p->dtype != DTYPE_SYNTHETIC) {
        for (int i = 0; i < n; i++)
            out[i] = gemm_part_at(p, first + (size_t)i);
        return;
    }
    const struct synthetic *s = p->data;
    struct philox4 four = synthetic_four(s, first / 4);
    for (int i = 0; i < n; i++) {
        const size_t at = first + (size_t)i;
        if (i > 0 && at % 4 == 0)
            four = synthetic_four(s, at / 4);
        out[i] = bf16_from_f32(synthetic_normal(four.v[at % 4], s->scale));
    }
}

/* Where part `part` of a source lies. */
static inline struct matrix_view gemm_part_view(const struct matrix_source *from, int part)
{
    return from->views ? from->views[part] : (struct matrix_view){0, (size_t)from->k, 1, 0, 0};
}

/* Numbers (row, col) .. (row, col + n - 1); col may lie left of the part's first. */
static inline void gemm_part_row(const struct matrix_part *p, const struct matrix_view *v, int row, int col, int n, bf16 *out)
{
    const size_t start = v->first + (size_t)row * v->row_step;
    const size_t first = col < 0 ? start - (size_t)-col * v->col_step : start + (size_t)col * v->col_step;
    if (v->col_step == 1)
        gemm_part_read(p, first, n, out);
    else
        for (int i = 0; i < n; i++)
            out[i] = gemm_part_at(p, first + (size_t)i * v->col_step);
}

/* Of an output whose largest magnitude is `most`. */
KERN_FN float gemm_part_scale(float most)
{
    return most > 0 ? most / FP8_MAX : 1.0f;
}
#endif
