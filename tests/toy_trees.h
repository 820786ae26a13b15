/* toy_trees: what a strategy proposed in every step of every request, to be compared with what another did. */
#ifndef TESTS_TOY_TREES_H
#define TESTS_TOY_TREES_H
#include "tests/toy_loop.h"

struct toy_node {
    int token, parent;
    float log_q;
};

/* Of one request: its steps' trees one behind the other. */
struct toy_trees {
    int n_steps, steps[TOY_ANSWER]; /* nodes of each */
    int n;
    struct toy_node node[TOY_ANSWER * 64];
    int accepted;
};

/* Requests 0..n-1 of toy prompts, max_tokens as in toy_run, every slot kept busy; the trace is on. */
void toy_trees_run(struct model *m, const struct spec_opts *o, int n, const int *max_tokens, struct toy_trees *out);
/* Node for node, log q but for a tolerance; the message says where they part. Returns how many nodes there were. */
int  toy_trees_assert_same(const struct toy_trees *want, const struct toy_trees *got, int n, float tolerance, const char *what);
#endif
