/* toy_world: small models cut over ranks, and what they must have in common with the whole. On every backend. */
#ifndef TESTS_TOY_WORLD_H
#define TESTS_TOY_WORLD_H
#include "engine/ranks.h"
#include "spec/group.h"
#include "tests/toy_loop.h"

enum { WORLD_ROWS = 12, WORLD_PROMPT = 30, WORLD_REQUESTS = 4, WORLD_ANSWER = 48 };

/* Eight key/value heads, so that eight ranks fit; the second: layers in turn dense with rotation and chunks shorter than the prompt, and of
 * experts, the last of them without rotation. */
struct model_config world_dense(void);
struct model_config world_experts(void);

struct world {
    struct ranks *ranks;
    struct backend be; /* of rank 0 */
    struct model model;
};

/* Random weights of the shape on `world` ranks of a backend, ranks_per_gpu of them in a row on one device; eager: no graphs. Fails the test on any error. */
struct world_opts {
    const char *kind;
    int ranks_per_gpu, eager;
    double patience_s;
};
void world_open(struct world *w, const struct world_opts *o, int world, const struct model_config *shape);
void world_close(struct world *w);

/* A prompt of WORLD_PROMPT and then a tree of WORLD_ROWS rows, in every rank; for ranks_do. */
struct world_pass {
    float *logits[COMM_WORLD_MAX]; /* [WORLD_ROWS, vocab], of the test */
    int experts[COMM_WORLD_MAX][2 * WORLD_ROWS];
};
int  world_pass(void *ctx, struct rank *rank);

/* Ranks agree to the bit, two runs agree to the bit, experts are the whole model's, and logits are within `slack` times golden_bound of its. */
void world_check(const struct world_opts *o, const struct model_config *shape, int world, double slack, const char *what);

/* WORLD_REQUESTS requests, two at once: ngram's answers against none's, greedy and with common random numbers. */
void world_check_speculation(const struct world_opts *o, const struct model_config *shape, int world);
#endif
