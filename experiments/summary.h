/* summary: the numbers of `specbed analyze`, one row for every arm and group of prompts, computed from a trace in memory. */
#ifndef EXPERIMENTS_SUMMARY_H
#define EXPERIMENTS_SUMMARY_H
#include "experiments/metrics.h"
#include "experiments/stats.h"

enum summary_by { SUMMARY_BY_NONE, SUMMARY_BY_CATEGORY, SUMMARY_BY_DATASET };

struct summary_opts {
    enum summary_by by;
    struct stats_resampling resampling;
};

struct summary_quantiles {
    double median, p90; /* ns; NaN: no values */
};

/* Of scored answers. Against the baseline: over the requests that both arms scored. */
struct summary_scores {
    struct metrics_scores sums;
    struct stats_interval perplexity; /* metrics_perplexity */
    struct stats_interval ratio;      /* metrics_perplexity_ratio to the baseline's; NaN: no baseline */
    struct stats_interval agreement;  /* agree / tokens: llama-perplexity's "same top p" */
    struct stats_interval kl;         /* kl / tokens: its mean KL divergence */
    double kl_p99;                    /* over tokens */
};

struct summary_row {
    int arm;
    int baseline;             /* the arm it is compared with, itself for that arm, -1: none there */
    int mixed;                /* 1: the baseline's settings differ in more than the draft, as baseline_find */
    const char *group;        /* borrowed from the trace; NULL: all prompts */
    struct metrics_sums sums; /* identical and compared are against the baseline */
    int64_t prompts;          /* distinct prompts: the clusters that are resampled */
    int64_t paired_prompts;   /* of these, the ones that the baseline answered too */
    int concurrency;          /* most sequences at once */
    struct stats_interval al; /* metrics_al */
    /* (later tokens / decode time) over the baseline's, both over the requests that both arms answered. Where answers are identical this
     * is the ratio of decode times, up to the tokens of the first step, which is not timed. */
    struct stats_interval speedup;
    double bound;             /* metrics_speedup_bound of the same requests */
    double aggregate;         /* tokens/s of all sequences together: tokens / time in which at least one request was running */
    struct summary_quantiles ttft; /* over requests: submission to first token */
    struct summary_quantiles step; /* over steps; a pass of several sequences counts once for each */
    struct summary_scores scores;  /* of a trace with scores, else zeroed */
};

struct summary {
    struct summary_row *rows; /* owned [n]: all prompts first, then group by group in alphabetical order, arms in the file's order */
    int n;
};

/* t holds steps and scores, and keeps what trace_read promises. ERR_FORMAT: one arm answers one request twice; ERR_MEMORY. */
int  summary_init(struct summary *s, const struct trace *t, const struct summary_opts *opts);
void summary_deinit(struct summary *s); /* a zeroed struct is fine */
#endif
