/* join: result files of one run, such as its slices, as one trace. */
#ifndef EXPERIMENTS_JOIN_H
#define EXPERIMENTS_JOIN_H
#include "experiments/trace.h"

/* Moves the arms, prompts, requests, steps and scores of part into `into` (zeroed at first) and leaves part empty; other rows are dropped. Arms
 * are matched by label and configuration. Clocks are set one behind the other: requests of two files never overlap in time. Of what
 * the files say of themselves, differing values are listed ("cpu A, cpu B"); the status is the least finished one.
 * ERR_CONFIG naming what differs when schema, model fingerprint or configuration do; ERR_MEMORY. Either way both are fit for
 * trace_deinit. */
int join_append(struct trace *into, struct trace *part);
#endif
