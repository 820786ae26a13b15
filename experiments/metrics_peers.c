/* One function a formula. Names of source files are those of the tools' repositories in 2026. */
#include "experiments/metrics_peers.h"
#include "experiments/trace_lean.h"
#include "spec/loop.h"
#include <math.h>

static double ratio(double a, double b)
{
    return b > 0 ? a / b : NAN;
}

/* A draft that ran past the end of the answer is cut there: only the tokens that became text were tried. */
static void add_cut(struct metrics_peers *m, const struct trace_step *s)
{
    int ended = (s->flags & STEP_STOP) && s->emitted <= s->accepted;
    int depth = ended ? s->emitted : s->depth, accepted = ended ? s->emitted : s->accepted;
    for (int d = 1; d <= depth && d <= METRICS_MAX_DEPTH; d++) {
        m->cut_tried[d] += accepted >= d - 1;
        m->cut_accepted[d] += accepted >= d;
    }
}

void metrics_peers_request(struct metrics_peers *m, const struct trace *t, int64_t request)
{
    const struct trace_request *r = &t->requests[request];
    struct metrics_sums one = {0};
    metrics_request(&one, t, request);
    metrics_add(&m->sums, &one);
    m->last_tokens += r->tokens > 1 ? r->tokens - 1 : 0;
    if (r->ns_first + r->ns_decode > 0) {
        m->timed_requests++;
        m->request_speed += 1e9 * (double)r->tokens / ((double)r->ns_first + (double)r->ns_decode);
    }
    if (!one.steps)
        return;
    m->answered++;
    m->request_length += (double)r->tokens / (double)one.steps;
    if (one.drafted_steps) {
        m->drafted_requests++;
        m->request_al_drafted += metrics_al_drafted(&one);
        m->request_rate += metrics_acceptance_rate(&one);
    }
    for (int64_t i = 0; i < r->steps; i++) {
        const struct trace_step s = trace_step_at(t, r->step_begin + i);
        add_cut(m, &s);
    }
}

#define DEFINITION(name)                                                                                     \
    static double name(const struct metrics_peers *m, const struct metrics_peers *baseline)

/* EAGLE's tau as in the paper; Spec-Bench, evaluation/speed.py: mean accepted tokens. */
DEFINITION(al)
{
    (void)baseline;
    return metrics_al(&m->sums);
}

/* vLLM, v1/spec_decode/metrics.py; llama.cpp since #24536; speculators; InferenceX; ATOM. */
DEFINITION(al_drafted)
{
    (void)baseline;
    return metrics_al_drafted(&m->sums);
}

/* vLLM before #17908; TensorRT-LLM's forced number of accepted tokens. */
DEFINITION(al_no_bonus)
{
    (void)baseline;
    return metrics_al_no_bonus(&m->sums);
}

/* SGLang's server: completion tokens / spec_verify_ct since it started; SpecForge, bench_eagle3. */
DEFINITION(tokens_per_step)
{
    (void)baseline;
    return metrics_tokens_per_step(&m->sums);
}

/* SPEED-Bench's Average_AL, AIPerf's Acceptance Length, `specforge benchmark`, trtllm-bench, SGLang a
 * request. */
DEFINITION(mean_request)
{
    (void)baseline;
    return ratio(m->request_length, (double)m->answered);
}

DEFINITION(mean_request_drafted)
{
    (void)baseline;
    return ratio(m->request_al_drafted, (double)m->drafted_requests);
}

/* EAGLE's eagenerate returns the index of the last step, one less than their number, and users divide by it
 * (issues 160 and 195). */
DEFINITION(tokens_per_index)
{
    (void)baseline;
    return ratio((double)m->sums.emitted, (double)(m->sums.steps - m->answered));
}

/* vLLM's draft acceptance rate; llama.cpp; AIPerf. */
DEFINITION(rate)
{
    (void)baseline;
    return metrics_acceptance_rate(&m->sums);
}

DEFINITION(rate_mean_request)
{
    (void)baseline;
    return ratio(m->request_rate, (double)m->drafted_requests);
}

/* trtllm-bench: drafted = max_draft (iterations + 1) whatever was drafted; accepted = tokens - iterations
 * - 1. */
DEFINITION(rate_trtllm)
{
    (void)baseline;
    double drafted = (double)metrics_depth(&m->sums) * (double)m->sums.steps;
    return ratio((double)(m->sums.emitted - m->sums.steps), drafted);
}

/* NVIDIA's acceptance rate for SGLang: (accept_length - 1) / num_steps. */
DEFINITION(rate_of_k)
{
    (void)baseline;
    return ratio(metrics_tokens_per_step(&m->sums) - 1, metrics_depth(&m->sums));
}

/* AIPerf's Accepted per Verified: (accepted + 1) / (drafted + 1), pooled. */
DEFINITION(rate_of_verified)
{
    (void)baseline;
    return ratio((double)(m->sums.accepted + m->sums.steps), (double)(m->sums.proposed + m->sums.steps));
}

DEFINITION(speed_decode)
{
    (void)baseline;
    return metrics_tokens_per_s(&m->sums);
}

DEFINITION(speed_end_to_end)
{
    (void)baseline;
    return ratio(1e9 * (double)m->sums.tokens, m->sums.ns_first + m->sums.ns_decode);
}

