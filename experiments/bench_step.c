/* bench_step: a step is one verification pass: `rows` rows behind `context` committed tokens, logits and
 * statistics included. It is timed twice: on the device alone, passes back to back, and as a host sees it
 * that plans each pass, waits for it and has its logits copied. Bytes: every weight once, of experts
 * those that the pass chose, the keys and values of the context once. */
#include "engine/clock.h"
#include "engine/err.h"
#include "experiments/bench_kinds.h"
#include "experiments/bench_project.h"
#include <stdio.h>
#include <stdlib.h>

enum { PREFILLS = 5 };

struct point {
    const char *stage;
    int rows, context;
    struct bench_time device, host; /* a median of 0: not measured */
    double bytes, experts;          /* experts: distinct ones a layer, mean over its layers; 0: none */
    size_t recorded;                /* kernels of the pass that was timed */
    struct bench_launches launches; /* the same, operation by operation */
    struct backend_clocks clocks;
    struct bench_stage stages[BENCH_STAGES];
    int n_stages;
};

struct points {
    struct point at[BENCH_LIST * BENCH_LIST + BENCH_LIST];
    int n;
};

/* With planning, upload, download, waiting and rollback. */
static int time_host(struct bench *b, int rows, struct bench_time *out)
{
    for (int i = -b->warmup; i < b->repeats; i++) {
        const int64_t t = clock_ns();
        TRY(bench_plan(b, rows));
        if (i >= 0)
            b->seconds[i] = 1e-9 * (double)(clock_ns() - t);
    }
    *out = bench_summarise(b->seconds, b->repeats);
    return 0;
}

/* Of the last pass: the mean over its layers of distinct experts; *more: their bytes beyond the top_k a layer
 * that weight_bytes counts. */
static double distinct_experts(const struct bench *b, int rows, double *more)
{
    const struct model *m = &b->m;
    const int *expert = b->experts, chosen = rows * m->cfg.top_k;
    int all = 0;
    *more = 0;
    for (int i = 0; b->f.moe_layers && i < m->cfg.layers; i++) {
        const struct layer *l = &m->layers[i];
        if (!(l->kind & LAYER_MOE))
            continue;
        const int distinct = bench_distinct(expert, chosen);
        *more += ((double)distinct - m->cfg.top_k) *
                 (double)(l->expert_gate_up[0].bytes + l->expert_down[0].bytes);
        expert += chosen;
        all += distinct;
    }
    return b->f.moe_layers ? (double)all / b->f.moe_layers : 0;
}

/* Keys and values that a row behind the context sees. */
static double cache_bytes(const struct bench *b, int context)
{
    const struct model_config *c = &b->m.cfg;
    double cells = 0;
    for (int i = 0; i < c->layers; i++)
        cells += bench_cells_seen(context, c->kind[i] & LAYER_NOPE ? 0 : c->chunk);
    return cells * bench_cell_bytes(b);
}

static int measure_point(struct bench *b, int rows, int context, struct point *p)
{
    *p = (struct point){.stage = rows == 1 ? "decode" : "verify",
                        .rows = rows,
                        .context = context,
                        .bytes = (double)b->m.weight_bytes + cache_bytes(b, context)};
    TRY(bench_fill(b, context));
    double more;
    TRY(time_host(b, rows, &p->host));
    TRY(bench_count_launches(b, context, &p->launches));
    p->experts = distinct_experts(b, rows, &more);
    p->bytes += more;
    TRY(bench_plan(b, rows));
    TRY(bench_time_whole(b, context, &p->device, &p->recorded));
    p->clocks = b->clocks;
    return b->stages ? bench_time_stages(b, context, p->stages, &p->n_stages) : 0;
}

static int measure_prefill(struct bench *b, int n, struct point *p)
{
    const int repeats = b->repeats < PREFILLS ? b->repeats : PREFILLS;
    *p = (struct point){.stage = "prefill", .rows = n};
    for (int i = -1; i < repeats; i++) {
        kv_reset(&b->kv, 0);
        const int64_t t = clock_ns();
        TRY(forward_prefill(&b->f, 0, b->tokens, n));
        TRY(b->tap.be.ops->sync(&b->tap.be));
        if (i >= 0)
            b->seconds[i] = 1e-9 * (double)(clock_ns() - t);
    }
    p->host = bench_summarise(b->seconds, repeats);
    return 0;
}

/* The time of one row behind the same text, 0 when it was not measured. */
static double one_row(const struct points *all, const struct point *p)
{
    for (int i = 0; i < all->n; i++)
        if (all->at[i].rows == 1 && all->at[i].context == p->context && all->at[i].device.median > 0)
            return all->at[i].device.median;
    return 0;
}

static void print_step(const struct bench *b, const struct points *all, const struct point *p)
{
    const double one = one_row(all, p);
    printf("%-8s %5d %8d %10.4f %9.4f %10.1f %9.1f %9.4f %7.1f%% ", p->stage, p->rows, p->context,
           1e3 * p->device.median, 1e3 * p->device.p90, p->rows / p->device.median, 1e-6 * p->bytes,
           1e3 * bench_floor(b, p->bytes), 100 * bench_floor(b, p->bytes) / p->device.median);
    if (one > 0)
        printf("%8.3f", p->device.median / one);
    else
        printf("%8s", "-");
    printf(" %8zu ", p->recorded);
    if (b->empty > 0)
        printf("%9.4f", 1e3 * bench_idle(b, p->recorded));
    else
        printf("%9s", "-");
    printf(" %10.4f %9.4f\n", 1e3 * p->host.median, 1e3 * p->host.p90);
}

