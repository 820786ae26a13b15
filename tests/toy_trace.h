/* toy_trace: results built row by row in memory, as trace_read would give them. */
#ifndef TESTS_TOY_TRACE_H
#define TESTS_TOY_TRACE_H
#include "experiments/analyze.h"
#include "experiments/trace.h"

struct toy_step {
    int proposed, depth, accepted, emitted;
    unsigned flags; /* enum step_flags; the first step of a request gets STEP_FIRST by itself */
    int64_t ns;
};

/* Everything is owned by the trace; trace_deinit frees it. Out of memory aborts. */
void toy_trace_init(struct trace *t, const char *path);
int  toy_trace_arm(struct trace *t, const char *label, const char *strategy, const char *rule, int lossy, double temperature);
int  toy_trace_prompt(struct trace *t, const char *category, int index, int turn);
/* An answer that starts at `started` ns, prefills for 1 ms and decodes as the steps say; its text is given by hash. */
void toy_trace_request(struct trace *t, int arm, int prompt, int repeat, int64_t started, uint64_t hash);
void toy_trace_step(struct trace *t, struct toy_step s); /* of the last request */
void toy_trace_node(struct trace *t, struct trace_node n); /* of the last step, which must have said how many; the level becomes full */
/* What analyze prints of it, malloc'ed; fails the test on any error. */
char *toy_trace_print(const struct trace *t, const struct analyze_opts *opts);
/* As a result file, compact, with tokens of its own making. */
void toy_trace_write(struct trace *t, const char *path);
/* The last step was in a pass of so many rows and sequences, whose `layers` layers of experts had `experts` distinct ones in all. */
void toy_trace_pass(struct trace *t, int rows, int seqs, int layers, int experts);
/* An arm of mode score; numbers: "weights: fp8, kv: fp8", or "" for a model as stored. */
int  toy_trace_score_arm(struct trace *t, const char *label, const char *numbers);
void toy_trace_score(struct trace *t, struct trace_score s); /* one token of the last request, which is a scored one then */
#endif
