/* analyze_positions: acceptance by position in the draft, with intervals. Rates of one position are ratios of
 * sums over prompts. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/trace_order.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_position_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, V},
    {"lossy", "", "", TABLE_TEXT, 0, V},
    {"group", "group", "", TABLE_TEXT, 0, V},
    {"position", "position", "", TABLE_COUNT, 0, V},
    {"proposed_steps", "proposed", "steps", TABLE_COUNT, 0, V},
    {"tried_steps", "tried", "steps", TABLE_COUNT, 0, V},
    {"accepted_steps", "accepted", "steps", TABLE_COUNT, 0, V},
    {"unconditional", "unconditional", "of drafted", TABLE_SHARE, 1, V},
    {"unconditional_lo", "from", "95 %", TABLE_SHARE, 1, V},
    {"unconditional_hi", "to", "95 %", TABLE_SHARE, 1, V},
    {"conditional", "conditional", "of tried", TABLE_SHARE, 1, V},
    {"conditional_lo", "", "", TABLE_SHARE, 1, 0},
    {"conditional_hi", "", "", TABLE_SHARE, 1, 0},
};
const int analyze_n_position_columns = sizeof analyze_position_columns / sizeof *analyze_position_columns;

/* One row of the results, prompt by prompt: drafted steps, then for each depth the accepted and the tried
 * ones. */
struct clusters {
    double *sums; /* owned [n, 1 + 2 depth] */
    double *x;    /* owned [n, 2] */
    int64_t n;
    int depth;
};

struct row_of {
    const struct analyze_report *r;
    const struct summary_row *row;
};

static int belongs(const void *ctx, const struct trace_request *q)
{
    const struct analyze_report *r = ((const struct row_of *)ctx)->r;
    const struct summary_row *row = ((const struct row_of *)ctx)->row;
    const struct trace_prompt *p = &r->t->prompts[q->prompt];
    if (q->arm != row->arm || !row->group)
        return q->arm == row->arm;
    return !strcmp(row->group, r->opts->summary.by == SUMMARY_BY_CATEGORY ? p->category : p->dataset);
}

static void add(struct clusters *c, const struct metrics_sums *m)
{
    double *to = c->sums + (c->n - 1) * (1 + 2 * c->depth);
    to[0] += (double)m->drafted_steps;
    for (int d = 1; d <= c->depth; d++) {
        to[2 * d - 1] += (double)m->accepted_depth[d];
        to[2 * d] += (double)m->tried_depth[d];
    }
}

static int clusters_init(struct clusters *c, const struct analyze_report *r, const struct summary_row *row,
                         int depth)
{
    const struct row_of of = {r, row};
    int64_t n;
    struct trace_place *at = trace_by_prompt(r->t, belongs, &of, &n);
    *c = (struct clusters){.depth = depth};
    c->sums = calloc(((size_t)row->prompts + 1) * (1 + 2 * (size_t)depth), sizeof *c->sums);
    c->x = malloc(2 * ((size_t)row->prompts + 1) * sizeof *c->x);
    if (!at || !c->sums || !c->x) {
        free(at);
        FAIL(ERR_MEMORY, "%s: no memory for the positions of %lld prompts", r->t->path,
             (long long)row->prompts);
    }
    for (int64_t i = 0; i < n; i++) {
        struct metrics_sums m = {0};
        c->n += i == 0 || at[i].prompt != at[i - 1].prompt;
        metrics_request(&m, r->t, at[i].row);
        add(c, &m);
    }
    free(at);
    return 0;
}

static void clusters_deinit(struct clusters *c)
{
    free(c->sums);
    free(c->x);
}

/* The rate at depth d over draws of prompts: accepted over drafted steps, or over tried ones. */
static int interval(const struct clusters *c, const struct analyze_report *r, int d, int conditional,
                    struct stats_interval *out)
{
    for (int64_t i = 0; i < c->n; i++) {
        const double *sums = c->sums + i * (1 + 2 * c->depth);
        c->x[2 * i] = sums[2 * d - 1];
        c->x[2 * i + 1] = sums[conditional ? 2 * d : 0];
    }
    return stats_bootstrap(c->x, c->n, 2, stats_ratio, &r->opts->summary.resampling, out);
}

static int fill_position(struct table *x, struct clusters *c, const struct analyze_report *r,
                         const struct summary_row *row, int d)
{
    const struct metrics_sums *m = &row->sums;
    struct stats_interval u, k;
    TRY(interval(c, r, d, 0, &u));
    TRY(interval(c, r, d, 1, &k));
    table_row(x);
    if (d == 1 && x->n_rows > 1)
        table_break(x);
    table_text(x, "arm", r->t->arms[row->arm].label);
    if (r->t->arms[row->arm].lossy)
        table_text(x, "lossy", "LOSSY");
    if (row->group)
        table_text(x, "group", row->group);
    table_number(x, "position", d);
    table_number(x, "proposed_steps", (double)m->at_depth[d]);
    table_number(x, "tried_steps", (double)m->tried_depth[d]);
    table_number(x, "accepted_steps", (double)m->accepted_depth[d]);
    table_number(x, "unconditional", metrics_unconditional(m, d));
    table_number(x, "unconditional_lo", u.lo);
    table_number(x, "unconditional_hi", u.hi);
    table_number(x, "conditional", metrics_conditional(m, d));
    table_number(x, "conditional_lo", k.lo);
    table_number(x, "conditional_hi", k.hi);
    return 0;
}

int analyze_fill_positions(struct table *x, struct analyze_report *r)
{
    for (int i = 0; i < r->summary.n; i++) {
        const struct summary_row *row = &r->summary.rows[i];
        int depth = metrics_depth(&row->sums), rc = 0;
        struct clusters c = {0};
        if (!depth)
            continue;
        rc = clusters_init(&c, r, row, depth);
        for (int d = 1; d <= depth && !rc; d++)
            rc = fill_position(x, &c, r, row, d);
        clusters_deinit(&c);
        TRY(rc);
    }
    return 0;
}
