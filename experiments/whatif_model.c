/* A sum of two parts, each measured: the pass from the cost table, the rest from the run. One factor brings
 * the sum to the run's own pace. */
#include "experiments/whatif_model.h"
#include "engine/err.h"
#include <math.h>
#include <string.h>

static int find_arm(const struct trace *t, const char *strategy)
{
    for (int64_t i = 0; i < t->n_arms; i++)
        if (!strcmp(t->arms[i].strategy, strategy))
            return (int)i;
    return -1;
}

static int check_steps(const struct trace *t)
{
    if (!t->n_requests || trace_is_scored(t))
        FAIL(ERR_CONFIG, "%s: expected generated answers to replay, found none", t->path);
    for (int64_t i = 0; i < t->n_steps; i++)
        if (t->steps[i].pass_seqs > 1)
            FAIL(ERR_CONFIG,
                 "%s: /steps row %lld shares its pass with %d sequences: replay of time takes "
                 "workload.concurrency 1",
                 t->path, (long long)i, t->steps[i].pass_seqs - 1);
    return 0;
}

/* Time of a step besides its pass, seconds: drafting grows with depth for a chain and does not for the
 * others. */
void whatif_rest_of(const struct trace *t, const char *strategy, struct whatif_rest *rest)
{
    int arm = find_arm(t, strategy);
    double draft = 0, depth = 0, other = 0, n = 0;
    *rest = (struct whatif_rest){0, 0};
    for (int64_t i = 0; i < t->n_requests && arm >= 0; i++)
        for (int64_t k = 1; t->requests[i].arm == arm && k < t->requests[i].steps; k++) {
            const struct trace_step *s = &t->steps[t->requests[i].step_begin + k];
            draft += (double)s->ns_draft;
            depth += s->depth;
            other += (double)(s->ns_accept + s->ns_host);
            n++;
        }
    if (n < 1)
        return;
    rest->fixed = other / n / 1e9;
    if (!strcmp(strategy, "none") || !strcmp(strategy, "ngram") || depth < 1)
        rest->fixed += draft / n / 1e9;
    else
        rest->per_depth = draft / depth / 1e9;
}

double whatif_step_seconds(const struct whatif_model *m, const struct whatif_rest *rest, int rows, int depth,
                           int n)
{
    return m->factor * whatif_seconds(m->costs, rows, n - 1) + rest->fixed + rest->per_depth * depth;
}

static int check_rows(const struct trace *t, const struct whatif_costs *c)
{
    for (int64_t i = 0; i < t->n_steps; i++)
        if (t->steps[i].proposed + 1 > whatif_costs_max_rows(c))
            FAIL(ERR_CONFIG,
                 "%s: steps have up to %d rows and more, the cost table %d: measure it with more rows (-r)",
                 t->path, t->steps[i].proposed + 1, whatif_costs_max_rows(c));
    return 0;
}

/* Later steps of one arm: passes by the cost table and the rest by the run, in seconds, and what they took;
 * residuals of its requests. */
struct check {
    double passes, rest, actual, sum, squares, n;
};

/* factor 0: not known yet, no residuals. */
static struct check check_arm(const struct trace *t, const struct whatif_costs *c, int arm, double factor)
{
    struct check x = {0};
    struct whatif_rest besides;
    whatif_rest_of(t, t->arms[arm].strategy, &besides);
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        double passes = 0, rest = 0, actual = (double)q->ns_decode / 1e9;
        for (int64_t k = 1; q->arm == arm && k < q->steps; k++) {
            const struct trace_step *s = &t->steps[q->step_begin + k];
            passes += whatif_seconds(c, s->proposed + 1, s->position - 1);
            rest += besides.fixed + besides.per_depth * s->depth;
        }
        if (!(passes > 0 && actual > 0))
            continue;
        double r = factor > 0 ? log(actual / (factor * passes + rest)) : 0;
        x.passes += passes;
        x.rest += rest;
        x.actual += actual;
        x.sum += r;
        x.squares += r * r;
        x.n++;
    }
    return x;
}

/* What passes took over what the table says of them. */
static double find_factor(const struct trace *t, const struct whatif_costs *c)
{
    double passes = 0, actual = 0;
    for (int64_t a = 0; a < t->n_arms; a++) {
        struct check x = check_arm(t, c, (int)a, 0);
        passes += x.passes;
        actual +=
            fmax(x.actual - x.rest, x.actual / 100); /* a rest that takes nearly all says nothing of passes */
    }
    return passes > 0 ? actual / passes : 1;
}

/* How far arms are from the model: their residuals, and the noise of these. */
static double find_error(const struct trace *t, const struct whatif_costs *c, double factor)
{
    double error = 0, arms = 0, spread = whatif_spread(c);
    for (int64_t a = 0; a < t->n_arms; a++) {
        struct check x = check_arm(t, c, (int)a, factor);
        if (!(x.passes > 0))
            continue;
        double residual = log(x.actual / (factor * x.passes + x.rest)), mean = x.sum / x.n;
        double variance = x.n > 1 ? fmax(0, x.squares / x.n - mean * mean) / (x.n - 1) : 0;
        error += residual * residual + variance;
        arms++;
    }
    return sqrt((arms > 0 ? error / arms : 0) + spread * spread);
}

int whatif_model_init(struct whatif_model *m, const struct trace *t, const struct whatif_costs *costs)
{
    struct whatif_model made = {.costs = costs, .factor = NAN, .error = NAN};
    TRY(check_steps(t));
    if (costs) {
        TRY(check_rows(t, costs));
        made.factor = find_factor(t, costs);
        made.error = find_error(t, costs, made.factor);
    }
    *m = made;
    return 0;
}
