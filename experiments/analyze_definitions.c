/* analyze_definitions: the tables of metrics_peers.h over every arm that drafted. Speed-ups are over the
 * requests that the baseline answered, too. */
#include "engine/err.h"
#include "experiments/analyze_report.h"
#include "experiments/baseline.h"
#include "experiments/metrics_peers.h"
#include "experiments/pairs.h"
#include <stdlib.h>

enum { V = ANALYZE_VIEW };

const struct table_column analyze_definition_columns[] = {
    {"arm", "arm", "", TABLE_TEXT, 0, V},
    {"peers", "as reported by", "", TABLE_TEXT, 0, V},
    {"name", "as they call it", "", TABLE_TEXT, 0, V},
    {"formula", "formula", "", TABLE_TEXT, 0, V},
    {"position", "d", "", TABLE_COUNT, 0, V},
    {"value", "value", "", TABLE_REAL, 3, V},
    {"unit", "", "", TABLE_TEXT, 0, 0},
};
const int analyze_n_definition_columns =
    sizeof analyze_definition_columns / sizeof *analyze_definition_columns;

const char analyze_definition_legend[] = "The same steps in the words of each tool. accepted: draft tokens "
                                         "as verified, before a stop or the budget cut the "
                                         "text; tokens: as emitted; drafted steps: with at least one draft "
                                         "token; k: the deepest draft; d: the position in "
                                         "the draft. Arms that never drafted are left out.";

/* One arm: all of its requests; the ones with a partner; their partners. */
struct sums {
    struct metrics_peers all, paired, plain;
};

static const char *unit(enum metrics_kind kind)
{
    static const char *const units[] = {[METRICS_LENGTH] = "tokens",
                                        [METRICS_SHARE] = "share",
                                        [METRICS_RATE] = "tokens/s",
                                        [METRICS_TIME] = "ms",
                                        [METRICS_TIMES] = "x"};
    return units[kind];
}

static void begin_row(struct table *x, const char *arm, const char *peers, const char *name,
                      const char *formula)
{
    table_row(x);
    table_text(x, "arm", arm);
    table_text(x, "peers", peers);
    table_text(x, "name", name);
    table_text(x, "formula", formula);
}

static void fill_arm(struct table *x, const char *arm, const struct sums *s, int first)
{
    for (int i = 0; i < metrics_n_definitions; i++) {
        const struct metrics_definition *d = &metrics_definitions[i];
        int times = d->kind == METRICS_TIMES;
        begin_row(x, arm, d->peers, d->name, d->formula);
        if (i == 0 && !first)
            table_break(x);
        table_number(
            x, "value",
            d->value(times ? &s->paired : &s->all, times && s->plain.sums.requests ? &s->plain : NULL));
        table_text(x, "unit", unit(d->kind));
    }
    for (int i = 0; i < metrics_n_positions; i++) {
        const struct metrics_position_definition *p = &metrics_positions[i];
        for (int d = 1; d <= metrics_depth(&s->all.sums); d++) {
            begin_row(x, arm, p->peers, p->name, p->formula);
            table_number(x, "position", d);
            table_number(x, "value", p->value(&s->all, d));
            table_text(x, "unit", "share");
        }
    }
}

static void add_up(const struct trace *t, const int64_t *partner, struct sums *sums)
{
    for (int64_t i = 0; i < t->n_requests; i++) {
        struct sums *s = &sums[t->requests[i].arm];
        metrics_peers_request(&s->all, t, i);
        if (partner[i] < 0)
            continue;
        metrics_peers_request(&s->paired, t, i);
        metrics_peers_request(&s->plain, t, partner[i]);
    }
}

int analyze_fill_definitions(struct table *x, struct analyze_report *r)
{
    const struct trace *t = r->t;
    struct sums *sums = calloc((size_t)t->n_arms + 1, sizeof *sums);
    int *baseline = calloc((size_t)t->n_arms + 1, sizeof *baseline);
    int64_t *partner = calloc((size_t)t->n_requests + 1, sizeof *partner);
    int rc =
        sums && baseline && partner ? 0 : ERR_SET(ERR_MEMORY, "%s: no memory for its definitions", t->path);
    if (!rc)
        rc = baseline_find(t, baseline, NULL);
    if (!rc)
        rc = pairs_find(t, baseline, partner);
    if (!rc)
        add_up(t, partner, sums);
    int first = 1;
    for (int64_t a = 0; !rc && a < t->n_arms; a++)
        if (sums[a].all.sums.drafted_steps) {
            fill_arm(x, t->arms[a].label, &sums[a], first);
            first = 0;
        }
    free(sums);
    free(baseline);
    free(partner);
    return rc;
}