/* vLLM's and GuideLLM's TPOT: (end to end - TTFT) / (tokens - 1), pooled. */
DEFINITION(tpot)
{
    (void)baseline;
    return ratio(m->sums.ns_decode / 1e6, (double)m->last_tokens);
}

/* vLLM's ITL before #28183: the gap between streamed chunks, whatever they hold. */
DEFINITION(chunk_gap)
{
    (void)baseline;
    return ratio(m->sums.ns_decode / 1e6, (double)m->sums.later_steps);
}

static double decode_time(const struct metrics_peers *m)
{
    return ratio(m->sums.ns_decode, (double)m->sums.later_tokens);
}

/* Spec-Bench, evaluation/speed.py: means over questions of new tokens / wall time, prefill included. */
DEFINITION(speedup_spec_bench)
{
    if (!baseline)
        return NAN;
    return ratio(ratio(m->request_speed, (double)m->timed_requests),
                 ratio(baseline->request_speed, (double)baseline->timed_requests));
}

DEFINITION(speedup_decode)
{
    return baseline ? ratio(decode_time(baseline), decode_time(m)) : NAN;
}

#undef DEFINITION

const struct metrics_definition metrics_definitions[] = {
    {"Spec-Bench, EAGLE's tau", "mean accepted tokens", "(accepted + steps) / steps", METRICS_LENGTH, al},
    {"vLLM, llama.cpp, speculators", "mean acceptance length", "1 + accepted / drafted steps", METRICS_LENGTH,
     al_drafted},
    {"vLLM before #17908", "acceptance length", "accepted / steps", METRICS_LENGTH, al_no_bonus},
    {"SGLang server, SpecForge", "accept length", "tokens / steps, pooled", METRICS_LENGTH, tokens_per_step},
    {"trtllm-bench, SPEED-Bench, AIPerf", "acceptance length", "tokens / steps, by request", METRICS_LENGTH,
     mean_request},
    {"vLLM, per request", "acceptance length", "1 + accepted / drafted, by request", METRICS_LENGTH,
     mean_request_drafted},
    {"EAGLE, as its users divide", "tau", "tokens / (steps - requests)", METRICS_LENGTH, tokens_per_index},
    {"vLLM, llama.cpp, AIPerf", "draft acceptance rate", "accepted / proposed", METRICS_SHARE, rate},
    {"vLLM, per request", "draft acceptance rate", "accepted / proposed, by request", METRICS_SHARE,
     rate_mean_request},
    {"trtllm-bench", "acceptance rate", "(tokens - steps) / (k steps)", METRICS_SHARE, rate_trtllm},
    {"NVIDIA for SGLang", "acceptance rate", "(tokens / steps - 1) / k", METRICS_SHARE, rate_of_k},
    {"AIPerf", "accepted per verified", "(accepted+steps) / (proposed+steps)", METRICS_SHARE,
     rate_of_verified},
    {"specbed", "speed, tokens/s", "later tokens / decode time", METRICS_RATE, speed_decode},
    {"wall clock", "throughput, tokens/s", "tokens / (TTFT + decode time)", METRICS_RATE, speed_end_to_end},
    {"vLLM, GuideLLM", "TPOT, ms", "decode time / (tokens - 1)", METRICS_TIME, tpot},
    {"vLLM before #28183", "ITL, ms", "decode time / later steps", METRICS_TIME, chunk_gap},
    {"Spec-Bench", "speed-up", "tokens / wall, by request, x base", METRICS_TIMES, speedup_spec_bench},
    {"specbed", "speed-up", "later tokens / decode, x base", METRICS_TIMES, speedup_decode},
};
const int metrics_n_definitions = sizeof metrics_definitions / sizeof *metrics_definitions;

/* vLLM, llama.cpp, speculators: out of all steps with a draft. */
static double unconditional(const struct metrics_peers *m, int d)
{
    return metrics_unconditional(&m->sums, d);
}

/* EAGLE's alpha.py, SPEED-Bench. */
static double conditional(const struct metrics_peers *m, int d)
{
    return metrics_conditional(&m->sums, d);
}

static int in_range(int d)
{
    return d >= 1 && d <= METRICS_MAX_DEPTH;
}

/* Out of the steps whose draft was long enough, whether or not they got there. */
static double of_proposed(const struct metrics_peers *m, int d)
{
    return in_range(d) ? ratio((double)m->sums.accepted_depth[d], (double)m->sums.at_depth[d]) : NAN;
}

/* DeepSpec's accept_rate@pos: the draft is cut at end-of-text before counting. */
static double conditional_cut(const struct metrics_peers *m, int d)
{
    return in_range(d) ? ratio((double)m->cut_accepted[d], (double)m->cut_tried[d]) : NAN;
}

const struct metrics_position_definition metrics_positions[] = {
    {"vLLM, llama.cpp, speculators", "unconditional", "accepted >= d / drafted steps", unconditional},
    {"EAGLE's n-alpha, SPEED-Bench", "conditional", "accepted >= d / accepted d - 1, tried d", conditional},
    {"per drafted position", "of proposed", "accepted >= d / proposed d", of_proposed},
    {"DeepSpec", "conditional, cut", "the same, a draft cut at a stop", conditional_cut},
};
const int metrics_n_positions = sizeof metrics_positions / sizeof *metrics_positions;
