/* baseline: which arm another is compared with: the plain one that agrees in everything else. Plain is strategy `none`, and the rest all
 * but the draft section; where answers were scored, plain is a model with its numbers as stored, and the rest all but those. */
#ifndef EXPERIMENTS_BASELINE_H
#define EXPERIMENTS_BASELINE_H
#include "experiments/trace.h"

/* baseline [n_arms]: row of the arm to compare with, -1: there is none. The first arm that fits is taken. Where nothing agrees but the
 * file has exactly one plain arm, that one is taken, and mixed[i] (may be NULL) says 1. ERR_MEMORY. */
int baseline_find(const struct trace *t, int *baseline, int *mixed);
#endif
