/* Requests are sorted so that a row of the table is a run of neighbours and a prompt a run within it; then
 * one pass over the steps. 10^6 steps take about as long as sorting their times. */
#include "experiments/summary.h"
#include "engine/err.h"
#include "experiments/baseline.h"
#include "experiments/pairs.h"
#include "experiments/summary_score.h"
#include "experiments/trace_lean.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Everything a row needs while it is made; allocated once for the largest. */
struct work {
    const struct trace *t;
    const struct summary_opts *opts;
    int *baseline; /* owned [n_arms], as baseline_find */
    int *mixed;
    struct summary_item *items; /* owned [n_requests] */
    int64_t *partner;           /* owned [n_requests], as pairs_find */
    double *values;             /* owned [max(n_steps, 2 n_requests)] times to be sorted; starts and ends */
    double *al, *pair;          /* owned [n_requests, 2], [n_requests, 4] sums by prompt */
};

static int compare_table(const void *pa, const void *pb)
{
    const struct summary_item *a = pa, *b = pb;
    int c = a->group && b->group ? strcmp(a->group, b->group) : 0;
    if (c)
        return c;
    if (a->arm != b->arm)
        return a->arm < b->arm ? -1 : 1;
    if (a->prompt != b->prompt)
        return a->prompt < b->prompt ? -1 : 1;
    return (a->request > b->request) - (a->request < b->request);
}

static int index_requests(struct work *w)
{
    const struct trace *t = w->t;
    TRY(pairs_find(t, w->baseline, w->partner));
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *r = &t->requests[i];
        w->items[i] = (struct summary_item){.row = i,
                                            .partner = w->partner[i],
                                            .arm = r->arm,
                                            .prompt = t->prompts[r->prompt].index,
                                            .request = r->request};
    }
    return 0;
}

static struct summary_quantiles quantiles(double *x, int64_t n)
{
    return (struct summary_quantiles){stats_select(x, n, 0.5), stats_select(x, n, 0.9)};
}

static int compare_start(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Time in which at least one of the requests was running: the union of [submission, last token]. */
static double busy_ns(struct work *w, const struct summary_item *items, int64_t n)
{
    double(*span)[2] = (double(*)[2])w->values;
    for (int64_t i = 0; i < n; i++) {
        const struct trace_request *r = &w->t->requests[items[i].row];
        span[i][0] = (double)r->started;
        span[i][1] = (double)r->started + (double)r->ns_first + (double)r->ns_decode;
    }
    qsort(span, (size_t)n, sizeof *span, compare_start);
    double busy = 0, end = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        double from = fmax(span[i][0], end);
        if (span[i][1] > from) {
            busy += span[i][1] - from;
            end = span[i][1];
        }
    }
    return busy;
}

static void times(struct work *w, const struct summary_item *items, int64_t n, struct summary_row *row)
{
    const struct trace *t = w->t;
    double busy = busy_ns(w, items, n);
    row->aggregate = busy > 0 ? 1e9 * (double)row->sums.tokens / busy : NAN;
    for (int64_t i = 0; i < n; i++)
        w->values[i] = (double)t->requests[items[i].row].ns_first;
    row->ttft = quantiles(w->values, n);
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++) {
        const struct trace_request *r = &t->requests[items[i].row];
        for (int64_t s = 0; s < r->steps; s++)
            w->values[k++] = (double)trace_step_at(t, r->step_begin + s).ns_total;
    }
    row->step = quantiles(w->values, k);
}

/* Adds a pair of answers to its prompt's sums: later tokens and decode time of both arms. */
static void add_pair(const struct trace *t, const struct summary_item *it, double *sums,
                     struct metrics_sums *arm)
{
    struct metrics_sums plain = {0};
    metrics_request(arm, t, it->row);
    metrics_request(&plain, t, it->partner);
    sums[2] += (double)plain.later_tokens;
    sums[3] += plain.ns_decode;
    const struct trace_request *a = &t->requests[it->row], *b = &t->requests[it->partner];
    arm->compared++;
    arm->identical += a->hash == b->hash && a->tokens == b->tokens;
}

/* One prompt: its turns and repeats, n items. */
static void add_prompt(struct work *w, const struct summary_item *items, int64_t n, struct summary_row *row,
                       struct metrics_sums *paired)
{
    double *al = w->al + 2 * row->prompts, *pair = w->pair + 4 * row->paired_prompts;
    struct metrics_sums all = {0}, both = {0};
    memset(pair, 0, 4 * sizeof *pair);
    for (int64_t i = 0; i < n; i++) {
        if (items[i].partner >= 0)
            add_pair(w->t, &items[i], pair, &both);
        metrics_request(&all, w->t, items[i].row);
        int concurrency = w->t->requests[items[i].row].concurrency;
        row->concurrency = concurrency > row->concurrency ? concurrency : row->concurrency;
    }
    al[0] = (double)(all.accepted + all.steps);
    al[1] = (double)all.steps;
    pair[0] = (double)both.later_tokens;
    pair[1] = both.ns_decode;
    row->prompts++;
    row->paired_prompts += both.requests > 0;
    all.identical = both.identical;
    all.compared = both.compared;
    metrics_add(&row->sums, &all);
    metrics_add(paired, &both);
}

