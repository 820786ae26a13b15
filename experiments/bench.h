/* bench: how long a step and its operations take on this machine, against the least time that reading their bytes can take. Shared by
 * bench.c (the command), bench_step.c and bench_kernels.c (what is measured), bench_kinds.c, bench_stages.c, bench_stamps.c and bench_time.c
 * (how), bench_report.c.
 *
 * JSON, schema_version 3, seconds and bytes throughout, null where something is not known or does not apply:
 *   what, model, weights, activations, kv, device, isa, index, threads, clock_mhz, memory_mhz, cache_bytes, recorded, warmup, repeats,
 *   weight_bytes, read_bytes_per_s, peak_mib, device_mib, empty_s (a kernel without work in a recorded chain), layers, shard ([rank, world]: one
 *   rank alone, its collectives copies within the device)
 *   step:    points [{stage, rows, context, median_s, p90_s, host_median_s, host_p90_s, bytes, floor_s, of_roof, rows_ratio, launches,
 *            launches_per_layer, launch_s, idle_s, experts, ran_mhz, ran_memory_mhz, slowed_by, stages}]
 *   kernels: passes [{rows, context, median_s, p90_s, launches, idle_s, sum_s, in_pass_s, ran_mhz, ran_memory_mhz, slowed_by, stages}]
 *   launch_s is median_s over launches; idle_s is launches * empty_s; experts are distinct ones a layer, the mean; ran_mhz and
 *   slowed_by were asked for while the passes ran
 *   stages [{name, part, moves, rows, context, n, k, count, launches, median_s, p90_s, in_pass_s, bytes, rotated_bytes, bytes_per_s, of_roof,
 *   floor_s, experts, rival_s, rival_ratio}]: a time is of one operation, count says how many a pass has; in_pass_s: in its place in a pass
 *   that has stamps in between, less empty_s; part: pass, or step for what a step of the decode loop has around its pass */
#ifndef EXPERIMENTS_BENCH_H
#define EXPERIMENTS_BENCH_H
#include "engine/forward.h"
#include "experiments/bench_tap.h"
#include "experiments/config.h"
#include <jansson.h>

enum { BENCH_ROWS = 64, BENCH_BULK_ROWS = 8192, BENCH_LIST = 16, BENCH_REPEATS = BACKEND_MARKS - 1, BENCH_STAGES = 24 };

struct bench_list {
    int at[BENCH_LIST], n;
};

struct bench {
    /* options */
    const char *what, *dir, *shape, *kind, *isa; /* dir or shape, the other is NULL */
    struct model_opts numbers; /* and the rank that runs alone */
    struct bench_list rows, context, prefill;
    struct config config; /* owned: of --config, what some options above point into */
    long seed;            /* of random weights */
    int layers;           /* of a shape, so many of its first; 0: all */
    int index, threads, repeats, warmup, json, eager, stages;
    const char *project; /* NULL, or the machine that the step is projected to */
    double al, draft_ms, collective_us; /* of the projection; 0: its own */
    /* state */
    struct tap tap; /* owned, with the backend */
    struct model m;
    struct kv kv;   /* one slot */
    struct forward f;
    int *tokens;     /* owned [kv.cap] what fills the cache */
    int64_t *ns;     /* owned [repeats + 1] */
    double *seconds; /* owned [repeats] */
    double ceiling;  /* bytes a second that the device reads */
    double empty;    /* seconds of a kernel without work in a recorded chain; 0: operations are calls, which nothing lies between */
    int *experts;    /* owned [f.moe_layers, f.max_rows, top_k] a copy of f.experts for the host */
    struct backend_clocks clocks; /* while passes were timed last */
    double peak_mib; /* resident memory of the process before the ceiling was measured */
    double device_mib; /* likewise of the backend's allocations */
    int no_rival;      /* 1: there is no library to compare products with, and that was said */
};

/* Seconds a pass, of single passes. */
struct bench_time {
    double median, p90;
};

