/* analyze_whatif: what would have been, as two tables: the variants that were asked about, and the best of
 * them by category. */
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/analyze_report.h"
#include "experiments/whatif.h"
#include "experiments/whatif_backtest.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_whatif_columns[] = {
    {"variant", "what if", "", TABLE_TEXT, 0, V},
    {"strategy", "", "", TABLE_TEXT, 0, 0},
    {"texts_of", "texts of", "", TABLE_TEXT, 0, 0},
    {"steps", "steps", "", TABLE_COUNT, 0, V},
    {"exact", "exact", "of steps", TABLE_SHARE, 1, V},
    {"rows", "rows", "a pass", TABLE_REAL, 2, V},
    {"al", "tokens/step", "[95 %]", TABLE_INTERVAL, 3, V},
    {"tokens_per_s", "speed, tokens/s", "[95 %]", TABLE_INTERVAL, 1, V},
    {"speedup", "speed-up, x plain", "[95 %]", TABLE_INTERVAL, 2, V},
};
const int analyze_n_whatif_columns = sizeof analyze_whatif_columns / sizeof *analyze_whatif_columns;

const struct table_column analyze_best_columns[] = {
    {"category", "category", "", TABLE_TEXT, 0, V},
    {"variant", "best what if", "", TABLE_TEXT, 0, V},
    {"speedup", "speed-up", "x plain", TABLE_REAL, 2, V},
    {"oracle", "oracle", "x plain", TABLE_REAL, 2, V},
    {"oracle_gain", "oracle", "over best", TABLE_REAL, 3, V},
};
const int analyze_n_best_columns = sizeof analyze_best_columns / sizeof *analyze_best_columns;

const struct table_column analyze_backtest_columns[] = {
    {"variant", "back-test", "", TABLE_TEXT, 0, V},
    {"predicted_steps", "steps", "predicted", TABLE_COUNT, 0, V},
    {"steps", "steps", "of its run", TABLE_COUNT, 0, V},
    {"predicted_speedup", "speed-up, predicted", "[95 %]", TABLE_INTERVAL, 2, V},
    {"speedup", "speed-up of its run", "[95 %]", TABLE_INTERVAL, 2, V},
    {"inside", "inside", "", TABLE_TEXT, 0, V},
};
const int analyze_n_backtest_columns = sizeof analyze_backtest_columns / sizeof *analyze_backtest_columns;

const char analyze_backtest_legend[] = "Variants that were run just now, with plain decoding beside them: "
                                       "steps that were taken against those predicted, and whether the "
                                       "measured speed-up lies in the predicted interval.";

const char analyze_whatif_legend[] = "what if: drafts that were not run, over the texts of a run whose rule "
                                     "gives them whatever is drafted. exact: steps that "
                                     "the trace determines; for the others the tail of an earlier draft "
                                     "stands in. Times: the cost table's passes, the "
                                     "run's own time besides them, and one factor between table and run; "
                                     "intervals hold the bootstrap over prompts and the "
                                     "error of that sum on the run's own arms.";
const char analyze_best_legend[] = "Over all steps, the first included. oracle: the best draft at every "
                                   "step, chosen with the text's future known, over plain and "
                                   "all n-gram variants asked about: no chooser among them can do better.";

static void fill_variants(struct table *x, const struct trace *t, const struct whatif *w)
{
    for (int i = 0; i < w->n; i++) {
        const struct whatif_variant *v = &w->variants[i];
        table_row(x);
        table_text(x, "variant", v->label);
        table_text(x, "strategy", v->strategy);
        table_text(x, "texts_of", t->arms[v->arm].label);
        table_number(x, "steps", (double)v->steps);
        table_number(x, "exact", v->steps ? (double)v->exact / (double)v->steps : NAN);
        table_number(x, "rows", v->rows);
        table_interval(x, "al", v->al);
        table_interval(x, "tokens_per_s", v->speed);
        table_interval(x, "speedup", v->speedup);
    }
}

static void fill_best(struct table *x, const struct whatif *w)
{
    for (int i = 0; i < w->n_best; i++) {
        const struct whatif_best *b = &w->best[i];
        table_row(x);
        table_text(x, "category", b->category ? b->category : "all");
        table_text(x, "variant", w->variants[b->variant].label);
        table_number(x, "speedup", b->speedup);
        table_number(x, "oracle", b->oracle);
        table_number(x, "oracle_gain", b->oracle / b->speedup);
        if (i == 1)
            table_break(x);
    }
}

