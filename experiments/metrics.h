/* metrics: every number of a table is a formula over the trace, and stands here once, with its source.
 * Definitions and where tools disagree: README, "What the numbers mean". */
#ifndef EXPERIMENTS_METRICS_H
#define EXPERIMENTS_METRICS_H
#include "experiments/trace.h"

enum { METRICS_MAX_DEPTH = 64 };

/* Sums over a set of steps and requests; everything else is a ratio of these. */
struct metrics_sums {
    int64_t requests, tokens, prompt_tokens, steps;
    int64_t drafted_steps;           /* steps that proposed at least one node */
    int64_t proposed, accepted, emitted;
    int64_t at_depth[METRICS_MAX_DEPTH + 1];       /* drafted steps whose tree reached depth d (d = 1..) */
    int64_t accepted_depth[METRICS_MAX_DEPTH + 1]; /* steps that accepted at least d nodes */
    int64_t ns_decode, ns_first, ns_prefill;
    int64_t identical, compared;     /* answers equal to the baseline's, answers that have a baseline */
};

void metrics_add(struct metrics_sums *into, const struct metrics_sums *x);
void metrics_request(struct metrics_sums *m, const struct trace *t, int64_t request); /* adds one request and its steps */

/* Tokens per verification pass, over all steps, bonus included: (accepted + steps) / steps. As verified, before cuts by stop or budget.
 * Spec-Bench's "mean accepted tokens", SGLang's accept_length up to the first token. */
double metrics_al(const struct metrics_sums *m);
double metrics_al_no_bonus(const struct metrics_sums *m); /* accepted / steps */
double metrics_al_drafted(const struct metrics_sums *m);  /* 1 + accepted / drafted steps: vLLM's mean acceptance length */
double metrics_acceptance_rate(const struct metrics_sums *m); /* accepted / proposed: vLLM's draft acceptance rate (chains) */
/* Position d: unconditional = steps that accepted >= d / drafted steps (vLLM); conditional = / steps that accepted >= d - 1 and had proposed depth >= d. */
double metrics_unconditional(const struct metrics_sums *m, int d);
double metrics_conditional(const struct metrics_sums *m, int d);
/* Decode tokens per second of one sequence: tokens after the first step over decode time. TTFT excluded. */
double metrics_tokens_per_s(const struct metrics_sums *m);
#endif
