/* bench_comm: what a sum over ranks costs, with the residual and the norm that come with it, by each of the
 * ways that parts can travel; and the case that a step has most: four rows, their norm quantised behind.
 * Ranks are threads. A recorded pass holds many operations one behind the other, so that a time is of an
 * operation within a graph: it ends when the next may begin, and no rank can be ahead by more than one. */
#include "engine/err.h"
#include "experiments/bench.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDTH = 5120,
    FUSED_ROWS = 4,
    IN_GRAPH = 32,
    IN_GRAPH_BULK = 4,
    PATHS = 3,
    POINTS = 2 * BENCH_LIST + 1
};
#define PATIENCE_S    30.0
#define LIBRARY_BYTES ((size_t)16 << 20) /* parts for which a group opens NCCL */

static const char *const path_names[PATHS] = {"one_shot", "two_shot", "library"};
enum { WITHIN, BEHIND }; /* where a fused point is quantised */
static const char *const fused_names[] = {"quantised_within", "quantised_behind"};
static const enum reduce_path paths[PATHS] = {REDUCE_ONE_SHOT, REDUCE_TWO_SHOT, REDUCE_LIBRARY};

/* One size; median 0: there is no such way here. */
struct point {
    int rows, fused; /* 1: quantised too, by the way that its size chooses: within the operation, and by one
                        behind it */
    enum wire wire;
    struct bench_time by[PATHS];
};

struct rank {
    const struct bench *b;
    struct comm comm;
    struct backend be;
    float *part, *y, *gain, *square, *scale; /* of the backend, for as many rows as any point has */
    void *act;
    struct point points[POINTS];
    int n_points, most;
    int64_t *ns;     /* owned [repeats + 1] */
    double *seconds; /* owned [repeats] */
    int rc;
    char device[sizeof((struct backend *)0)->device];
    char why[1024];
};

static int is_bulk(int rows)
{
    return rows > BULK_ROWS;
}

static int rank_open(struct rank *r)
{
    const struct bench *b = r->b;
    struct backend *be = &r->be;
    const struct backend_opts opts = {
        .threads = 1, .isa = b->isa, .device = b->index + r->comm.rank % b->gpus, .eager = b->eager};
    const size_t bytes = (size_t)r->most * WIDTH * sizeof(float);
    TRY(backend_open(be, b->kind, &opts));
    memcpy(r->device, be->device, sizeof r->device);
    TRY(be->ops->alloc(be, bytes, (void **)&r->part));
    TRY(be->ops->alloc(be, bytes, (void **)&r->y));
    TRY(be->ops->alloc(be, bytes, &r->act));
    TRY(be->ops->alloc(be, bytes / 16, (void **)&r->square));
    TRY(be->ops->alloc(be, WIDTH * sizeof(float), (void **)&r->gain));
    TRY(be->ops->alloc(be, (size_t)r->most * sizeof(float), (void **)&r->scale));
    return be->ops->join(be, &r->comm, bytes > LIBRARY_BYTES ? bytes : LIBRARY_BYTES);
}

static int enqueue(struct rank *r, const struct point *p, int which)
{
    const struct backend_ops *ops = r->be.ops;
    const int many = is_bulk(p->rows) ? IN_GRAPH_BULK : IN_GRAPH;
    const struct rmsnorm norm = {.x = r->y,
                                 .w = r->gain,
                                 .y = {r->act, r->square, p->fused ? ACT_F16 : ACT_BF16},
                                 .rows = p->rows,
                                 .dim = WIDTH,
                                 .threads = 1,
                                 .bulk = is_bulk(p->rows),
                                 .eps = 1e-5f};
    const struct reduce a = {.part = r->part,
                             .y = r->y,
                             .norm = norm,
                             .rows = p->rows,
                             .n = WIDTH,
                             .wire = p->wire,
                             .path = p->fused ? REDUCE_BY_SIZE : paths[which],
                             .scale = p->fused && which == WITHIN ? r->scale : NULL};
    struct quantise q = reduce_quantise(&a);
    q.scale = r->scale;
    for (int i = 0; i < many; i++) {
        TRY(ops->reduce(&r->be, &a));
        if (p->fused && which == BEHIND)
            TRY(ops->quantise(&r->be, &q));
    }
    return 0;
}