static int note_model(struct analyze_report *r, const struct whatif *w, const struct whatif_costs *costs)
{
    TRY(notes_add(
        &r->notes,
        "cost table: %s on %s. This run's passes took %.3f times what it says; a predicted ratio is "
        "off by %.1f %% on the "
        "run's own arms (one standard deviation).",
        costs->model, costs->device, w->factor, 100 * w->error));
    if (!strstr(r->t->meta.device, costs->device) && !strstr(costs->device, r->t->meta.device))
        TRY(notes_add(&r->notes,
                      "the cost table was measured on %s, the run on %s: its speeds are of the table's "
                      "machine, scaled.",
                      costs->device, r->t->meta.device));
    if (w->factor > 1.25 || w->factor < 0.8)
        TRY(notes_add(&r->notes,
                      "a factor of %.2f between run and cost table is large: were both made on the same "
                      "machine, with the "
                      "same load?",
                      w->factor));
    return 0;
}

static void fill_measured(struct table *x, const struct whatif *w, const struct whatif_measured *m, int n)
{
    for (int i = 0; i < n; i++) {
        const struct whatif_variant *v = &w->variants[m[i].variant];
        table_row(x);
        table_text(x, "variant", v->label);
        table_number(x, "predicted_steps", (double)v->steps);
        table_number(x, "steps", (double)m[i].steps);
        table_interval(x, "predicted_speedup", v->speedup);
        table_interval(x, "speedup", m[i].speedup);
        table_text(x, "inside", m[i].inside ? "yes" : "no");
    }
}

/* Runs variants and says how the predictions did. */
static int back_test(struct analyze_report *r, const struct whatif *w)
{
    const struct trace_meta *meta = &r->t->meta;
    int n = r->opts->back_test, made = 0, exact = 0, inside = 0;
    if (!r->opts->cost)
        FAIL(ERR_CONFIG, "--back-test: expected --cost-table: without it there is no speed to test");
    if (strcmp(meta->status, "complete") != 0 || strcmp(meta->slice, "0/1") != 0)
        FAIL(ERR_CONFIG, "%s: a back-test runs all prompts again, but this run is %s, slice %s", r->t->path,
             meta->status, meta->slice);
    struct whatif_measured *m = calloc((size_t)w->n + 1, sizeof *m);
    if (!m)
        FAIL(ERR_MEMORY, "no memory for %d back-tests", w->n);
    int rc = whatif_backtest(w, &r->opts->summary.resampling, n, m, &made);
    for (int i = 0; i < made; i++) {
        exact += m[i].exact;
        inside += m[i].inside;
    }
    if (!rc)
        fill_measured(&r->table[ANALYZE_BACK_TEST], w, m, made);
    if (!rc)
        rc = notes_add(&r->notes,
                       "back-test: %d of %d variants took exactly the predicted steps; %d of %d measured "
                       "speed-ups lie in the predicted intervals.",
                       exact, made, inside, made);
    free(m);
    return rc;
}

int analyze_fill_whatif(struct table *x, struct analyze_report *r)
{
    struct whatif w = {0};
    struct whatif_costs costs = {0};
    const struct whatif_opts opts = {
        .what = r->opts->what, .source = r->opts->source, .resampling = r->opts->summary.resampling};
    if (!opts.what)
        return 0;
    if (!r->t->steps || !r->t->n_tokens)
        FAIL(ERR_CONFIG, "%s: replay takes the steps and tokens of one file that generated answers",
             r->t->path);
    int rc = r->opts->cost ? whatif_costs_read(&costs, r->opts->cost) : 0;
    if (!rc)
        rc = whatif_init(&w, r->t, r->opts->cost ? &costs : NULL, &opts);
    if (!rc && r->opts->cost)
        rc = note_model(r, &w, &costs);
    if (!rc) {
        fill_variants(x, r->t, &w);
        fill_best(&r->table[ANALYZE_BEST], &w);
    }
    if (!rc && r->opts->back_test)
        rc = back_test(r, &w);
    whatif_deinit(&w);
    whatif_costs_deinit(&costs);
    return rc;
}
