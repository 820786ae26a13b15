/* moe_round: what FP8 experts multiply, rounded before their products (kernels/quantise.h). A static scale belongs
 * to an expert and takes the score with it, so routed rows then become a row for each choice, between the input
 * and the sums:
 *   x[i, :] = e4m3(from[i / top_k, :] * 1 / rms * score[i] / input_scale of expert[i]) */
#ifndef KERNELS_MOE_ROUND_CUH
#define KERNELS_MOE_ROUND_CUH
#include "kernels/moe_cuda.h"

/* Scratch: acts between the products and the scales of all that is rounded. */
struct moe_room {
    char *x;         /* of a block of a bulk pass */
    char *rounded;   /* x where others multiply it as it is, or a row of it for each choice */
    char *h[2];
    float *scale[2]; /* of x, then of h: a row of the shared expert, a choice of the others */
    size_t bytes;
};

/* How a product's weights are kept, of the shared expert and of the routed ones, and what they multiply. */
struct moe_forms {
    enum matrix_form w[2];
    enum act_form x;
    int rounds[2]; /* it is rounded first */
    int fixed;     /* by static scales */
};

/* Launches. x in place if all weights that multiply it are FP8, else to m->rounded for those that are; by static
 * scales the routed experts' rows always stand there, made first. The hidden rows in place. */
int moe_round_input(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream);
int moe_round_hidden(const struct moe *a, const struct moe_room *m, const struct moe_forms *forms, void *stream);
#endif
