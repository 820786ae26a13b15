/* run_model: what decodes in a run: backend, weights, tokenizer, chat template. Cells of a sweep share it as long as they name the same
 * model and device. */
#ifndef EXPERIMENTS_RUN_MODEL_H
#define EXPERIMENTS_RUN_MODEL_H
#include "engine/chat.h"
#include "engine/ranks.h"
#include "experiments/config.h"

struct run_model {
    struct backend be;          /* of rank 0; owned, as all below */
    struct model model;
    struct ranks *ranks;        /* all of them: device.world, mostly 1 */
    struct tokenizer *tokenizer;
    struct chat chat;
    char *key;                  /* the configuration it was opened for; NULL: closed */
};

/* Opens what cfg names, unless that is what is open already. No loop may be open: memory of the cells before is given back by opening the
 * device again, once it is more than 1 GiB. */
int  run_model_open(struct run_model *m, const struct config *cfg);
void run_model_close(struct run_model *m); /* a zeroed struct is fine */
/* Most tokens of one text: the model's positions, or model.max_context if that is less. */
int  run_model_context(const struct run_model *m, const struct config *cfg);
/* What the run says of itself, status "running"; the texts are the caller's (trace_meta_deinit). */
struct trace_meta;
int  run_model_meta(const struct run_model *m, const struct config *cfg, const char *slice, struct trace_meta *out);
#endif
