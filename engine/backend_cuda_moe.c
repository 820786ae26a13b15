/* backend_cuda_moe: layers of routed experts (kernels/moe_cuda.h). */
#include "engine/backend_cuda.h"
#include "engine/err.h"
#include "kernels/moe_cuda.h"

static int check_experts(const struct backend *be, int experts)
{
    if (experts <= MOE_EXPERTS)
        return 0;
    FAIL(ERR_LIMIT,
         "a layer of %d experts cannot be computed on %s: expected at most %d; device cpu computes it",
         experts, be->device, MOE_EXPERTS);
}

static int check_forms(const struct backend *be, const struct moe *a)
{
    int equal = 1;
    for (int i = 1; i < a->experts; i++)
        equal &= a->gate_up[i].form == a->gate_up->form && a->down[i].form == a->down->form;
    if (equal)
        return 0;
    FAIL(ERR_LIMIT,
         "a layer of experts cannot be computed on %s: expected all routed experts in one form, found BF16 "
         "beside FP8: model.weights fp8 rounds all of them",
         be->device);
}

int cuda_route(struct backend *be, const struct route *a)
{
    const struct cuda_launch what = {"route", a->product.rows, a->product.w->n, a->product.w->k};
    TRY(check_experts(be, a->product.w->n));
    if (!a->product.bulk)
        return cuda_launched(be, route_cuda(a, cuda_of(be)->stream), what);
    TRY(cuda_bulk_gemm(be, &a->product));
    return cuda_launched(be, route_choose_cuda(a, cuda_of(be)->stream), what);
}

int cuda_moe(struct backend *be, const struct moe *a)
{
    const struct matrix *w = a->shared.gate_up;
    TRY(check_experts(be, a->experts));
    TRY(check_forms(be, a));
    return cuda_launched(be, moe_cuda(a, cuda_of(be)->stream),
                         (struct cuda_launch){"moe", a->rows, w->n, w->k});
}

size_t cuda_moe_bytes(const struct backend *be, int rows, int hidden, int ffn, int experts, int top_k)
{
    (void)be;
    (void)experts;
    return moe_cuda_scratch(rows, hidden, ffn, top_k);
}
