/* One pass over the steps of a request, a few additions each; every ratio is taken once, at the end, over
 * pooled sums (a mean of per-request ratios weights short answers more and is a different number). */
#include "experiments/metrics.h"
#include "experiments/trace_lean.h"
#include "spec/loop.h"
#include <math.h>
#include <stddef.h>

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

static int clamp_depth(int d)
{
    return d < METRICS_MAX_DEPTH ? d : METRICS_MAX_DEPTH;
}

void metrics_add(struct metrics_sums *into, const struct metrics_sums *x)
{
    into->requests += x->requests;
    into->tokens += x->tokens;
    into->prompt_tokens += x->prompt_tokens;
    into->steps += x->steps;
    into->drafted_steps += x->drafted_steps;
    into->proposed += x->proposed;
    into->accepted += x->accepted;
    into->emitted += x->emitted;
    into->later_steps += x->later_steps;
    into->later_tokens += x->later_tokens;
    for (int d = 1; d <= METRICS_MAX_DEPTH; d++) {
        into->at_depth[d] += x->at_depth[d];
        into->tried_depth[d] += x->tried_depth[d];
        into->accepted_depth[d] += x->accepted_depth[d];
    }
    into->ns_decode += x->ns_decode;
    into->ns_first += x->ns_first;
    into->ns_prefill += x->ns_prefill;
    into->identical += x->identical;
    into->compared += x->compared;
}

static void add_step(struct metrics_sums *m, const struct trace_step *s)
{
    m->steps++;
    m->drafted_steps += s->proposed > 0;
    m->proposed += s->proposed;
    m->accepted += s->accepted;
    m->emitted += s->emitted;
    if (!(s->flags & STEP_FIRST)) {
        m->later_steps++;
        m->later_tokens += s->emitted;
    }
    int depth = clamp_depth(s->depth), accepted = clamp_depth(s->accepted);
    for (int d = 1; d <= depth; d++) {
        m->at_depth[d]++;
        m->tried_depth[d] += accepted >= d - 1;
    }
    for (int d = 1; d <= accepted; d++)
        m->accepted_depth[d]++;
}

void metrics_request(struct metrics_sums *m, const struct trace *t, int64_t request)
{
    const struct trace_request *r = &t->requests[request];
    m->requests++;
    m->tokens += r->tokens;
    m->prompt_tokens += r->prompt_tokens;
    m->ns_decode += (double)r->ns_decode;
    m->ns_first += (double)r->ns_first;
    m->ns_prefill += (double)r->ns_prefill;
    for (int64_t i = 0; i < r->steps; i++) {
        const struct trace_step s = trace_step_at(t, r->step_begin + i);
        add_step(m, &s);
    }
}

/* Spec-Bench, evaluation/speed.py: mean over pooled steps of new tokens a step, bonus included. SGLang's
 * accept_length is completion_tokens / spec_verify_ct, whose numerator also holds a token of the prefill;
 * here the first token comes out of a step. */
double metrics_al(const struct metrics_sums *m)
{
    return ratio((double)(m->accepted + m->steps), (double)m->steps);
}

/* TensorRT-LLM's forced number of accepted tokens counts this way: draft tokens alone. */
double metrics_al_no_bonus(const struct metrics_sums *m)
{
    return ratio((double)m->accepted, (double)m->steps);
}

/* vLLM, v1/spec_decode/metrics.py: 1 + accepted / drafts, where a step without a draft is no draft. Also
 * llama.cpp, speculators. */
double metrics_al_drafted(const struct metrics_sums *m)
{
    return 1 + ratio((double)m->accepted, (double)m->drafted_steps);
}

/* Tokens of text a step: what a step was worth to the reader. */
double metrics_tokens_per_step(const struct metrics_sums *m)
{
    return ratio((double)m->emitted, (double)m->steps);
}

/* vLLM, v1/spec_decode/metrics.py: accepted / draft tokens. On a tree the denominator holds siblings of which
 * one at most can be accepted, so the number is the share of verified work that was kept, and not comparable
 * with a chain's. */
double metrics_acceptance_rate(const struct metrics_sums *m)
{
    return ratio((double)m->accepted, (double)m->proposed);
}

/* vLLM, v1/spec_decode/metrics.py: times position d was accepted / drafts. Never rises with d. */
double metrics_unconditional(const struct metrics_sums *m, int d)
{
    if (d < 1 || d > METRICS_MAX_DEPTH)
        return NAN;
    return ratio((double)m->accepted_depth[d], (double)m->drafted_steps);
}

/* EAGLE's n-alpha, SPEED-Bench's and DeepSpec's rates: acceptance at d given that d - 1 were accepted and d
 * was proposed. */
double metrics_conditional(const struct metrics_sums *m, int d)
{
    if (d < 1 || d > METRICS_MAX_DEPTH)
        return NAN;
    return ratio((double)m->accepted_depth[d], (double)m->tried_depth[d]);
}

int metrics_depth(const struct metrics_sums *m)
{
    int d = METRICS_MAX_DEPTH;
    while (d > 0 && !m->at_depth[d])
        d--;
    return d;
}

/* 1 / TPOT, with TPOT = (end to end - TTFT) / (tokens - those that came with the first): fair to steps of
 * many tokens, where the gap between chunks is not. */
double metrics_tokens_per_s(const struct metrics_sums *m)
{
    return ratio(1e9 * (double)m->later_tokens, m->ns_decode);
}

double metrics_speedup_bound(const struct metrics_sums *m)
{
    return ratio((double)m->later_tokens, (double)m->later_steps);
}

double metrics_identical(const struct metrics_sums *m)
{
    return ratio((double)m->identical, (double)m->compared);
}

void metrics_scores_add(struct metrics_scores *into, const struct metrics_scores *x)
{
    into->tokens += x->tokens;
    into->top1 += x->top1;
    into->agree += x->agree;
    into->nll += x->nll;
    into->entropy += x->entropy;
    into->kl += x->kl;
}

void metrics_scores_request(struct metrics_scores *m, const struct trace *t, int64_t request)
{
    const struct trace_request *r = &t->requests[request];
    for (int64_t i = 0; i < r->tokens; i++) {
        const struct trace_score *s = &t->scores[r->score_begin + i];
        m->tokens++;
        m->top1 += s->top1 != 0;
        m->agree += s->agree != 0;
        m->nll -= (double)s->log_p;
        m->entropy += (double)s->entropy;
        m->kl += (double)s->kl;
    }
}

double metrics_perplexity(const double *sums)
{
    return exp(ratio(sums[0], sums[1]));
}

double metrics_perplexity_ratio(const double *sums)
{
    return exp(ratio(sums[0], sums[1]) - ratio(sums[2], sums[3]));
}
