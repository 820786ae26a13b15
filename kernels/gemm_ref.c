/* gemm and swiglu in plain loops with double sums. */
#include "kernels/gemm.h"
#include <math.h>

/* Output j of an interleaved matrix stands in panel 2 (j / 16) for G and the next for U. */
static double dot(const struct matrix *w, size_t panel, int lane, const float *x)
{
    const bf16 *p = (const bf16 *)w->data + panel * (((size_t)w->k + 1) / 2) * 2 * MATRIX_PANEL;
    double sum = 0;
    for (int i = 0; i < w->k; i++)
        sum += (double)bf16_to_f32(p[((size_t)(i / 2) * MATRIX_PANEL + (size_t)lane) * 2 + i % 2]) * x[i];
    return sum;
}

void gemm_ref(const struct gemm *a)
{
    for (int r = 0; r < a->rows; r++)
        for (int j = 0; j < a->w->n; j++) {
            float *y = (float *)a->y + (size_t)r * a->w->n + j;
            double sum = dot(a->w, (size_t)(j / MATRIX_PANEL), j % MATRIX_PANEL,
                             (const float *)a->x + (size_t)r * a->w->k);
            *y = (float)(a->accumulate ? *y + sum : sum);
        }
}

void swiglu_ref(const struct gemm *a)
{
    int m = a->w->n / 2;
    for (int r = 0; r < a->rows; r++)
        for (int j = 0; j < m; j++) {
            const float *x = (const float *)a->x + (size_t)r * a->w->k;
            size_t panel = (size_t)(j / MATRIX_PANEL) * 2;
            double g = dot(a->w, panel, j % MATRIX_PANEL, x), u = dot(a->w, panel + 1, j % MATRIX_PANEL, x);
            ((float *)a->y)[(size_t)r * m + j] = (float)(g / (1 + exp(-g)) * u);
        }
}
