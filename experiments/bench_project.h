/* bench_project: what a step measured here would take on a group of other GPUs: arithmetic on a measurement and on assumptions, each of
 * which is printed. A projection is never a measurement. */
#ifndef EXPERIMENTS_BENCH_PROJECT_H
#define EXPERIMENTS_BENCH_PROJECT_H
#include <stdio.h>

struct projection {
    const char *name;     /* "b200x8" */
    int ranks;
    double sheet;         /* bytes a second of one GPU, by its data sheet */
    double reach;         /* share of it that plain reading reaches */
    double collective_s;  /* one all-reduce with what is fused into it */
    int per_layer;        /* all-reduces */
    double draft_s;       /* drafting, a step */
    double al;            /* tokens a step, the bonus included */
};

/* What was measured: a pass of `layers` layers in `seconds`, whose bytes the device can read in `floor`. */
struct projected_from {
    int rows, context, layers;
    int ranks_held;       /* into how many parts the measured model was cut: 1, or the world of a shard */
    double bytes, seconds, floor;
};

struct projected {
    double bytes;         /* of one rank */
    double share;         /* of the ceiling, as measured */
    double pass_s, collectives_s, step_s, tokens_per_s;
};

int  projection_named(const char *name, struct projection *out); /* ERR_CONFIG lists the names */
struct projected projection_of(const struct projection *p, const struct projected_from *m);
void projection_print(const struct projection *p, const struct projected_from *m, FILE *out);
#endif