static int run_pass(struct rank *r, const struct point *p, int which)
{
    const struct backend_ops *ops = r->be.ops;
    int recorded = 0;
    TRY(ops->pass_begin(&r->be, (struct pass_key){.owner = r, .rows = p->rows}, &recorded));
    return recorded ? 0 : ops->pass_end(&r->be, enqueue(r, p, which));
}

static int time_passes(struct rank *r, const struct point *p, int which)
{
    const struct backend_ops *ops = r->be.ops;
    for (int i = 0; i < r->b->warmup; i++)
        TRY(run_pass(r, p, which));
    TRY(ops->mark(&r->be, 0));
    for (int i = 0; i < r->b->repeats; i++) {
        TRY(run_pass(r, p, which));
        TRY(ops->mark(&r->be, i + 1));
    }
    TRY(ops->sync(&r->be));
    return ops->marks(&r->be, r->b->repeats + 1, r->ns);
}

static int measure_path(struct rank *r, struct point *p, int which)
{
    const int many = is_bulk(p->rows) ? IN_GRAPH_BULK : IN_GRAPH, n = r->b->repeats;
    const int rc = time_passes(r, p, which);
    r->be.ops->pass_forget(&r->be, r);
    if (rc == ERR_CONFIG && !p->fused && paths[which] == REDUCE_LIBRARY) { /* in every rank */
        err_clear();
        return 0;
    }
    for (int i = 0; i < n && rc == 0; i++)
        r->seconds[i] = 1e-9 * (double)(r->ns[i + 1] - r->ns[i]) / many;
    if (rc == 0)
        p->by[which] = bench_summarise(r->seconds, n);
    return rc;
}

/* Where the host computes there is one way. */
static int measure_all(struct rank *r)
{
    for (int i = 0; i < r->n_points; i++) {
        struct point *p = &r->points[i];
        const int ways = p->fused ? 2 : r->be.host_reads ? 1 : p->wire == WIRE_F32 ? PATHS : PATHS - 1;
        for (int which = 0; which < ways; which++) {
            TRY(comm_barrier(&r->comm));
            TRY(measure_path(r, p, which));
        }
    }
    return 0;
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    r->rc = rank_open(r);
    if (r->rc == 0)
        r->rc = measure_all(r);
    if (r->rc) {
        snprintf(r->why, sizeof r->why, "%s", err_text());
        comm_fail(&r->comm);
    }
    backend_close(&r->be);
    return NULL;
}

static void list_points(struct rank *r)
{
    const struct bench_list *rows = &r->b->rows;
    r->most = FUSED_ROWS;
    r->points[r->n_points++] = (struct point){.rows = FUSED_ROWS, .fused = 1, .wire = WIRE_BF16};
    for (int i = 0; i < rows->n; i++) {
        r->most = rows->at[i] > r->most ? rows->at[i] : r->most;
        for (int wire = WIRE_F32; wire <= WIRE_BF16; wire++)
            r->points[r->n_points++] = (struct point){.rows = rows->at[i], .wire = (enum wire)wire};
    }
}

static int ranks_init(struct rank *ranks, struct bench *b, struct comm_group *g)
{
    for (int p = 0; p < b->world; p++) {
        struct rank *r = &ranks[p];
        r->b = b;
        r->comm = comm_of(g, p);
        r->ns = malloc(((size_t)b->repeats + 1) * sizeof *r->ns);
        r->seconds = malloc((size_t)b->repeats * sizeof *r->seconds);
        if (!r->ns || !r->seconds)
            FAIL(ERR_MEMORY, "bench: out of memory for %d times", b->repeats);
        list_points(r);
    }
    return 0;
}

/* The first rank that failed of itself says most. */
static int run_ranks(struct rank *ranks, int world)
{
    pthread_t thread[COMM_WORLD_MAX];
    int started = 0, rc = 0;
    while (started < world && pthread_create(&thread[started], NULL, rank_main, &ranks[started]) == 0)
        started++;
    if (started < world) {
        rc = ERR_SET(ERR_MEMORY, "bench: the system gives no thread for rank %d of %d", started, world);
        comm_fail(&ranks[started].comm);
    }
    for (int p = 0; p < started; p++)
        pthread_join(thread[p], NULL);
    for (int p = 0; p < started && rc == 0; p++)
        if (ranks[p].rc)
            rc = ERR_SET(ranks[p].rc, "bench: rank %d of %d: %s", p, world, ranks[p].why);
    return rc;
}

