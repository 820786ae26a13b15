/* toy_loop: requests through the decode loop of the toy model, and all that came out of them. */
#ifndef TESTS_TOY_LOOP_H
#define TESTS_TOY_LOOP_H
#include "drafts/drafts.h"
#include "spec/loop.h"
#include "tests/toy.h"

enum { TOY_ANSWER = 96, TOY_REQUESTS = 16, TOY_OPTIONS = 8 };

struct toy_answer {
    int tokens[TOY_ANSWER], n, steps, proposed, accepted;
    float log_p[TOY_ANSWER];
    enum finish reason;
};

/* A draft with its options in one go: defaults, then "name=value" words up to a NULL. */
struct toy_draft {
    const struct draft_ops *ops;
    double option[TOY_OPTIONS];
};
struct toy_draft toy_draft(const char *strategy, ...);

/* Greedy, one slot, chains of up to 5, no stop rule, full trace; `draft` must outlive the loop. */
struct spec_opts toy_spec_opts(const struct toy_draft *draft);

/* Prompts 0, 1, ... of 1 to 40 tokens; every second one repeats itself. Returns the length. */
enum { TOY_PROMPT = 40 };
int  toy_prompt(int i, int tokens[TOY_PROMPT]);

/* The toy model on one thread, and greedy plain decoding's answers to requests 0..n-1. */
void toy_open_plain(struct toy *t, int n, struct toy_answer *plain);

/* Run requests 0..n-1 (toy prompts, max_tokens[i], or TOY_ANSWER / 2 when NULL), keeping every slot busy. Checks that
 * records and answers fit together; fails the test on any error. */
void toy_run(struct model *m, const struct spec_opts *o, int n, const int *max_tokens, struct toy_answer *out);
/* The same tokens, log probabilities bit for bit, and end. */
void toy_assert_same(const struct toy_answer *a, const struct toy_answer *b, const char *what);

/* For stop strings. One character a token: ids 0..93 are the printable characters from '!', the others letters from U+00C0. */
struct tokenizer *toy_letters(void);
/* Tokens [from, from + length) of an answer as text; 0 when one is not of the first kind. */
int  toy_spell(const struct toy_answer *a, int from, int length, char *out);

/* A spec_opts.reference whose context is an array of TOY_REQUESTS answers. */
int  toy_reference(void *ctx, uint32_t request, const int **tokens);
#endif
