/* bench_kinds: what kinds of operations a pass, and a step around it, consist of. */
#ifndef EXPERIMENTS_BENCH_KINDS_H
#define EXPERIMENTS_BENCH_KINDS_H
#include "experiments/bench.h"

enum bench_matrix { BENCH_ANY, BENCH_OF_LAYER, BENCH_OF_MODEL };

struct bench_kind {
    const char *name, *moves;  /* what its bytes are of */
    enum operation_kind kind;
    int layered;               /* 1: every layer may have some */
    enum bench_matrix matrix;  /* of these with a product: whatever, this member of struct layer, or the head */
    size_t member;
    double (*bytes)(const struct bench *b, const struct operation *o, int context);
};
extern const struct bench_kind bench_kinds[]; /* in the order of reports */
extern const int bench_n_kinds;

int bench_is_of(const struct bench *b, const struct bench_kind *k, const struct operation *o);
const struct bench_kind *bench_kind_of(const struct bench *b, const struct operation *o); /* NULL: of none */
double bench_cell_bytes(const struct bench *b);     /* of one position in one layer */
int bench_cells_seen(int context, int chunk);       /* of so many, by a row behind them whose layer has chunks (0: none) */
int bench_distinct(const int *expert, int n);                                           /* of n, -1 is none */
int bench_operation_experts(const struct bench *b, const struct operation *o); /* that it reads, by b->experts */
#endif
