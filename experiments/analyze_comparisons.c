/* analyze_comparisons: every arm against another, prompt by prompt. A prompt is one row: its turns and
 * repeats are added up. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/baseline.h"
#include "experiments/pairs.h"
#include "experiments/stats_test.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = ANALYZE_VIEW };

/* What a plan of prompts is made for: to find 5 % more with this probability. */
static const double effect = 0.05, power = 0.8;

const struct table_column analyze_comparison_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, V},
    {"against", "against", "", TABLE_TEXT, 0, V},
    {"metric", "metric", "", TABLE_TEXT, 0, V},
    {"prompts", "prompts", "", TABLE_COUNT, 0, V},
    {"ratio", "ratio", "[95 %]", TABLE_INTERVAL, 3, V},
    {"difference", "", "", TABLE_INTERVAL, 3, 0},
    {"higher", "higher", "prompts", TABLE_COUNT, 0, V},
    {"lower", "lower", "prompts", TABLE_COUNT, 0, V},
    {"p_sign", "p", "sign", TABLE_REAL, 4, V},
    {"p_permutation", "p", "swaps", TABLE_REAL, 4, V},
    {"p_holm", "p", "Holm", TABLE_REAL, 4, V},
    {"tests", "", "", TABLE_COUNT, 0, 0},
    {"resolves", "resolves", "", TABLE_SHARE, 1, V},
    {"prompts_for_5_percent", "for 5 %", "prompts", TABLE_COUNT, 0, V},
};
const int analyze_n_comparison_columns =
    sizeof analyze_comparison_columns / sizeof *analyze_comparison_columns;

const char analyze_comparison_legend[] = "Over the requests that both arms answered, paired by prompt: ratio "
                                         "of sums with its bootstrap interval; higher, lower: prompts; "
                                         "p: two-sided, exact sign test and permutation test by swapping "
                                         "arms within prompts; Holm: the latter, corrected for "
                                         "all tests of this table. resolves: the true difference that so "
                                         "many prompts show with 80 % power at the 5 % level; "
                                         "for 5 %: prompts that would show 5 %.";

/* What is compared: numerator and denominator of an arm's ratio. */
enum metric { SPEED, LENGTH, FIRST, METRICS };
static const char *const metric_names[] = {[SPEED] = "tokens/s", [LENGTH] = "AL", [FIRST] = "TTFT"};

static void terms(const struct trace *t, int64_t request, double out[METRICS][2])
{
    struct metrics_sums m = {0};
    metrics_request(&m, t, request);
    out[SPEED][0] = (double)m.later_tokens;
    out[SPEED][1] = m.ns_decode / 1e9;
    out[LENGTH][0] = (double)(m.accepted + m.steps);
    out[LENGTH][1] = (double)m.steps;
    out[FIRST][0] = m.ns_first / 1e9;
    out[FIRST][1] = 1;
}

struct item {
    int64_t row, partner;
    int32_t arm, prompt;
};

/* Prompt by prompt, both arms; and everything that is said about it. */
struct comparison {
    int arm, against;
    int64_t prompts;
    double *x[METRICS]; /* owned [prompts, 4] */
};

static int compare_items(const void *pa, const void *pb)
{
    const struct item *a = pa, *b = pb;
    if (a->arm != b->arm)
        return a->arm < b->arm ? -1 : 1;
    if (a->prompt != b->prompt)
        return a->prompt < b->prompt ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

/* items [n]: all of one arm, ordered by prompt. */
static int gather(struct comparison *c, const struct trace *t, const struct item *items, int64_t n)
{
    for (int m = 0; m < METRICS; m++) {
        c->x[m] = calloc(4 * (size_t)n, sizeof *c->x[m]);
        if (!c->x[m])
            FAIL(ERR_MEMORY, "%s: no memory to compare %lld requests", t->path, (long long)n);
    }
    for (int64_t i = 0; i < n; i++) {
        double ours[METRICS][2], theirs[METRICS][2];
        c->prompts += i == 0 || items[i].prompt != items[i - 1].prompt;
        terms(t, items[i].row, ours);
        terms(t, items[i].partner, theirs);
        for (int m = 0; m < METRICS; m++)
            for (int k = 0; k < 2; k++) {
                c->x[m][4 * (c->prompts - 1) + k] += ours[m][k];
                c->x[m][4 * (c->prompts - 1) + 2 + k] += theirs[m][k];
            }
    }
    return 0;
}

static void count_signs(const double *x, int64_t n, int64_t *higher, int64_t *lower)
{
    *higher = *lower = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = stats_log_ratio(x + 4 * i);
        *higher += d > 1e-12;
        *lower += d < -1e-12;
    }
}

static int fill_row(struct table *x, const struct analyze_report *r, const struct comparison *c, int metric,
                    double p)
{
    const struct stats_resampling *how = &r->opts->summary.resampling;
    const double *rows = c->x[metric];
    struct stats_interval ratio, difference;
    int64_t higher, lower;
    double sd = stats_log_ratio_sd(rows, c->prompts);
    TRY(stats_bootstrap(rows, c->prompts, 4, stats_ratio_of_rates, how, &ratio));
    TRY(stats_bootstrap(rows, c->prompts, 4, stats_difference, how, &difference));
    count_signs(rows, c->prompts, &higher, &lower);
    table_row(x);
    table_text(x, "arm", r->t->arms[c->arm].label);
    table_text(x, "against", r->t->arms[c->against].label);
    table_text(x, "metric", metric_names[metric]);
    table_number(x, "prompts", (double)c->prompts);
    table_interval(x, "ratio", ratio);
    table_interval(x, "difference", difference);
    table_number(x, "higher", (double)higher);
    table_number(x, "lower", (double)lower);
    table_number(x, "p_sign", stats_sign_test(higher, lower));
    table_number(x, "p_permutation", p);
    table_number(x, "resolves", stats_effect_seen(sd, c->prompts, how->level, power));
    table_number(x, "prompts_for_5_percent", stats_prompts_needed(sd, effect, how->level, power));
    return 0;
}

