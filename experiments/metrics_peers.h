/* metrics_peers: what other tools would have reported for the same steps. Their names collide (four things are called "acceptance length", three
 * "acceptance rate"), so every definition is one row of a table here: who computes it, what they call it, the formula in words of the
 * trace, and the function. `analyze --definitions` prints the table over a result.
 *
 * Where a definition rests on something that this loop does not have, the formula says what stands for it:
 *   prefill token  engines emit the first token from the prefill; here the first step emits it, with a verified draft. A step is a step.
 *   k              the number of draft tokens an engine was configured for: here the deepest tree of the arm (metrics_depth)
 * Text stops where a stop token, stop string or the budget cuts it: "tokens" are as emitted, "accepted" as verified (metrics.h). */
#ifndef EXPERIMENTS_METRICS_PEERS_H
#define EXPERIMENTS_METRICS_PEERS_H
#include "experiments/metrics.h"

/* Sums over requests beyond those of steps: means of requests are no function of pooled sums. */
struct metrics_peers {
    struct metrics_sums sums;
    int64_t answered;         /* requests with at least one step; the means below are over these unless said otherwise */
    int64_t drafted_requests; /* of these, the ones with at least one draft */
    double request_length;    /* sum of tokens / steps */
    double request_al_drafted, request_rate; /* over drafted requests: sums of metrics_al_drafted, metrics_acceptance_rate */
    double request_speed;     /* sum of tokens / (time to first token + decode time), tokens a second */
    int64_t timed_requests;   /* requests with a time, behind request_speed */
    int64_t last_tokens;      /* tokens after the first one of their answer */
    /* As tried_depth and accepted_depth, with a draft cut where a stop ended the answer inside it. */
    int64_t cut_tried[METRICS_MAX_DEPTH + 1], cut_accepted[METRICS_MAX_DEPTH + 1];
};
void metrics_peers_request(struct metrics_peers *m, const struct trace *t, int64_t request);

enum metrics_kind { METRICS_LENGTH, METRICS_SHARE, METRICS_RATE, METRICS_TIME, METRICS_TIMES }; /* tokens, 0..1, tokens/s, ms, x */

struct metrics_definition {
    const char *peers;   /* who reports it */
    const char *name;    /* as they call it */
    const char *formula; /* in words of the trace */
    enum metrics_kind kind;
    double (*value)(const struct metrics_peers *m, const struct metrics_peers *baseline); /* baseline: NULL without one */
};
extern const struct metrics_definition metrics_definitions[];
extern const int metrics_n_definitions;

/* Rates by position: d = 1, 2, ... */
struct metrics_position_definition {
    const char *peers, *name, *formula;
    double (*value)(const struct metrics_peers *m, int d);
};
extern const struct metrics_position_definition metrics_positions[];
extern const int metrics_n_positions;
#endif