static void print_prefill(const struct point *p)
{
    printf("%-8s %5d %8d %10s %9s %10.1f %9s %9s %8s %8s %8s %9s %10.4f %9.4f\n", p->stage, p->rows,
           p->context, "-", "-", p->rows / p->host.median, "-", "-", "-", "-", "-", "-", 1e3 * p->host.median,
           1e3 * p->host.p90);
}

static void print_projections(const struct bench *b, const struct points *all)
{
    struct projection p;
    if (!b->project || projection_named(b->project, &p))
        return;
    p.al = b->al > 0 ? b->al : p.al;
    p.draft_s = 1e-3 * b->draft_ms;
    p.collective_s = b->collective_us > 0 ? 1e-6 * b->collective_us : p.collective_s;
    const int ranks = b->numbers.shard.world > 1 ? b->numbers.shard.world : 1;
    for (int i = 0; i < all->n; i++) {
        const struct point *at = &all->at[i];
        const struct projected_from from = {at->rows,  at->context,       b->m.cfg.layers,          ranks,
                                            at->bytes, at->device.median, bench_floor(b, at->bytes)};
        if (at->device.median > 0)
            projection_print(&p, &from, stdout);
    }
}

/* What a table has no room for. */
static void print_layers(const struct bench *b, const struct points *all)
{
    for (int i = 0; i < all->n; i++) {
        const struct point *p = &all->at[i];
        if (!p->recorded)
            continue;
        printf("%d row%s behind %d tokens: %.2f kernels a layer, %.3f us a kernel of the pass", p->rows,
               p->rows == 1 ? "" : "s", p->context, (double)p->launches.layered / b->m.cfg.layers,
               1e6 * p->device.median / (double)p->recorded);
        if (p->experts > 0)
            printf("; %.2f distinct experts a layer of experts, the mean; MB counts those", p->experts);
        printf("\n");
        bench_print_clocks(b, &p->clocks);
    }
}

static void print_table(const struct bench *b, const struct points *all)
{
    bench_print_head(b);
    printf("%-8s %5s %8s %10s %9s %10s %9s %9s %8s %8s %8s %9s %10s %9s\n", "stage", "rows", "context",
           "median ms", "p90 ms", "tokens/s", "MB", "floor ms", "of roof", "x 1 row", "launches", "idle ms",
           "with host", "p90 ms");
    for (int i = 0; i < all->n; i++)
        if (all->at[i].device.median > 0)
            print_step(b, all, &all->at[i]);
        else
            print_prefill(&all->at[i]);
    if (b->empty > 0)
        printf(
            "idle: time between kernels, launches x %.3f us, which a kernel without work takes in a recorded "
            "chain of them\n",
            1e6 * b->empty);
    print_layers(b, all);
    for (int i = 0; i < all->n; i++) {
        const struct point *p = &all->at[i];
        const double sum = bench_stages_sum(p->stages, p->n_stages);
        if (!p->n_stages)
            continue;
        printf("\n");
        bench_print_stages(b, p->stages, p->n_stages);
        printf("sum of stages %.4f ms, in their pass %.4f ms, the whole pass %.4f ms: %.1f%% of the sum\n",
               1e3 * sum, 1e3 * bench_stages_in_pass(p->stages, p->n_stages), 1e3 * p->device.median,
               100 * p->device.median / sum);
    }
}

static json_t *point_json(const struct bench *b, const struct points *all, const struct point *p)
{
    const double one = one_row(all, p), floor = bench_floor(b, p->bytes), median = p->device.median;
    json_t *out =
        json_pack("{s:s, s:i, s:i, s:o, s:o, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
                  "stage", p->stage, "rows", p->rows, "context", p->context, "median_s", bench_number(median),
                  "p90_s", bench_number(p->device.p90), "host_median_s", p->host.median, "host_p90_s",
                  p->host.p90, "bytes", bench_number(p->bytes), "floor_s", bench_number(floor), "of_roof",
                  bench_number(median > 0 ? floor / median : 0), "rows_ratio",
                  bench_number(one > 0 ? median / one : 0), "launches", bench_number((double)p->recorded),
                  "launches_per_layer", bench_number((double)p->launches.layered / b->m.cfg.layers),
                  "launch_s", bench_number(p->recorded ? median / (double)p->recorded : 0), "idle_s",
                  bench_number(bench_idle(b, p->recorded)), "experts", bench_number(p->experts), "stages",
                  bench_stages_json(b, p->stages, p->n_stages));
    return bench_clocks_json(out, &p->clocks);
}

static int print_json(const struct bench *b, const struct points *all)
{
    json_t *out = bench_head_json(b), *points = json_array();
    for (int i = 0; i < all->n; i++)
        json_array_append_new(points, point_json(b, all, &all->at[i]));
    json_object_set_new(out, "points", points);
    return bench_print_json(out);
}

static int measure_all(struct bench *b, struct points *all)
{
    for (int c = 0; c < b->context.n; c++)
        for (int r = 0; r < b->rows.n; r++)
            TRY(measure_point(b, b->rows.at[r], b->context.at[c], &all->at[all->n++]));
    for (int i = 0; i < b->prefill.n; i++)
        if (b->prefill.at[i] > 0)
            TRY(measure_prefill(b, b->prefill.at[i], &all->at[all->n++]));
    return bench_measure_ceiling(b);
}

int bench_step(struct bench *b)
{
    struct points *all = calloc(1, sizeof *all);
    if (!all)
        FAIL(ERR_MEMORY, "bench: out of memory for the results");
    int rc = measure_all(b, all);
    if (rc == 0 && b->json)
        rc = print_json(b, all);
    else if (rc == 0) {
        print_table(b, all);
        print_projections(b, all);
    }
    free(all);
    return rc;
}
