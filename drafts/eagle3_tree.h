/* eagle3_tree: the tree that an EAGLE-3 head drafts for one sequence, level by level: which tokens after a row become candidates, which of
 * them are run for the next level, and which become nodes. Dynamic trees: EAGLE-2 (Li et al., arXiv 2406.16858; model-formats D.7). */
#ifndef DRAFTS_EAGLE3_TREE_H
#define DRAFTS_EAGLE3_TREE_H
#include "kernels/sample.h"
#include "kernels/top.h"
#include "spec/tree.h"

enum eagle3_shape { EAGLE3_CHAIN, EAGLE3_STATIC, EAGLE3_DYNAMIC };
enum eagle3_draw {
    EAGLE3_BEST,    /* the most probable, no q */
    EAGLE3_COUPLED, /* by the noise that the target's token will be drawn with (rule coupled), no q */
    EAGLE3_FREE     /* by noise of the draft's own, with q (rule rejection) */
};

/* How candidates are chosen; the same for all sequences. */
struct eagle3_choice {
    enum eagle3_shape shape;
    enum eagle3_draw draw;
    int top_k, max_depth;
    int max_frontier, max_candidates, max_run; /* out of init: of a level; of a tree; rows that get children, the root included */
    int vocab, target_vocab;
    const int *d2t;              /* borrowed [vocab] */
    struct sample_filter filter; /* of draws: the target's */
    uint64_t seed;
    float *wide;                 /* owned [4, target_vocab] scratch of draws: logits by target id, probabilities, what is left, work */
    int *id;                     /* owned [target_vocab] */
};

struct eagle3_candidate {
    int token, parent, depth;
    int weight; /* static: the product of the ranks on its path, each from 1 */
    int kept, node;
    int cell, row; /* the caller's: where its key lies, its row in the pass */
    float log_q;
    float score;   /* the sum of log q on its path */
    const float *q;
};

struct eagle3_tree {
    struct eagle3_candidate *candidate; /* owned [max_candidates] in the order of recording: parents before children */
    int n;
    int *frontier, n_frontier;          /* owned [max_candidates]: those to run next, dynamic: best first */
    int *order;                         /* owned [max_candidates] scratch */
    float *q;                           /* owned [max_run, target_vocab], NULL unless EAGLE3_FREE */
    int n_run;
};

/* Rows of a level that can go on, at most; max_nodes: of a tree. */
int eagle3_width(enum eagle3_shape shape, int top_k, int max_nodes);

/* shape to seed are set; max_nodes bounds the trees. ERR_MEMORY. */
int  eagle3_choice_init(struct eagle3_choice *c, int max_nodes);
void eagle3_choice_deinit(struct eagle3_choice *c); /* a zeroed struct is fine, as below */
int  eagle3_tree_init(struct eagle3_tree *t, const struct eagle3_choice *c);
void eagle3_tree_deinit(struct eagle3_tree *t);

void eagle3_tree_clear(struct eagle3_tree *t);
/* Children of a candidate, -1: of the root, from the logits [vocab] of its row; key: of the position that they stand at. */
void eagle3_tree_extend(struct eagle3_tree *t, const struct eagle3_choice *c, int parent, const float *logits,
                        const struct sample_key *key);
/* The frontier among the candidates from `from` on: those of the level that has just been recorded. */
void eagle3_tree_advance(struct eagle3_tree *t, const struct eagle3_choice *c, int from);
void eagle3_tree_emit(struct eagle3_tree *t, const struct eagle3_choice *c, struct tree *out);
#endif
