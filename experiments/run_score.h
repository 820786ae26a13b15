/* run_score: one cell of mode score: the answers of an earlier run, judged by this cell's model and compared with the same checkpoint as
 * stored. */
#ifndef EXPERIMENTS_RUN_SCORE_H
#define EXPERIMENTS_RUN_SCORE_H
#include "experiments/run_cell.h"

/* A cell whose model is open and whose arm has a row. */
struct score_cell {
    struct run *run;            /* borrowed, as all here */
    const struct config *cfg;
    const struct workload *work;
    const char *label;
    int arm;
    int64_t done, total;        /* requests in the file already, and all */
};

/* Requests that the file has already are not repeated. Returns early, without an error, when the user asked to stop.
 * ERR_CONFIG: workload.answers has no answer to a prompt, or is another model's. */
int  run_score(const struct score_cell *cell);
#endif
