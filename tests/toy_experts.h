/* toy_experts: what the decode loop's records say of experts, for models that have some. */
#ifndef TESTS_TOY_EXPERTS_H
#define TESTS_TOY_EXPERTS_H
#include "spec/loop.h"
#include "tests/toy_loop.h"

enum { TOY_EXPERTS_SLOTS = 2, TOY_EXPERTS_TEXT = 60, TOY_EXPERTS_LAYERS = 8, TOY_EXPERTS_TOP_K = 2 };

struct toy_experts {
    int layers, top_k, steps;
    int rows[TOY_EXPERTS_TEXT], distinct[TOY_EXPERTS_TEXT][TOY_EXPERTS_LAYERS]; /* of each step */
    int before[TOY_EXPERTS_TEXT][TOY_EXPERTS_SLOTS]; /* tokens of the texts when it began */
    struct toy_experts_text {
        int n, tokens[TOY_EXPERTS_TEXT]; /* prompt and answer */
        int first; /* the first position that a step decided the next token of */
        int chosen[TOY_EXPERTS_TEXT][TOY_EXPERTS_LAYERS][TOY_EXPERTS_TOP_K]; /* with TRACE_FULL: by the tokens at [first, n - 1) */
    } text[TOY_EXPERTS_SLOTS];
};

/* Toy prompts 3 and 5 (modulo the vocabulary) at once, greedy, with ngram drafts. With TRACE_FULL each step's distinct experts are
 * held to what its rows chose, and what a token chose to a pass over the whole text; with less nothing is said of rows. */
void toy_experts_run(struct model *m, enum trace_level trace, struct toy_experts *out);
#endif
