/* weights: where the numbers of a model come from, one tensor at a time: a checkpoint or a seed. Used by model.c. */
#ifndef ENGINE_WEIGHTS_H
#define ENGINE_WEIGHTS_H
#include "engine/checkpoint.h"
#include "kernels/gemm.h"
#include "kernels/synthetic.h"

struct weights {
    struct checkpoint *ckpt; /* borrowed; NULL: random */
    uint64_t seed;
    uint32_t next;           /* random: number of the next tensor */
};

/* One tensor, valid until weights_drop and while it stays where it is: part.data may point into it. */
struct weight {
    struct matrix_part part;
    const struct tensor *tensor; /* borrowed from the checkpoint, or NULL */
    struct synthetic random;     /* what part.data is then */
};

/* A matrix [n, k]; random: N(0, 1/sqrt(k)), made where it is packed. Errors: those of checkpoint_take. */
int  weights_matrix(struct weights *from, const char *name, int n, int k, struct weight *out);
/* A vector [n] in f32, for the norms; random: 1 + N(0, 0.1). */
int  weights_vector(struct weights *from, const char *name, int n, float *out);
/* Gives its pages of the file back; a zeroed struct is fine. */
void weights_drop(const struct weights *from, struct weight *w);
#endif
