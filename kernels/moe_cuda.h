/* moe_cuda: the launchers of kernels/moe.h, as in kernels/cuda.h, for any number of rows, 64 at a time: in bulk that reads weights once a 64 rows.
 * needs    at most MOE_EXPERTS experts; the routed gate_up, and the routed down, of one form, the shared ones of any; x as moe_act_form
 *          says; router in BF16
 * round    x itself is rounded where all gate_up are FP8: it holds quantise's numbers after
 * bits     a row's depend on the row, its experts and their weights: not on other rows, their number or its place */
#ifndef KERNELS_MOE_CUDA_H
#define KERNELS_MOE_CUDA_H
#include "kernels/cuda.h"
#include "kernels/moe.h"

enum { MOE_EXPERTS = 128 };

KERN_API int route_cuda(const struct route *a, void *stream);
KERN_API int route_choose_cuda(const struct route *a, void *stream); /* the part behind the product, whose y holds the logits */
KERN_API int moe_cuda(const struct moe *a, void *stream);
KERN_API size_t moe_cuda_scratch(int rows, int hidden, int ffn, int top_k); /* bytes */
#endif
