/* gemm and swiglu in plain loops with double sums. */
#include "kernels/gemm.h"
#include <math.h>

/* Panel and lane hold output `output`, whose scale it is. */
static double dot(const struct gemm *a, size_t panel, int lane, int output, int row)
{
    const struct matrix *w = a->w;
    const bf16 *p = (const bf16 *)w->data + panel * (((size_t)w->k + 1) / 2) * 2 * MATRIX_PANEL;
    const float *x = (const float *)a->x + (size_t)row * (size_t)w->k;
    double sum = 0;
    for (int i = 0; i < w->k; i++)
        sum += (double)bf16_to_f32(p[((size_t)(i / 2) * MATRIX_PANEL + (size_t)lane) * 2 + i % 2]) * x[i];
    return sum * (w->scale ? w->scale[output] : 1) * (a->row_scale ? a->row_scale[row] : 1);
}

void gemm_ref(const struct gemm *a)
{
    for (int r = 0; r < a->rows; r++)
        for (int j = 0; j < a->w->n; j++) {
            float *y = (float *)a->y + (size_t)r * a->w->n + j;
            double sum = dot(a, (size_t)(j / MATRIX_PANEL), j % MATRIX_PANEL, j, r);
            *y = (float)(a->accumulate ? *y + sum : sum);
        }
}

/* Output j of G stands in panel 2 (j / 16), that of U in the next. */
void swiglu_ref(const struct gemm *a)
{
    int m = a->w->n / 2;
    for (int r = 0; r < a->rows; r++)
        for (int j = 0; j < m; j++) {
            size_t panel = (size_t)(j / MATRIX_PANEL) * 2;
            double g = dot(a, panel, j % MATRIX_PANEL, j, r),
                   u = dot(a, panel + 1, j % MATRIX_PANEL, m + j, r);
            ((float *)a->y)[(size_t)r * m + j] = (float)(g / (1 + exp(-g)) * u);
        }
}
