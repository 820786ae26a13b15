/* backend_cuda_rival: cuBLASLt's product of a shape, for `specbed bench`. Its operands would be row-major;
 * ours are lent as they lie, since the time does not depend on where a number stands. */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/gemm_lt.h"

enum { FP8_ROWS = 16 };

/* FP8 products have rows in multiples of 16: a caller with fewer would pad them. */
static struct gemm_lt_product product_of(const struct rival *a)
{
    const int fp8 = a->form == MATRIX_FP8;
    return (struct gemm_lt_product){.w = a->w,
                                    .x = a->x,
                                    .y = (char *)a->scratch + GEMM_LT_WORKSPACE,
                                    .n = a->n,
                                    .k = a->k,
                                    .rows = fp8 ? (a->rows + FP8_ROWS - 1) / FP8_ROWS * FP8_ROWS : a->rows,
                                    .in = fp8 ? GEMM_LT_FP8 : GEMM_LT_BF16,
                                    .out = GEMM_LT_F32,
                                    .accumulate = a->accumulate,
                                    .choice = a->choice,
                                    .workspace = a->scratch};
}

int cuda_rival_ask(struct backend *be, struct rival *a)
{
    const struct gemm_lt_product p = product_of(a);
    char why[GEMM_LT_WHY] = "";
    a->choices = 0;
    a->bytes = GEMM_LT_WORKSPACE + (size_t)p.rows * (size_t)p.n * sizeof(float);
    TRY(cuda_open_lt(cuda_of(be)));
    if (a->form == MATRIX_FP8 && (a->n % FP8_ROWS || a->k % FP8_ROWS))
        return 0;
    if (gemm_lt_choices(cuda_of(be)->lt, &p, &a->choices, why))
        FAIL(ERR_DEVICE, "cuda: %s", why);
    return 0;
}

int cuda_rival(struct backend *be, const struct rival *a)
{
    const struct gemm_lt_product p = product_of(a);
    char why[GEMM_LT_WHY] = "";
    if (gemm_lt_run(cuda_of(be)->lt, &p, cuda_of(be)->stream, why))
        FAIL(ERR_DEVICE, "cuda: %s", why);
    return 0;
}
