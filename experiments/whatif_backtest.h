/* whatif_backtest: a prediction is worth what it is worth against a run: some of the variants are run, plain decoding beside each on the same
 * prompts, and held against what was predicted of them. */
#ifndef EXPERIMENTS_WHATIF_BACKTEST_H
#define EXPERIMENTS_WHATIF_BACKTEST_H
#include "experiments/whatif.h"

struct whatif_measured {
    int variant;                  /* of struct whatif */
    int64_t steps, tokens;        /* of its run, over the requests that were replayed */
    struct stats_interval speedup; /* measured: over the plain arm of the same run */
    int exact, inside;            /* 1: as many steps and tokens as predicted; the measured speed-up lies in the predicted interval */
};

/* Run every variant that drafts, or n of them at even distances; out [n], *made how many. Runs in the working directory, which the
 * configuration's paths are relative to; results go to a folder of their own under /tmp that is removed. Errors of run_experiment. */
int whatif_backtest(const struct whatif *w, const struct stats_resampling *how, int n, struct whatif_measured *out, int *made);
#endif
