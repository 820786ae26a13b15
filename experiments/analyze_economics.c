/* analyze_economics: when a further row of a verification pass pays, from a cost table and, for models with
 * experts, from the experts that this run's passes chose. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/whatif_cost.h"
#include <math.h>
#include <string.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_economics_columns[] = {
    {"context", "context", "tokens", TABLE_COUNT, 0, V},
    {"rows", "rows", "of a pass", TABLE_COUNT, 0, V},
    {"pass_ms", "pass", "ms", TABLE_REAL, 3, V},
    {"al_needed", "AL needed", "to break even", TABLE_REAL, 3, V},
    {"row_ms", "a row more", "ms", TABLE_REAL, 3, V},
    {"row_needs", "it must be", "accepted in", TABLE_SHARE, 1, V},
    {"experts", "experts", "of the table", TABLE_REAL, 2, V},
    {"experts_of_run", "experts", "of the run", TABLE_REAL, 2, V},
    {"expert_ms", "an expert", "more, ms", TABLE_REAL, 4, V},
};
const int analyze_n_economics_columns = sizeof analyze_economics_columns / sizeof *analyze_economics_columns;

const char analyze_economics_legend[] = "From the cost table. AL needed: tokens a step at which such passes "
                                        "are as fast as plain decoding, drafting aside. a row more: over the "
                                        "entry above, a row; accepted in: the share of steps in which that "
                                        "row's token must be accepted to be worth its time at plain "
                                        "decoding's pace. experts: distinct ones a layer, mean; an expert "
                                        "more: time over experts, against the entry above.";

/* Mean of distinct experts over the run's passes of so many rows, NaN: none. */
static double experts_of_run(const struct table *experts, int rows)
{
    double sum = 0, passes = 0;
    int at[3] = {-1, -1, -1};
    static const char *const keys[] = {"rows", "passes", "distinct"};
    for (int c = 0; c < experts->n_columns; c++)
        for (int k = 0; k < 3; k++)
            if (!strcmp(experts->columns[c].key, keys[k]))
                at[k] = c;
    for (int i = 0; i < experts->n_rows; i++) {
        const struct table_cell *row = &experts->cells[i * experts->n_columns];
        if (row[at[0]].value != rows)
            continue;
        sum += row[at[1]].value * row[at[2]].value;
        passes += row[at[1]].value;
    }
    return passes > 0 ? sum / passes : NAN;
}

static void fill_point(struct table *x, const struct analyze_report *r, const struct whatif_costs *c, int i)
{
    const struct whatif_point *p = &c->at[i], *plain = &c->at[i - i % c->n_rows],
                              *before = i % c->n_rows ? p - 1 : NULL;
    table_row(x);
    if (!before && x->n_rows > 1)
        table_break(x);
    table_number(x, "context", p->context);
    table_number(x, "rows", p->rows);
    table_number(x, "pass_ms", 1e3 * p->seconds);
    table_number(x, "al_needed", p->seconds / plain->seconds);
    if (p->experts > 0)
        table_number(x, "experts", p->experts);
    table_number(x, "experts_of_run", experts_of_run(&r->table[ANALYZE_EXPERTS], p->rows));
    if (!before)
        return;
    double more = (p->seconds - before->seconds) / (p->rows - before->rows),
           experts = p->experts - before->experts;
    table_number(x, "row_ms", 1e3 * more);
    table_number(x, "row_needs", more / plain->seconds);
    if (experts > 0.01)
        table_number(x, "expert_ms", 1e3 * (p->seconds - before->seconds) / experts);
}

int analyze_fill_economics(struct table *x, struct analyze_report *r)
{
    struct whatif_costs costs;
    if (!r->opts->cost)
        return 0;
    TRY(whatif_costs_read(&costs, r->opts->cost));
    for (int i = 0; i < costs.n; i++)
        fill_point(x, r, &costs, i);
    whatif_costs_deinit(&costs);
    return 0;
}
