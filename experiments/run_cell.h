/* run_cell: one cell of a sweep, from its configuration to its last recorded answer. */
#ifndef EXPERIMENTS_RUN_CELL_H
#define EXPERIMENTS_RUN_CELL_H
#include "experiments/progress.h"
#include "experiments/run.h"
#include "experiments/run_model.h"
#include "experiments/workload.h"
#include <signal.h>

/* What the cells of a run share. */
struct run {
    const struct run_opts *opts;
    struct config cfg;             /* of the file, with its sweep */
    struct run_model with, reference; /* reference: mode score, what a model with FP8 numbers is compared with */
    struct record *record;
    struct progress progress;
    char *path, *slice;            /* owned: of the result; "0/1" */
    int64_t started;               /* monotonic clock, ns */
    const volatile sig_atomic_t *stop; /* how often the user asked to stop: 1 no new requests, 2 drop the active ones */
};

/* Requests that the file has already are not repeated. Returns early, without an error, when *stop is set. */
int  run_cell(struct run *r, int i);
int64_t run_count_requests(const struct workload *w, const struct config *cfg);
#endif
