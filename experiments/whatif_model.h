/* whatif_model: the time of a step that was not taken, and how wrong that is on the steps that were. */
#ifndef EXPERIMENTS_WHATIF_MODEL_H
#define EXPERIMENTS_WHATIF_MODEL_H
#include "experiments/trace.h"
#include "experiments/whatif_cost.h"

/* What a step takes besides its pass, seconds: drafting, accepting, the host. */
struct whatif_rest {
    double fixed, per_depth;
};

struct whatif_model {
    const struct whatif_costs *costs; /* borrowed; NULL: no times, only acceptance */
    double factor;                    /* what the passes of the trace's later steps took over what the table says */
    double error;                     /* relative: root mean square over arms of their residual, its noise, and the spread of a pass */
};

/* t holds steps in full. ERR_CONFIG: scored answers, passes that are shared, more rows than the table has. */
int  whatif_model_init(struct whatif_model *m, const struct trace *t, const struct whatif_costs *costs);
/* From the first arm of the strategy; zero when there is none. */
void whatif_rest_of(const struct trace *t, const char *strategy, struct whatif_rest *rest);
/* A step over n tokens, seconds: factor * its pass + the rest. depth: of its draft. */
double whatif_step_seconds(const struct whatif_model *m, const struct whatif_rest *rest, int rows, int depth, int n);
#endif
