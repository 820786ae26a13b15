/* model_plan: what a rank would load, by kind of matrix, without loading it: headers, norms and scales are read, weights are not.
 * Missing, extra and misshapen tensors are the errors of model_load. */
#ifndef ENGINE_MODEL_PLAN_H
#define ENGINE_MODEL_PLAN_H
#include "engine/model.h"
#include <stdio.h>

enum { MODEL_PLAN_KINDS = 12 };
struct model_plan {
    struct model_config cfg;
    struct model_part part;
    struct {
        const char *name;
        int count, n, k; /* so many matrices [n, k] */
        enum matrix_form form;
        size_t bytes;    /* of all of them */
    } kind[MODEL_PLAN_KINDS];
    int kinds;
    size_t weights; /* bytes of all that a rank keeps of the model, norms included */
    size_t kv_cell; /* bytes of a cached position of one sequence */
};

/* A backend that keeps nothing and counts what it is given, as one of kind `device` would. */
void model_plan_backend(struct backend *be, const char *device);
/* device: "cpu" or "cuda", which need not be there. From a directory, or, dir NULL, of random weights of the shape. */
int  model_plan(struct model_plan *plan, const char *device, const char *dir, const struct model_config *shape,
                const struct model_opts *opts);
/* A table; cells: cached positions a sequence, of so many sequences, 0: not known; room: free bytes on the device, SIZE_MAX: not known. */
void model_plan_print(const struct model_plan *plan, struct shard shard, int sequences, int cells, size_t room, FILE *out);
#endif