/* The rows, and behind them the corrected p of each. */
static int fill_rows(struct table *x, const struct analyze_report *r, const struct comparison *c, int n)
{
    double *p = calloc((size_t)(n * METRICS) + 1, sizeof *p),
           *holm = calloc((size_t)(n * METRICS) + 1, sizeof *p);
    int tests = 0, rc = p && holm ? 0 : ERR_SET(ERR_MEMORY, "no memory for %d comparisons", n);
    for (int i = 0; !rc && i < n * METRICS; i++) {
        p[i] = stats_permutation_test(c[i / METRICS].x[i % METRICS], c[i / METRICS].prompts, 4,
                                      stats_log_ratio, &r->opts->summary.resampling);
        holm[i] = p[i];
        tests += !isnan(p[i]);
    }
    if (!rc)
        rc = stats_holm(holm, n * METRICS);
    for (int i = 0; !rc && i < n * METRICS; i++) {
        rc = fill_row(x, r, &c[i / METRICS], i % METRICS, p[i]);
        if (rc)
            break;
        if (i && i % METRICS == 0)
            table_break(x);
        table_number(x, "p_holm", holm[i]);
        table_number(x, "tests", tests);
    }
    free(p);
    free(holm);
    return rc;
}

static int find_arm(const struct trace *t, const char *label, int *arm)
{
    for (int64_t i = 0; i < t->n_arms; i++)
        if (!strcmp(t->arms[i].label, label)) {
            *arm = (int)i;
            return 0;
        }
    char names[512] = "";
    for (int64_t i = 0; i < t->n_arms && strlen(names) < 400; i++) {
        size_t at = strlen(names);
        snprintf(names + at, sizeof names - at, "%s'%.40s'", i ? ", " : "", t->arms[i].label);
    }
    FAIL(ERR_CONFIG, "%s: expected --compare with the label of an arm, found '%s'; it has %s", t->path, label,
         names);
}

/* What each arm is compared with. */
static int choose(const struct trace *t, const char *label, int *against)
{
    int arm = 0;
    if (!label)
        return baseline_find(t, against, NULL);
    TRY(find_arm(t, label, &arm));
    for (int64_t i = 0; i < t->n_arms; i++)
        against[i] = arm;
    return 0;
}

struct work {
    int *against;                   /* owned [n_arms] */
    int64_t *partner;               /* owned [n_requests] */
    struct item *items;             /* owned [n_requests] */
    struct comparison *comparisons; /* owned [n_arms] */
    int n;
    int64_t n_items;
};

static int work_init(struct work *w, const struct trace *t)
{
    w->against = calloc((size_t)t->n_arms + 1, sizeof *w->against);
    w->partner = calloc((size_t)t->n_requests + 1, sizeof *w->partner);
    w->items = calloc((size_t)t->n_requests + 1, sizeof *w->items);
    w->comparisons = calloc((size_t)t->n_arms + 1, sizeof *w->comparisons);
    if (!w->against || !w->partner || !w->items || !w->comparisons)
        FAIL(ERR_MEMORY, "%s: no memory to compare %lld arms", t->path, (long long)t->n_arms);
    return 0;
}

static void work_deinit(struct work *w)
{
    for (int i = 0; i < w->n; i++)
        for (int m = 0; m < METRICS; m++)
            free(w->comparisons[i].x[m]);
    free(w->against);
    free(w->partner);
    free(w->items);
    free(w->comparisons);
}

static int pair_up(struct work *w, const struct trace *t, const char *label)
{
    TRY(choose(t, label, w->against));
    TRY(pairs_find(t, w->against, w->partner));
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        if (w->partner[i] >= 0 && w->against[q->arm] != q->arm)
            w->items[w->n_items++] = (struct item){i, w->partner[i], q->arm, t->prompts[q->prompt].index};
    }
    if (!w->n_items && label && t->n_arms > 1)
        FAIL(ERR_CONFIG,
             "%s: no other arm answered a request that '%s' answered: there is nothing to compare", t->path,
             label);
    qsort(w->items, (size_t)w->n_items, sizeof *w->items, compare_items);
    for (int64_t i = 0, end; i < w->n_items; i = end) {
        for (end = i + 1; end < w->n_items && w->items[end].arm == w->items[i].arm;)
            end++;
        struct comparison *c = &w->comparisons[w->n++];
        *c = (struct comparison){.arm = w->items[i].arm, .against = w->against[w->items[i].arm]};
        TRY(gather(c, t, w->items + i, end - i));
    }
    return 0;
}

int analyze_fill_comparisons(struct table *x, struct analyze_report *r)
{
    struct work w = {0};
    int rc = work_init(&w, r->t);
    if (!rc)
        rc = pair_up(&w, r->t, r->opts->against);
    if (!rc)
        rc = fill_rows(x, r, w.comparisons, w.n);
    work_deinit(&w);
    return rc;
}
