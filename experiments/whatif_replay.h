/* whatif_replay: the steps that another draft would have taken over a text that is known.
 *
 * A lossless rule that gives plain decoding's very tokens (greedy, coupled) gives them whatever was drafted, so the text of one run tells how
 * every other draft of it would have fared, as long as the draft can be had again:
 *   none, ngram    functions of the text alone: exact at every position
 *   other chains   where the trace has a step that begins at this position, its draft cut to the new depth: exact. Elsewhere the tail of
 *                  the draft that went over this position stands in for the one that was never made: not exact, and counted.
 * Where an answer ended inside a draft nobody knows what the rule would have said of the rest: accepted counts what became text. */
#ifndef EXPERIMENTS_WHATIF_REPLAY_H
#define EXPERIMENTS_WHATIF_REPLAY_H
#include "experiments/trace.h"
#include "kernels/ngram.h"

enum { WHATIF_DEPTH = 64, WHATIF_NODES = 512 };

/* A finished answer behind its prompt. */
struct whatif_text {
    const int *tokens; /* [n] borrowed */
    int n_prompt, n;
    int end;           /* most tokens it could have had: prompt and budget */
};

enum whatif_kind { WHATIF_NONE, WHATIF_NGRAM, WHATIF_CHAIN };

struct whatif_draft {
    enum whatif_kind kind;
    struct ngram search;      /* of WHATIF_NGRAM: sizes, branches, match, scope */
    int max_depth, max_nodes; /* of a tree */
};

/* One step: the text had n tokens before it. */
struct whatif_step {
    int n, rows, accepted; /* rows: the root's and the nodes' */
    int exact;             /* 0: a stand-in, see above */
};

/* The step at n tokens, n_prompt <= n < text->n. steps: of WHATIF_CHAIN, those of the answer in the trace, [n_steps] in order; each is a
 * chain. */
void whatif_step_at(const struct whatif_draft *d, const struct whatif_text *text, const struct trace_step *steps,
                    int n_steps, int n, struct whatif_step *out);
/* All steps from the prompt to the end: returns how many, at most text->n - text->n_prompt; out has room for these. */
int whatif_replay(const struct whatif_draft *d, const struct whatif_text *text, const struct trace_step *steps, int n_steps,
                  struct whatif_step *out);
#endif
