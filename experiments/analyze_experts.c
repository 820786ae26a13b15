/* analyze_experts: every step of a pass of several sequences says the same of it, so each counts as one part
 * of so many. */
#include "experiments/analyze_experts.h"
#include "engine/err.h"
#include <math.h>
#include <stdlib.h>

const struct table_column analyze_experts_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, ANALYZE_EXPERTS_VIEW},
    {"lossy", "", "", TABLE_TEXT, 0, ANALYZE_EXPERTS_VIEW},
    {"rows", "rows", "of a pass", TABLE_COUNT, 0, ANALYZE_EXPERTS_VIEW},
    {"passes", "passes", "", TABLE_COUNT, 0, ANALYZE_EXPERTS_VIEW},
    {"distinct", "distinct experts", "a layer, mean", TABLE_REAL, 2, ANALYZE_EXPERTS_VIEW},
    {"least", "least", "of a pass", TABLE_REAL, 2, ANALYZE_EXPERTS_VIEW},
    {"most", "most", "of a pass", TABLE_REAL, 2, ANALYZE_EXPERTS_VIEW},
    {"layers", "layers", "of experts", TABLE_COUNT, 0, ANALYZE_EXPERTS_VIEW},
};
const int analyze_experts_n_columns = sizeof analyze_experts_columns / sizeof *analyze_experts_columns;

const char analyze_experts_legend[] = "distinct experts: different ones that the rows of a verification pass "
                                      "chose together, a layer of experts "
                                      "at a time; a pass reads the weights of each once.";

/* Sums over the passes of one arm that had so many rows. */
struct sums {
    int arm, rows, layers;
    double passes, distinct, least, most;
};

static int by_arm_and_rows(const void *a, const void *b)
{
    const struct sums *x = a, *y = b;
    return x->arm != y->arm ? x->arm - y->arm : x->rows - y->rows;
}

static void add(struct sums *to, const struct sums *one)
{
    to->passes += one->passes;
    to->distinct += one->distinct;
    to->least = fmin(to->least, one->least);
    to->most = fmax(to->most, one->most);
}

/* One entry a step that has experts. */
static int64_t collect(const struct trace *t, struct sums *out)
{
    int64_t n = 0;
    for (int64_t i = 0; i < t->n_steps; i++) {
        const struct trace_step *s = &t->steps[i];
        if (s->expert_layers == 0 || s->pass_seqs == 0)
            continue;
        const double a_layer = (double)s->experts / s->expert_layers, part = 1.0 / s->pass_seqs;
        out[n++] = (struct sums){.arm = t->requests[s->request].arm,
                                 .rows = s->pass_rows,
                                 .layers = s->expert_layers,
                                 .passes = part,
                                 .distinct = a_layer * part,
                                 .least = a_layer,
                                 .most = a_layer};
    }
    return n;
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

int analyze_experts_fill(struct table *x, const struct trace *t)
{
    struct sums *all = calloc((size_t)t->n_steps + 1, sizeof *all);
    if (!all)
        FAIL(ERR_MEMORY, "%s: no memory for the experts of %lld steps", t->path, (long long)t->n_steps);
    const int64_t n = collect(t, all);
    qsort(all, (size_t)n, sizeof *all, by_arm_and_rows);
    for (int64_t i = 0; i < n;) {
        struct sums sum = all[i++];
        while (i < n && by_arm_and_rows(&all[i], &sum) == 0)
            add(&sum, &all[i++]);
        put(x, t, &sum);
    }
    free(all);
    return 0;
}
