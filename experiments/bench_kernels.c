/* bench_kernels: each operation of a pass alone, and the pass itself beside their sum: what the sum has more
 * was overlapped, what it has less was waiting. How much of a pass its kernels need to follow each other is
 * measured apart (bench_stamps.c). */
#include "engine/err.h"
#include "experiments/bench.h"
#include <stdio.h>
#include <stdlib.h>

struct pass {
    int rows, context, n;
    struct bench_time whole;
    size_t launches;
    struct backend_clocks clocks;
    struct bench_stage stages[BENCH_STAGES];
};

struct passes {
    struct pass at[BENCH_LIST * BENCH_LIST];
    int n;
};

static int measure_pass(struct bench *b, int rows, int context, struct pass *p)
{
    *p = (struct pass){.rows = rows, .context = context};
    TRY(bench_fill(b, context));
    TRY(bench_plan(b, rows));
    TRY(bench_time_whole(b, context, &p->whole, &p->launches));
    p->clocks = b->clocks;
    return bench_time_stages(b, context, p->stages, &p->n);
}

static int measure_all(struct bench *b, struct passes *all)
{
    for (int c = 0; c < b->context.n; c++)
        for (int r = 0; r < b->rows.n; r++)
            TRY(measure_pass(b, b->rows.at[r], b->context.at[c], &all->at[all->n++]));
    return bench_measure_ceiling(b);
}

static void print_tables(const struct bench *b, const struct passes *all)
{
    bench_print_head(b);
    for (int i = 0; i < all->n; i++) {
        const struct pass *p = &all->at[i];
        const double sum = bench_stages_sum(p->stages, p->n);
        bench_print_stages(b, p->stages, p->n);
        printf("sum of stages %.4f ms, in their pass %.4f ms, the whole pass of %zu kernels %.4f ms (p90 "
               "%.4f): %.1f%% of the sum\n",
               1e3 * sum, 1e3 * bench_stages_in_pass(p->stages, p->n), p->launches, 1e3 * p->whole.median,
               1e3 * p->whole.p90, 100 * p->whole.median / sum);
        if (b->empty > 0)
            printf(
                "between kernels %.4f ms: so many launches of one without work, %.3f us each in a recorded "
                "chain\n",
                1e3 * bench_idle(b, p->launches), 1e6 * b->empty);
        bench_print_clocks(b, &p->clocks);
        printf("\n");
    }
}

static json_t *pass_json(const struct bench *b, const struct pass *p)
{
    json_t *out = json_pack(
        "{s:i, s:i, s:f, s:f, s:I, s:o, s:f, s:f, s:o}", "rows", p->rows, "context", p->context, "median_s",
        p->whole.median, "p90_s", p->whole.p90, "launches", (json_int_t)p->launches, "idle_s",
        bench_number(bench_idle(b, p->launches)), "sum_s", bench_stages_sum(p->stages, p->n), "in_pass_s",
        bench_stages_in_pass(p->stages, p->n), "stages", bench_stages_json(b, p->stages, p->n));
    return bench_clocks_json(out, &p->clocks);
}

static int print_json(const struct bench *b, const struct passes *all)
{
    json_t *out = bench_head_json(b), *passes = json_array();
    for (int i = 0; i < all->n; i++)
        json_array_append_new(passes, pass_json(b, &all->at[i]));
    json_object_set_new(out, "passes", passes);
    return bench_print_json(out);
}

int bench_kernels(struct bench *b)
{
    struct passes *all = calloc(1, sizeof *all);
    if (!all)
        FAIL(ERR_MEMORY, "bench: out of memory for the results");
    int rc = measure_all(b, all);
    if (rc == 0 && b->json)
        rc = print_json(b, all);
    else if (rc == 0)
        print_tables(b, all);
    free(all);
    return rc;
}
