/* analyze_bins: the axes of metrics_bins.h, arm by arm, with an interval for each bin. A prompt is a cluster,
 * as everywhere. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/metrics_bins.h"
#include "experiments/trace_order.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_bin_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, V},
    {"axis", "against", "", TABLE_TEXT, 0, V},
    {"bin", "bin", "", TABLE_TEXT, 0, V},
    {"from", "", "", TABLE_REAL, 2, 0},
    {"to", "", "", TABLE_REAL, 2, 0},
    {"prompts", "prompts", "", TABLE_COUNT, 0, V},
    {"count", "steps", "or nodes", TABLE_COUNT, 0, V},
    {"al", "AL, tokens/step", "[95 %]", TABLE_INTERVAL, 2, V},
    {"rate", "accepted of judged", "[95 %]", TABLE_INTERVAL, 3, V},
    {"mean", "mean of", "the axis", TABLE_REAL, 3, V},
    {"ece", "ECE", "", TABLE_REAL, 4, V},
};
const int analyze_n_bin_columns = sizeof analyze_bin_columns / sizeof *analyze_bin_columns;

const char analyze_bin_legend[] =
    "turn, context (tokens before the step): over steps. entropy (nats, of the target where it judged), "
    "confidence (of the draft), rank "
    "(under the target): over nodes whose parent was accepted, so the rate is conditional. A calibrated "
    "draft's rate is its "
    "mean confidence; ECE is the mean distance between them, weighted by nodes, in ten bins.";

/* The prompts of one arm and what fell into each bin: bins [prompts, METRICS_BINS]. */
struct clusters {
    struct metrics_bin *bins; /* owned */
    int64_t n;
};

static int is_of_arm(const void *arm, const struct trace_request *q)
{
    return q->arm == *(const int *)arm;
}

static int gather(struct clusters *c, const struct trace *t, int arm, enum metrics_axis axis)
{
    int64_t n;
    struct trace_place *at = trace_by_prompt(t, is_of_arm, &arm, &n);
    c->n = 0;
    c->bins = calloc((size_t)n * METRICS_BINS + 1, sizeof *c->bins);
    if (!at || !c->bins) {
        free(at);
        FAIL(ERR_MEMORY, "%s: no memory for the bins of %lld requests", t->path, (long long)n);
    }
    for (int64_t i = 0; i < n; i++) {
        c->n += i == 0 || at[i].prompt != at[i - 1].prompt;
        metrics_bin_request(c->bins + (c->n - 1) * METRICS_BINS, axis, t, at[i].row);
    }
    free(at);
    return 0;
}

static void total(const struct clusters *c, struct metrics_bin *sums)
{
    memset(sums, 0, METRICS_BINS * sizeof *sums);
    for (int64_t i = 0; i < c->n * METRICS_BINS; i++) {
        sums[i % METRICS_BINS].n += c->bins[i].n;
        sums[i % METRICS_BINS].hits += c->bins[i].hits;
        sums[i % METRICS_BINS].sum += c->bins[i].sum;
    }
}

static void bin_name(enum metrics_axis axis, int b, char *buf, size_t n)
{
    double from = metrics_bin_from(axis, b), to = metrics_bin_to(axis, b);
    int whole = axis == METRICS_TURN || axis == METRICS_CONTEXT || axis == METRICS_RANK;
    if (isinf(to))
        snprintf(buf, n, axis == METRICS_CONFIDENCE ? "%g to 1" : "%g or more", from);
    else if (whole && to == from + 1)
        snprintf(buf, n, "%g", from);
    else
        snprintf(buf, n, "%g to %g", from, whole ? to - 1 : to);
}

/* x: room for [n, 2]. */
static int fill_bin(struct table *x, const struct analyze_report *r, const struct clusters *c,
                    enum metrics_axis axis, int b, double *rows)
{
    struct stats_interval rate;
    int64_t prompts = 0;
    double sum = 0, n = 0;
    for (int64_t i = 0; i < c->n; i++) {
        const struct metrics_bin *bin = &c->bins[i * METRICS_BINS + b];
        rows[2 * i] = bin->hits;
        rows[2 * i + 1] = bin->n;
        prompts += bin->n > 0;
        sum += bin->sum;
        n += bin->n;
    }
    TRY(stats_bootstrap(rows, c->n, 2, stats_ratio, &r->opts->summary.resampling, &rate));
    table_number(x, "from", metrics_bin_from(axis, b));
    table_number(x, "to", metrics_bin_to(axis, b));
    table_number(x, "prompts", (double)prompts);
    table_number(x, "count", n);
    table_interval(x, metrics_axis_is_of_nodes(axis) ? "rate" : "al", rate);
    table_number(x, "mean", sum / n);
    return 0;
}

static int fill_axis(struct table *x, const struct analyze_report *r, int arm, enum metrics_axis axis)
{
    struct clusters c = {0};
    struct metrics_bin sums[METRICS_BINS];
    double *rows = NULL;
    int begun = x->n_rows, rc = gather(&c, r->t, arm, axis);
    if (rc)
        goto out;
    total(&c, sums);
    rows = malloc(2 * (size_t)c.n * sizeof *rows + 1);
    if (!rows)
        rc = ERR_SET(ERR_MEMORY, "no memory for the bins of %lld prompts", (long long)c.n);
    for (int b = 0; b < METRICS_BINS && !rc && !metrics_bins_are_void(sums, axis); b++) {
        char name[64];
        if (!(sums[b].n > 0))
            continue;
        table_row(x);
        if (x->n_rows - 1 == begun && begun)
            table_break(x);
        table_text(x, "arm", r->t->arms[arm].label);
        table_text(x, "axis", metrics_axis_names[axis]);
        bin_name(axis, b, name, sizeof name);
        table_text(x, "bin", name);
        if (axis == METRICS_CONFIDENCE && x->n_rows - 1 == begun)
            table_number(x, "ece", metrics_ece(sums));
        rc = fill_bin(x, r, &c, axis, b, rows);
    }
out:
    free(rows);
    free(c.bins);
    return rc;
}

int analyze_fill_bins(struct table *x, struct analyze_report *r)
{
    for (int axis = 0; axis < METRICS_AXES; axis++) {
        if (!(r->opts->axes >> axis & 1))
            continue;
        int missing = metrics_axis_is_of_nodes((enum metrics_axis)axis) && !r->t->n_judged;
        if (missing && r->opts->tolerant)
            continue;
        if (missing)
            FAIL(ERR_CONFIG,
                 "%s: expected nodes for the breakdown by %s, but its trace level is %s; run with --set "
                 "trace.level=%s",
                 r->t->path, metrics_axis_names[axis], r->t->meta.trace_level,
                 axis == METRICS_ENTROPY ? "full" : "nodes");
        int before = x->n_rows;
        for (int64_t arm = 0; arm < r->t->n_arms; arm++)
            TRY(fill_axis(x, r, (int)arm, (enum metrics_axis)axis));
        if (x->n_rows == before && !r->opts->tolerant)
            FAIL(ERR_CONFIG, "%s: no arm has a value for the breakdown by %s: %s", r->t->path,
                 metrics_axis_names[axis],
                 axis == METRICS_ENTROPY ? "run with --set trace.level=full"
                                         : "its drafts come without probabilities");
    }
    return 0;
}
