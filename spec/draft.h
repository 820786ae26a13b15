/* draft: the interface that every draft strategy implements (drafts/). One object serves all sequences of a run, so that a strategy with a
 * network of its own can batch them. open allocates everything; nothing after it may allocate. There are two kinds.
 *
 * A device strategy enqueues operations of the backend, in every step the same ones, that read the state of decoding in backend memory and leave
 * trees in it. The host knows of them when the step is long over, and enqueues further steps meanwhile.
 * A host strategy (DRAFT_HOST) is told on the host what became text and says there what to propose; every step waits for it. Its calls for
 * one slot come in this order:
 *   begin, (propose, observe)*    and begin again for the next request in that slot */
#ifndef SPEC_DRAFT_H
#define SPEC_DRAFT_H
#include "kernels/step.h"
#include "spec/tree.h"
#include <stdint.h>

struct backend;
struct model;

enum draft_needs {
    DRAFT_HIDDEN = 1,    /* hidden states of the target for committed positions */
    DRAFT_REFERENCE = 2, /* earlier outputs of the same requests; see draft_env.reference */
    DRAFT_HOST = 4,      /* it is a host strategy */
    DRAFT_Q = 8          /* its nodes may be drawn at random, and come with q: see draws */
};

/* An option of one strategy: `draft.<strategy>.<name>` in experiment files and --set. Numbers only. */
struct draft_option {
    const char *name, *help;
    double def, lo, hi;
    int integer;                /* 1: whole numbers only */
    const char *const *choices; /* NULL, or NULL-terminated words: the value is the index of the word */
};

struct draft_env {
    struct backend *be;         /* borrowed, outlive the strategy */
    const struct model *target;
    int slots, cap;             /* sequences, tokens a sequence can reach */
    int vocab, max_depth, max_nodes;
    const char *head;           /* directory of a draft's own network, or NULL; borrowed for the call */
    uint64_t seed;
    enum accept_kind rule;           /* by which its nodes will be judged, and how the target samples */
    const struct sampling *sampling; /* borrowed for the call; NULL: greedy */
    const double *option;       /* values in the order of draft_ops.options; borrowed for the call */
    /* Tokens that an earlier run emitted for this request: returns how many, 0 when it has none; lent for the run. NULL without
     * DRAFT_REFERENCE. */
    int (*reference)(void *ctx, uint32_t request, const int **tokens);
    void *reference_ctx;
};

/* The text of one slot. tokens[0..n) lies in memory of the loop, only ever grows until the next begin, and stays put. */
struct draft_text {
    int slot;
    uint32_t request;  /* identity for philox and reference: prompt, turn and repeat, the same in every arm */
    const int *tokens; /* [n]: prompt, then what was emitted. The last one is the root of the next tree */
    int n, n_prompt;
};

/* What a step did to one slot: text.n grew by n_new. Hidden states come with the strategies that need them. */
struct draft_seen {
    struct draft_text text;
    int n_new;              /* tokens emitted by this step: accepted nodes and the bonus */
    int n_accepted;         /* nodes accepted that became text: fewer than the rule took when the answer ended among them */
    const int *path;        /* [n_accepted] their indices in the tree */
    int row;                /* of the pass: the root's; node k's is row + 1 + k */
};

/* Where the features of a pass lie, and of which layers: see struct forward_tap. */
struct draft_hidden {
    int layer[3];
    const float *rows;   /* backend memory [3, max_rows, hidden], lent for the life of the loop: of the last step's pass, */
    const float *prompt; /* [3, max_prompt_rows, hidden] and of the last pass of prefill */
    int max_rows, max_prompt_rows;
};

struct draft_ops {
    const char *name, *help;
    unsigned needs;
    const struct draft_option *options; /* ends with name NULL */
    int  (*open)(void **self, const struct draft_env *env); /* ERR_CONFIG for options that contradict, ERR_MEMORY; on error *self is NULL */
    int  (*max_nodes)(const void *self);                    /* of any of its trees, at most env.max_nodes */
    void (*close)(void *self);                              /* accepts NULL */
    /* Device strategy; NULL for the other kind. Fill step->trees: for each live slot n and the nodes, no deeper than step_depth (kernels/step.h). The
     * first operation writes the time to step->clock[STEP_BEGIN] where that is 0. accepted, accepted_path and bonus are those of the step before.
     * What it enqueues must not change from call to call, but with reach, which every position of the step is below: it may be recorded once. */
    int  (*enqueue)(void *self, const struct step *step, int reach);
    /* Host strategy; NULL for the other kind. */
    int  (*begin)(void *self, const struct draft_text *text);
    /* Trees for n slots; out[i] arrives cleared, with max_nodes and max_depth already cut to what slot i can still use. */
    int  (*propose)(void *self, const struct draft_text *text, int n, struct tree *out);
    int  (*observe)(void *self, const struct draft_seen *seen, int n);
    int  (*draws)(const void *self); /* of DRAFT_Q, NULL for others: 1, its nodes come with q */
    /* NULL, or which table of the same options takes this one's place, NULL: none: where a backend or an option asks for the other kind. */
    const struct draft_ops *(*pick)(const struct draft_env *env);
    /* Of DRAFT_HIDDEN, NULL for others. tap: once, before any request: fill `layer`, keep the pointer. prefilled: the pass before it was over
     * n tokens of a new request's prompt at positions from `at`, row i is position at + i; tokens[n], the one after them, exists, too. What it
     * enqueues comes ahead of the request's first step. */
    void (*tap)(void *self, struct draft_hidden *hidden);
    int  (*prefilled)(void *self, int slot, const int *tokens, int at, int n);
};
#endif