/* What is timed: all that `enqueue` asks the backend for. */
struct bench_pass {
    int (*enqueue)(struct bench *b, const void *arg);
    const void *arg; /* borrowed */
    struct pass_key key;
};

/* One kind of operation of a pass. */
struct bench_stage {
    const char *name, *moves; /* what its bytes are of */
    int around;               /* 1: of a step around its pass */
    int rows, context;
    int n, k;                 /* of a product, else 0 */
    int count;                /* in a pass */
    size_t launches;          /* of one */
    double experts;           /* of MoE layers, distinct ones that are read, the mean; else 0 */
    double in_pass;           /* seconds of one in its place in a pass; 0: around it */
    double bytes, rotated;    /* of one; read by all copies before the first comes again */
    struct bench_time time;   /* of one */
    double rival;             /* seconds of the vendor's library for the same product; 0: there is none */
};

/* Slot 0 holds the first `context` tokens afterwards, as many of them as before stay. */
int bench_fill(struct bench *b, int context);
/* b->f.rows says on the device what a chain of `rows` rows behind the text is; the text stays as it is. */
int bench_plan(struct bench *b, int rows);
unsigned bench_flags(int rows); /* of a pass of so many rows */
int bench_enqueue_pass(struct bench *b, const struct bench_pass *p);
/* Passes back to back with stamps of the device between them, after the warm-up. launches: those of one pass, NULL: not asked. */
int bench_time_passes(struct bench *b, const struct bench_pass *p, struct bench_time *out, size_t *launches);
/* The recorded pass over the rows of bench_plan, as it is. */
int bench_time_whole(struct bench *b, int context, struct bench_time *out, size_t *launches);
struct bench_time bench_summarise(double *seconds, int n);

/* What forward enqueues for the rows of bench_plan is in the tap's list, and b->experts what they chose. */
int bench_tap_pass(struct bench *b, int context);
/* Kernels of a pass, and of these the layers'. */
struct bench_launches {
    size_t all, layered;
};
int bench_count_launches(struct bench *b, int context, struct bench_launches *out);
int bench_time_empty(struct bench *b);
double bench_idle(const struct bench *b, size_t launches); /* seconds between so many kernels */
/* in_pass of stages, the tap's list being of a pass. */
int bench_time_in_pass(struct bench *b, struct bench_stage *out, int n);
/* All kinds of the pass over the rows of bench_plan, each timed alone; out [BENCH_STAGES]. */
int bench_time_stages(struct bench *b, int context, struct bench_stage *out, int *n);
double bench_stages_sum(const struct bench_stage *s, int n); /* seconds of a pass, were nothing to overlap */
double bench_stages_in_pass(const struct bench_stage *s, int n);
/* A step of the decode loop has been done behind `context` tokens, with trees of so many nodes that the pass had `rows` rows; the tap's list
 * holds what was around the pass, to be enqueued until bench_loop_close. Texts have room for `commits` more steps. */
struct spec;
int  bench_loop_open(struct bench *b, int rows, int context, int commits, struct spec **out);
void bench_loop_close(struct bench *b, struct spec *s); /* accepts NULL */
void bench_print_stages(const struct bench *b, const struct bench_stage *s, int n);
json_t *bench_stages_json(const struct bench *b, const struct bench_stage *s, int n);

/* Measure and print, the backend and the model being open. */
int bench_step(struct bench *b);
int bench_kernels(struct bench *b);
int bench_measure_ceiling(struct bench *b); /* after everything else: its buffer does not count as peak memory */
void bench_print_head(const struct bench *b);
void bench_print_clocks(const struct bench *b, const struct backend_clocks *c); /* a line, where they are known */
json_t *bench_clocks_json(json_t *into, const struct backend_clocks *c); /* its keys into an object, which is returned */
json_t *bench_head_json(const struct bench *b); /* NULL: out of memory */
int bench_print_json(json_t *out);              /* takes the reference */
/* seconds at the ceiling, 0 bytes: 0 */
double bench_floor(const struct bench *b, double bytes);
json_t *bench_number(double x);                 /* 0: null */
#endif