/* items [n]: all of one arm and group, ordered by prompt. */
static int make_row(struct work *w, const struct summary_item *items, int64_t n, struct summary_row *out)
{
    struct summary_row row = {.arm = items->arm,
                              .baseline = w->baseline[items->arm],
                              .mixed = w->mixed[items->arm],
                              .group = items->group};
    struct metrics_sums paired = {0};
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i + 1; end < n && items[end].prompt == items[i].prompt;)
            end++;
        add_prompt(w, items + i, end - i, &row, &paired);
    }
    const struct stats_resampling *r = &w->opts->resampling;
    TRY(stats_bootstrap(w->al, row.prompts, 2, stats_ratio, r, &row.al));
    TRY(stats_bootstrap(w->pair, row.paired_prompts, 4, stats_ratio_of_rates, r, &row.speedup));
    row.bound = metrics_speedup_bound(&paired);
    if (trace_is_scored(w->t))
        TRY(summary_score(&row.scores, w->t, items, n, r));
    times(w, items, n, &row);
    *out = row;
    return 0;
}

/* Sorts, then a row for every run of equal arm and group. */
static int add_rows(struct summary *s, struct work *w)
{
    int64_t n = w->t->n_requests;
    qsort(w->items, (size_t)n, sizeof *w->items, compare_table);
    for (int64_t i = 0, end; i < n; i = end) {
        const struct summary_item *a = &w->items[i];
        for (end = i + 1; end < n; end++) {
            const struct summary_item *b = &w->items[end];
            if (b->arm != a->arm || (a->group && strcmp(a->group, b->group)))
                break;
        }
        if ((s->n & (s->n - 1)) == 0) {
            struct summary_row *rows = realloc(s->rows, (size_t)(s->n ? 2 * s->n : 1) * sizeof *rows);
            if (!rows)
                FAIL(ERR_MEMORY, "no memory for %d rows", s->n + 1);
            s->rows = rows;
        }
        TRY(make_row(w, a, end - i, &s->rows[s->n]));
        s->n++;
    }
    return 0;
}

static int work_init(struct work *w, const struct trace *t, const struct summary_opts *opts)
{
    size_t n = (size_t)t->n_requests + 1, steps = (size_t)t->n_steps + 1;
    *w = (struct work){.t = t, .opts = opts};
    w->baseline = calloc((size_t)t->n_arms + 1, sizeof *w->baseline);
    w->mixed = calloc((size_t)t->n_arms + 1, sizeof *w->mixed);
    w->items = calloc(n, sizeof *w->items);
    w->partner = calloc(n, sizeof *w->partner);
    w->values = calloc(steps > 2 * n ? steps : 2 * n, sizeof *w->values);
    w->al = calloc(2 * n, sizeof *w->al);
    w->pair = calloc(4 * n, sizeof *w->pair);
    if (!w->baseline || !w->mixed || !w->items || !w->partner || !w->values || !w->al || !w->pair)
        FAIL(ERR_MEMORY, "%s: no memory to sum up %lld requests", t->path, (long long)t->n_requests);
    return 0;
}

static void work_deinit(struct work *w)
{
    free(w->baseline);
    free(w->mixed);
    free(w->items);
    free(w->partner);
    free(w->values);
    free(w->al);
    free(w->pair);
}

static int build(struct summary *s, struct work *w)
{
    const struct trace *t = w->t;
    TRY(baseline_find(t, w->baseline, w->mixed));
    TRY(index_requests(w));
    TRY(add_rows(s, w));
    if (w->opts->by == SUMMARY_BY_NONE)
        return 0;
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_prompt *p = &t->prompts[t->requests[w->items[i].row].prompt];
        w->items[i].group = w->opts->by == SUMMARY_BY_CATEGORY ? p->category : p->dataset;
    }
    return add_rows(s, w);
}

int summary_init(struct summary *s, const struct trace *t, const struct summary_opts *opts)
{
    struct summary made = {0};
    struct work w;
    int rc = work_init(&w, t, opts);
    if (!rc)
        rc = build(&made, &w);
    work_deinit(&w);
    if (rc)
        summary_deinit(&made);
    else
        *s = made;
    return rc;
}

void summary_deinit(struct summary *s)
{
    free(s->rows);
    memset(s, 0, sizeof *s);
}
