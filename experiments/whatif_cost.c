/* Reads the JSON of bench.h. Only points of decoding and verification count; prefills have no grid. */
#include "experiments/whatif_cost.h"
#include "engine/err.h"
#include "experiments/stats.h"
#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const double p90_deviations = 1.2815515655446004; /* a normal's 90th percentile */

static double number(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    return json_is_number(v) ? json_number_value(v) : 0;
}

static int is_pass(const json_t *point)
{
    const char *stage = json_string_value(json_object_get(point, "stage"));
    return stage && (!strcmp(stage, "decode") || !strcmp(stage, "verify"));
}

static int compare_points(const void *pa, const void *pb)
{
    const struct whatif_point *a = pa, *b = pb;
    if (a->context != b->context)
        return a->context < b->context ? -1 : 1;
    return (a->rows > b->rows) - (a->rows < b->rows);
}

static int read_points(struct whatif_costs *c, const json_t *points, const char *path)
{
    size_t n = json_array_size(points);
    c->at = calloc(n + 1, sizeof *c->at);
    c->rows = calloc(n + 1, sizeof *c->rows);
    c->context = calloc(n + 1, sizeof *c->context);
    if (!c->at || !c->rows || !c->context)
        FAIL(ERR_MEMORY, "%s: no memory for %zu points", path, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *p = json_array_get(points, i);
        double rows = number(p, "rows"), context = number(p, "context"), median = number(p, "median_s"),
               p90 = number(p, "p90_s");
        if (!is_pass(p))
            continue;
        if (!(rows >= 1 && rows <= 65536 && context >= 0 && context <= 1e9 && median > 0))
            FAIL(ERR_FORMAT,
                 "%s: point %zu: expected rows, context and a time, found rows %g, context %g, "
                 "median_s %g",
                 path, i, rows, context, median);
        c->at[c->n++] =
            (struct whatif_point){.rows = (int)rows,
                                  .context = (int)context,
                                  .seconds = median,
                                  .spread = p90 > median ? (p90 / median - 1) / p90_deviations : 0,
                                  .experts = number(p, "experts")};
    }
    qsort(c->at, (size_t)c->n, sizeof *c->at, compare_points);
    return 0;
}

/* Every context has the same rows. */
static int check_grid(struct whatif_costs *c, const char *path)
{
    while (c->n_rows < c->n && c->at[c->n_rows].context == c->at[0].context) {
        c->rows[c->n_rows] = c->at[c->n_rows].rows;
        c->n_rows++;
    }
    if (c->n_rows == 0 || c->rows[0] != 1)
        FAIL(ERR_FORMAT,
             "%s: expected points of a pass from one row on, found %s; make it with bench step --cost-table",
             path, c->n_rows ? "none with one row" : "none");
    for (int i = 0; i < c->n; i++) {
        int k = i % c->n_rows;
        if (k == 0)
            c->context[c->n_context++] = c->at[i].context;
        if (c->at[i].rows != c->rows[k] || c->at[i].context != c->context[c->n_context - 1] ||
            (k && c->rows[k] == c->rows[k - 1]) || (!k && i && c->at[i].context == c->at[i - 1].context))
            FAIL(ERR_FORMAT,
                 "%s: expected the same rows behind every context, found a hole or a repetition at %d rows "
                 "behind %d tokens",
                 path, c->at[i].rows, c->at[i].context);
    }
    if (c->n % c->n_rows)
        FAIL(ERR_FORMAT, "%s: expected the same rows behind every context, found fewer behind %d tokens",
             path, c->context[c->n_context - 1]);
    return 0;
}

static int read_all(struct whatif_costs *c, const json_t *doc, const char *path)
{
    const char *model = json_string_value(json_object_get(doc, "model")),
               *device = json_string_value(json_object_get(doc, "device"));
    const json_t *points = json_object_get(doc, "points");
    if (!json_is_array(points) || !model || !device)
        FAIL(ERR_FORMAT, "%s: expected the JSON of bench step --cost-table, found no points", path);
    c->model = strdup(model);
    c->device = strdup(device);
    if (!c->model || !c->device)
        FAIL(ERR_MEMORY, "%s: no memory", path);
    TRY(read_points(c, points, path));
    return check_grid(c, path);
}

int whatif_costs_read(struct whatif_costs *c, const char *path)
{
    json_error_t why;
    struct whatif_costs made = {0};
    json_t *doc = json_load_file(path, 0, &why);
    if (!doc)
        FAIL(why.line > 0 ? ERR_FORMAT : ERR_IO,
             "%s: expected a cost table (JSON of bench step --cost-table): %s", path, why.text);
    int rc = read_all(&made, doc, path);
    json_decref(doc);
    if (rc)
        whatif_costs_deinit(&made);
    else
        *c = made;
    return rc;
}

void whatif_costs_deinit(struct whatif_costs *c)
{
    free(c->at);
    free(c->rows);
    free(c->context);
    free(c->model);
    free(c->device);
    *c = (struct whatif_costs){0};
}

int whatif_costs_max_rows(const struct whatif_costs *c)
{
    return c->rows[c->n_rows - 1];
}

/* The segment [i, i + 1] of x [n] for v, and how far along; beyond the ends the first and the last one go on.
 */
static int segment(const int *x, int n, int v, double *along)
{
    int i = 0;
    if (n == 1) {
        *along = 0;
        return 0;
    }
    while (i < n - 2 && v >= x[i + 1])
        i++;
    *along = (double)(v - x[i]) / (double)(x[i + 1] - x[i]);
    return i;
}

static double at(const struct whatif_costs *c, int context, int rows, int experts)
{
    const struct whatif_point *p = &c->at[context * c->n_rows + rows];
    return experts ? p->experts : p->seconds;
}

static double interpolate(const struct whatif_costs *c, int rows, int context, int experts)
{
    double r, k;
    assert(rows >= 1 && rows <= whatif_costs_max_rows(c));
    int i = segment(c->rows, c->n_rows, rows, &r), j = segment(c->context, c->n_context, context, &k);
    int i1 = c->n_rows > 1 ? i + 1 : i, j1 = c->n_context > 1 ? j + 1 : j;
    double low = at(c, j, i, experts) * (1 - r) + at(c, j, i1, experts) * r;
    double high = at(c, j1, i, experts) * (1 - r) + at(c, j1, i1, experts) * r;
    double v = low * (1 - k) + high * k, least = low < high ? low : high;
    return v > least / 2 ? v : least / 2; /* a noisy slope carried far must not make time negative */
}

double whatif_seconds(const struct whatif_costs *c, int rows, int context)
{
    return interpolate(c, rows, context, 0);
}

double whatif_experts(const struct whatif_costs *c, int rows, int context)
{
    return interpolate(c, rows, context, 1);
}

double whatif_spread(const struct whatif_costs *c)
{
    double *x = malloc(((size_t)c->n + 1) * sizeof *x);
    if (!x)
        return 0;
    for (int i = 0; i < c->n; i++)
        x[i] = c->at[i].spread;
    double v = stats_select(x, c->n, 0.5);
    free(x);
    return v;
}
