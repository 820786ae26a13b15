/* summary_score: what a row of the summary says of scored answers. */
#ifndef EXPERIMENTS_SUMMARY_SCORE_H
#define EXPERIMENTS_SUMMARY_SCORE_H
#include "experiments/summary.h"

/* A request and what it is sorted by. */
struct summary_item {
    int64_t row, partner; /* partner: the baseline arm's answer to the same request, -1: none */
    const char *group;
    int32_t arm, prompt; /* prompt: index of the prompt, over turns */
    uint32_t request;
};

/* items [n]: all of one arm and group, ordered by prompt; t holds scores. ERR_MEMORY. */
int  summary_score(struct summary_scores *out, const struct trace *t, const struct summary_item *items, int64_t n,
                   const struct stats_resampling *r);
#endif