static const char *wire_name(enum wire wire)
{
    return wire == WIRE_BF16 ? "bf16" : "f32";
}

static void print_time(const struct bench_time *t)
{
    if (t->median > 0)
        printf(" %9.2f %9.2f", 1e6 * t->median, 1e6 * t->p90);
    else
        printf(" %9s %9s", "-", "-");
}

static void print_table(const struct bench *b, const struct rank *r)
{
    const struct point *fused = &r->points[0];
    printf("device  %s %d: %s\n", b->kind, b->index, r->device);
    printf("group   %d ranks on %d device%s%s\n", b->world, b->gpus, b->gpus == 1 ? "" : "s",
           b->gpus < b->world ? ", which ranks share: their times are of no group of GPUs" : "");
    printf("passes  %d warm-up, %d measured, of %d operations (%d past %d rows); us an operation\n\n",
           b->warmup, b->repeats, IN_GRAPH, IN_GRAPH_BULK, BULK_ROWS);
    printf("sum, residual, norm and FP8 quantisation of %d rows of %d, %s\n", fused->rows, WIDTH,
           wire_name(fused->wire));
    for (int i = WITHIN; i <= BEHIND; i++)
        printf("  %s: median %.2f us, p90 %.2f us\n",
               i == WITHIN ? "one operation" : "quantised by one behind", 1e6 * fused->by[i].median,
               1e6 * fused->by[i].p90);
    printf("\n");
    printf("sum, residual and norm of rows of %d; NCCL's part is f32 with the rest behind it\n", WIDTH);
    printf("%6s %5s %9s %9s %9s %9s %9s %9s %9s\n", "rows", "wire", "KB", "one-shot", "p90", "two-shot",
           "p90", "NCCL", "p90");
    for (int i = 1; i < r->n_points; i++) {
        const struct point *p = &r->points[i];
        printf("%6d %5s %9.1f", p->rows, wire_name(p->wire),
               1e-3 * p->rows * WIDTH * (p->wire == WIRE_BF16 ? 2 : 4));
        for (int which = 0; which < PATHS; which++)
            print_time(&p->by[which]);
        printf("\n");
    }
}

static json_t *point_json(const struct point *p, int which)
{
    return json_pack("{s:i, s:i, s:s, s:s, s:b, s:f, s:f}", "rows", p->rows, "n", WIDTH, "wire",
                     wire_name(p->wire), "path", p->fused ? fused_names[which] : path_names[which],
                     "quantised", p->fused, "median_s", p->by[which].median, "p90_s", p->by[which].p90);
}

static int print_json(const struct bench *b, const struct rank *r)
{
    json_t *out = json_pack("{s:i, s:s, s:s, s:i, s:i, s:i, s:i}", "schema_version", 2, "what", "comm",
                            "device", r->device, "world", b->world, "gpus", b->gpus, "warmup", b->warmup,
                            "repeats", b->repeats),
           *points = json_array();
    for (int i = 0; i < r->n_points; i++)
        for (int which = 0; which < PATHS; which++)
            if (r->points[i].by[which].median > 0)
                json_array_append_new(points, point_json(&r->points[i], which));
    json_object_set_new(out, "points", points);
    return bench_print_json(out);
}

int bench_comm(struct bench *b)
{
    struct comm_group *g = NULL;
    struct rank *ranks = calloc(COMM_WORLD_MAX, sizeof *ranks);
    int rc = ranks ? comm_group_open(&g, b->world, PATIENCE_S)
                   : ERR_SET(ERR_MEMORY, "bench: out of memory for ranks");
    if (rc == 0)
        rc = ranks_init(ranks, b, g);
    if (rc == 0)
        rc = run_ranks(ranks, b->world);
    if (rc == 0 && b->json)
        rc = print_json(b, &ranks[0]);
    else if (rc == 0)
        print_table(b, &ranks[0]);
    for (int p = 0; ranks && p < COMM_WORLD_MAX; p++) {
        free(ranks[p].ns);
        free(ranks[p].seconds);
    }
    comm_group_close(g);
    free(ranks);
    return rc;
}
