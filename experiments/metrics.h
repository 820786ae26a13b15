/* metrics: every number of a table is a formula over the trace, and stands here once, with its source.
 * Definitions and where tools disagree: README, "What the numbers mean".
 *
 * Two views of a step, never mixed in one formula:
 *   as verified  proposed, accepted: what the rule said of the tree, even where the answer ended inside the accepted path
 *   as emitted   emitted: what became text, bonus included; less than accepted + 1 only in a step with STEP_STOP or STEP_BUDGET
 * Acceptance is a property of draft and target, so its formulas are as verified: their value does not depend on how long
 * answers were allowed to be. Speed is what a reader receives, so its formulas are as emitted.
 * The first step (STEP_FIRST) is a step like any other: the prompt's last token is the root of its tree. Only the decode
 * clock starts at its end.
 * A ratio whose denominator is zero is NaN, which tables show as "-". */
#ifndef EXPERIMENTS_METRICS_H
#define EXPERIMENTS_METRICS_H
#include "experiments/trace.h"

enum { METRICS_MAX_DEPTH = 64 };

/* Sums over a set of steps and requests; everything else is a ratio of these. Arrays are indexed by depth, [0] unused:
 * a step's accepted path of n nodes ends at depth n, on a chain and on a tree. Deeper than METRICS_MAX_DEPTH is not counted. */
struct metrics_sums {
    int64_t requests, tokens, prompt_tokens, steps;
    int64_t drafted_steps;           /* steps that proposed at least one node */
    int64_t proposed, accepted, emitted;
    int64_t later_steps, later_tokens; /* steps after the first, and what they emitted: what ns_decode times */
    int64_t at_depth[METRICS_MAX_DEPTH + 1];       /* drafted steps whose tree reached depth d (d = 1..) */
    int64_t tried_depth[METRICS_MAX_DEPTH + 1];    /* of these, the ones that accepted at least d - 1 nodes */
    int64_t accepted_depth[METRICS_MAX_DEPTH + 1]; /* steps that accepted at least d nodes */
    double ns_decode, ns_first, ns_prefill;        /* sums of whole ns: exact below 2^53 ns, 104 days */
    int64_t identical, compared;     /* answers equal to the baseline's (hash and length), answers that have a baseline */
};

void metrics_add(struct metrics_sums *into, const struct metrics_sums *x);
/* Adds one request and its steps; t holds steps. identical and compared are the caller's: they need two answers. */
void metrics_request(struct metrics_sums *m, const struct trace *t, int64_t request);

/* Tokens per verification pass, over all steps, bonus included: (accepted + steps) / steps. As verified, before cuts by stop or budget.
 * Spec-Bench's "mean accepted tokens", SGLang's accept_length up to the first token. */
double metrics_al(const struct metrics_sums *m);
double metrics_al_no_bonus(const struct metrics_sums *m); /* accepted / steps */
double metrics_al_drafted(const struct metrics_sums *m);  /* 1 + accepted / drafted steps: vLLM's mean acceptance length */
double metrics_tokens_per_step(const struct metrics_sums *m); /* emitted / steps: metrics_al as emitted */
double metrics_acceptance_rate(const struct metrics_sums *m); /* accepted / proposed: vLLM's draft acceptance rate (chains) */
/* Position d: unconditional = steps that accepted >= d / drafted steps (vLLM); conditional = / steps that accepted >= d - 1 and had proposed depth >= d.
 * On a tree, proposed depth is that of its deepest node, whichever branch it is on. */
double metrics_unconditional(const struct metrics_sums *m, int d);
double metrics_conditional(const struct metrics_sums *m, int d);
int metrics_depth(const struct metrics_sums *m); /* deepest tree of any step, at most METRICS_MAX_DEPTH */
/* Decode tokens per second of one sequence: tokens after the first step over decode time. TTFT excluded. */
double metrics_tokens_per_s(const struct metrics_sums *m);
/* Most times faster than plain decoding that these steps can be, as a step costs at least a plain one: tokens per later step. */
double metrics_speedup_bound(const struct metrics_sums *m);
double metrics_identical(const struct metrics_sums *m); /* identical / compared */

/* Sums over the tokens of scored answers. Every token counts once, whatever the length of its answer. */
struct metrics_scores {
    int64_t tokens, top1, agree;
    double nll, entropy, kl; /* nll: of -log p */
};
void metrics_scores_add(struct metrics_scores *into, const struct metrics_scores *x);
void metrics_scores_request(struct metrics_scores *m, const struct trace *t, int64_t request); /* t holds scores */
/* sums {nll, tokens}: exp(nll / tokens), Jelinek, Mercer, Bahl and Baker 1977; llama-perplexity's PPL, of answers instead of a corpus. */
double metrics_perplexity(const double *sums);
/* sums {nll, tokens, nll, tokens}: perplexity over another's; llama-perplexity's PPL(Q) / PPL(base). */
double metrics_perplexity_ratio(const double *sums);
#endif
