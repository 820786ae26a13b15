/* One table of edges an axis. */
#include "experiments/metrics_bins.h"
#include <math.h>

const char *const metrics_axis_names[METRICS_AXES] = {[METRICS_TURN] = "turn",
                                                      [METRICS_CONTEXT] = "context",
                                                      [METRICS_ENTROPY] = "entropy",
                                                      [METRICS_CONFIDENCE] = "confidence",
                                                      [METRICS_RANK] = "rank"};

/* Lower edges; bins end where the list has INFINITY. */
static const double edges[METRICS_AXES][METRICS_BINS + 1] = {
    [METRICS_TURN] = {0, 1, 2, 3, 4, 5, 6, 7, 8, INFINITY},
    [METRICS_CONTEXT] = {0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, INFINITY},
    [METRICS_ENTROPY] = {0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, INFINITY},
    [METRICS_CONFIDENCE] = {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, INFINITY},
    [METRICS_RANK] = {1, 2, 3, 4, 6, 11, 101, 1001, INFINITY}};

int metrics_axis_is_of_nodes(enum metrics_axis axis)
{
    return axis >= METRICS_ENTROPY;
}

double metrics_bin_from(enum metrics_axis axis, int b)
{
    return edges[axis][b];
}

double metrics_bin_to(enum metrics_axis axis, int b)
{
    return edges[axis][b + 1];
}

static void add(struct metrics_bin *bins, enum metrics_axis axis, double value, double hits)
{
    int b = 0;
    if (!(value >= edges[axis][0]))
        return;
    while (value >= edges[axis][b + 1] && !isinf(edges[axis][b + 1]))
        b++;
    bins[b].n++;
    bins[b].hits += hits;
    bins[b].sum += value;
}

static void add_nodes(struct metrics_bin *bins, enum metrics_axis axis, const struct trace_judged *x,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (axis == METRICS_RANK)
            add(bins, axis, x[i].rank, x[i].accepted);
        else if (axis == METRICS_ENTROPY)
            add(bins, axis, (double)x[i].entropy, x[i].accepted);
        else
            add(bins, axis, exp((double)x[i].log_q), x[i].accepted);
    }
}

void metrics_bin_request(struct metrics_bin *bins, enum metrics_axis axis, const struct trace *t,
                         int64_t request)
{
    const struct trace_request *r = &t->requests[request];
    for (int64_t i = r->step_begin; i < r->step_begin + r->steps; i++) {
        if (metrics_axis_is_of_nodes(axis)) {
            int64_t begin, end;
            trace_judged_at(t, i, &begin, &end);
            add_nodes(bins, axis, t->judged + begin, end - begin);
            continue;
        }
        const struct trace_step s = trace_step_at(t, i);
        add(bins, axis, axis == METRICS_TURN ? t->prompts[r->prompt].turn : s.position, s.accepted + 1);
    }
}

int metrics_bins_are_void(const struct metrics_bin *bins, enum metrics_axis axis)
{
    double n = 0, sum = 0;
    for (int b = 0; b < METRICS_BINS; b++) {
        n += bins[b].n;
        sum += bins[b].sum;
    }
    return n == 0 || (axis == METRICS_ENTROPY && sum == 0) || (axis == METRICS_CONFIDENCE && sum == n);
}

double metrics_ece(const struct metrics_bin *bins)
{
    double n = 0, error = 0;
    for (int b = 0; b < METRICS_BINS; b++) {
        n += bins[b].n;
        error += fabs(bins[b].hits - bins[b].sum);
    }
    return n > 0 ? error / n : NAN;
}
