/* baseline: which arm another is compared with: the one of strategy `none` that agrees in everything but the draft section. */
#ifndef EXPERIMENTS_BASELINE_H
#define EXPERIMENTS_BASELINE_H
#include "experiments/trace.h"

/* baseline [n_arms]: row of the arm to compare with, -1: there is none. The first arm that fits is taken. Where nothing agrees but the
 * file has exactly one arm of strategy `none`, that one is taken, and mixed[i] (may be NULL) says 1. ERR_MEMORY. */
int baseline_find(const struct trace *t, int *baseline, int *mixed);
#endif
