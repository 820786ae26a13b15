/* pairs: which answers of two arms are to the same request: same prompt, turn and repeat. */
#ifndef EXPERIMENTS_PAIRS_H
#define EXPERIMENTS_PAIRS_H
#include "experiments/trace.h"

/* partner [n_requests]: the row of the answer that arm against[arm] gave to the same request, -1: none. against [n_arms]: an arm, its own
 * included, or -1. ERR_FORMAT when an arm answers a request twice; ERR_MEMORY. */
int pairs_find(const struct trace *t, const int *against, int64_t *partner);
#endif
