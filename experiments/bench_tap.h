/* bench_tap: the operations of a pass as a list. While a tap is open, what forward_enqueue asks its backend for is written down instead of
 * computed; each entry can then be enqueued by itself, again and again. So the operations that `bench kernels` times are those of
 * engine/forward.c, whatever they are. */
#ifndef EXPERIMENTS_BENCH_TAP_H
#define EXPERIMENTS_BENCH_TAP_H
#include "engine/backend.h"

enum operation_kind {
    OPERATION_EMBED,
    OPERATION_RMSNORM,
    OPERATION_ROPE_TABLE,
    OPERATION_QUANTISE,
    OPERATION_QKV,
    OPERATION_ATTENTION,
    OPERATION_RESIDUAL,
    OPERATION_SWIGLU,
    OPERATION_GEMM,
    OPERATION_LOGITS,
    OPERATION_TEMPERATURE,
    OPERATION_ROUTE,
    OPERATION_MOE,
    OPERATION_REDUCE,
    OPERATION_GATHER,
    OPERATION_ACCEPT, /* from here on: of a step around its pass */
    OPERATION_NODE_STATS,
    OPERATION_PLAN,
    OPERATION_NGRAM,
    OPERATION_COMMIT
};

struct rope_tables {
    const struct rows *rows;
    const float *inv_freq;
    int head_dim;
    float *cos_sin;
};

struct step_plans {
    const struct step *step;
    int rows;
};

/* One call; what its arguments point to is the model's, the cache's and the pass's own, and stays theirs. */
struct operation {
    enum operation_kind kind;
    union {
        struct embed embed;
        struct rmsnorm rmsnorm;
        struct rope_tables rope_table;
        struct quantise quantise;
        struct qkv qkv;
        struct attention attention;
        struct residual residual;
        struct gemm gemm; /* SWIGLU too */
        struct logits logits;
        struct temperature temperature;
        struct route route;
        struct moe moe;
        struct reduce reduce;
        struct gather gather;
        struct accept accept;
        struct node_stats node_stats;
        struct step_plans plan;
        struct ngram ngram;
        struct step_commit commit;
    } a;
};
int operation_enqueue(const struct operation *o, struct backend *be);
struct gemm *operation_product(struct operation *o); /* inside it, NULL when it has none */

struct tap {
    struct backend be;              /* what a model is opened on; the caller opens and closes it */
    const struct backend_ops *real; /* while the tap is open */
    struct backend_ops ops;
    struct operation *list;         /* owned [n] */
    int n, cap;
    int done;                       /* following: the step is over */
};
void tap_open(struct tap *t);   /* the list is empty again; be must be open */
/* Of the loop's next step write down what is around the pass, and compute it as well; nothing of later steps is done. So what the step
 * left in backend memory stays. The list is empty at first. */
void tap_follow(struct tap *t);
void tap_close(struct tap *t);  /* the backend computes again; a closed tap is fine */
void tap_deinit(struct tap *t); /* a zeroed struct is fine */
#endif
