/* analyze_experts: every step of a pass of several sequences says the same of it, so each counts as one part
 * of so many. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/trace_lean.h"
#include <math.h>
#include <stdlib.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_expert_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, V},
    {"lossy", "", "", TABLE_TEXT, 0, V},
    {"rows", "rows", "of a pass", TABLE_COUNT, 0, V},
    {"passes", "passes", "", TABLE_COUNT, 0, V},
    {"distinct", "distinct experts", "a layer, mean", TABLE_REAL, 2, V},
    {"least", "least", "of a pass", TABLE_REAL, 2, V},
    {"most", "most", "of a pass", TABLE_REAL, 2, V},
    {"layers", "layers", "of experts", TABLE_COUNT, 0, V},
};
const int analyze_n_expert_columns = sizeof analyze_expert_columns / sizeof *analyze_expert_columns;

const char analyze_expert_legend[] = "distinct experts: different ones that the rows of a verification pass "
                                     "chose together, a layer of experts "
                                     "at a time; a pass reads the weights of each once.";

/* Sums over the passes of one arm that had so many rows. */
struct sums {
    int arm, rows, layers;
    double passes, distinct, least, most;
};

/* All sums so far; the rows of passes are few. */
struct list {
    struct sums *at; /* owned [cap] */
    int n, cap;
};

static int by_arm_and_rows(const void *a, const void *b)
{
    const struct sums *x = a, *y = b;
    return x->arm != y->arm ? x->arm - y->arm : x->rows - y->rows;
}

static int add(struct list *l, const struct sums *one)
{
    for (int i = l->n - 1; i >= 0; i--) {
        struct sums *to = &l->at[i];
        if (by_arm_and_rows(to, one) != 0)
            continue;
        to->passes += one->passes;
        to->distinct += one->distinct;
        to->least = fmin(to->least, one->least);
        to->most = fmax(to->most, one->most);
        return 0;
    }
    if (l->n == l->cap) {
        struct sums *grown = realloc(l->at, (size_t)(l->cap ? 2 * l->cap : 64) * sizeof *grown);
        if (!grown)
            FAIL(ERR_MEMORY, "no memory for the experts of %d kinds of passes", l->n + 1);
        l->at = grown;
        l->cap = l->cap ? 2 * l->cap : 64;
    }
    l->at[l->n++] = *one;
    return 0;
}

static int collect(const struct trace *t, int64_t request, struct list *l)
{
    const struct trace_request *r = &t->requests[request];
    for (int64_t i = r->step_begin; i < r->step_begin + r->steps; i++) {
        const struct trace_step s = trace_step_at(t, i);
        if (s.expert_layers == 0 || s.pass_seqs == 0)
            continue;
        const double a_layer = (double)s.experts / s.expert_layers, part = 1.0 / s.pass_seqs;
        const struct sums one = {.arm = r->arm,
                                 .rows = s.pass_rows,
                                 .layers = s.expert_layers,
                                 .passes = part,
                                 .distinct = a_layer * part,
                                 .least = a_layer,
                                 .most = a_layer};
        TRY(add(l, &one));
    }
    return 0;
}

static void put(struct table *x, const struct trace *t, const struct sums *s)
{
    const struct trace_arm *arm = &t->arms[s->arm];
    table_row(x);
    table_text(x, "arm", arm->label);
    if (arm->lossy)
        table_text(x, "lossy", "LOSSY");
    table_number(x, "rows", s->rows);
    table_number(x, "passes", round(s->passes));
    table_number(x, "distinct", s->distinct / s->passes);
    table_number(x, "least", s->least);
    table_number(x, "most", s->most);
    table_number(x, "layers", s->layers);
}

int analyze_fill_experts(struct table *x, struct analyze_report *r)
{
    const struct trace *t = r->t;
    struct list l = {0};
    int rc = 0;
    for (int64_t i = 0; i < t->n_requests && !rc; i++)
        rc = collect(t, i, &l);
    if (l.n)
        qsort(l.at, (size_t)l.n, sizeof *l.at, by_arm_and_rows);
    for (int i = 0; i < l.n && !rc; i++)
        put(x, t, &l.at[i]);
    free(l.at);
    return rc;
}
