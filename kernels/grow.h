/* grow: trees drafted level by level by a network that continues from a state of its own (engine/head.h), all of it in backend memory. Rows of
 * such a network are of two kinds: true rows follow the target, and stay in its cache in the cells of their positions, one a token of the
 * text but the last; rows of a tree stand in the cells behind them and are forgotten. A step of `levels` = max_depth levels is
 *   grow_true,  the pass of the true rows,  the best ids after each slot's last one: root_id, root_log_p
 *   grow_level(1),  { the pass of the rows that it laid,  the best ids after them: id, log_p,  grow_level(2) },  ...  grow_level(max_depth)
 *
 * grow_true: rows [s * (1 + max_depth), ...) of slot s are those that the step before made true, by what is left of it: first_row, pos and
 *   accepted_path of struct step. Row i: position and cell p = pos of that step's root + i, token text[p + 1], from = the row of that pass that
 *   read text[p]; the rest are dead rows, from -1. last[s] = the row of the last, -1: there is none. A slot whose serial is new has none: its
 *   prompt's rows are in the cache, but when the prompt is a single token: then it gets no tree yet.
 * grow_level(l): each node of level l - 1 that goes on (level 1: the text) gets children of level l, best first, while the tree may be so deep
 *   (step_depth): top_k of them, GROW_STATIC: rank r under weight w while r w <= top_k; weight = product of the ranks from the root. score =
 *   the sum of log_p from the root. Then at the last level trees is filled: GROW_DYNAMIC by the max_nodes best scores, else by the first
 *   max_nodes; in the order in which they came to be. Before it rows [s * width, ...) are laid for the nodes that go on: of the new ones the
 *   first `width`, GROW_DYNAMIC those with the best scores, best first. Row i: from = the row of its parent in the pass before (level 1: the
 *   slot), cell = true rows + (l - 1) width + i, and a path through its ancestors' cells; the rest are dead rows. Equal scores: the earlier is
 *   better; a NaN is worse than any number.
 * math     whole numbers and copies; a score is its parent's plus log_p in f32. CPU and CUDA leave the same bytes, the clock aside
 * needs    CUDA: GROW_DYNAMIC: max_candidates <= GROW_CUDA_CANDIDATES
 * moves    a few KB a slot */
#ifndef KERNELS_GROW_H
#define KERNELS_GROW_H
#include "kernels/step.h"

enum { GROW_CUDA_CANDIDATES = 16384 };
enum grow_shape { GROW_FIRST, GROW_STATIC, GROW_DYNAMIC }; /* FIRST: with top_k 1 a chain */

/* Something that may become a node of the tree. */
struct grow_node {
    int token, parent, depth; /* parent: of the slot's list, -1 the text */
    int weight;
    int cell, row;            /* of those that went on */
    int node;                 /* of the tree, once it is filled; -1: none */
    float log_p, score;
};

struct grow {
    const struct step *step;   /* the struct itself is host memory; trees: out */
    enum grow_shape shape;
    int top_k, width, max_candidates; /* a slot's list: at least top_k + (max_depth - 1) * width * top_k */
    uint32_t *serial;          /* [slots] of the request whose rows are in the cache; 0: nobody's */
    int *last;                 /* [slots] */
    struct grow_node *list;    /* [slots, max_candidates] */
    int *n, *n_frontier;       /* [slots] */
    int *frontier;             /* [slots, width] places in the list */
    const int *root_id, *id;   /* [slots, top_k], [slots * width, top_k] ids of the target, best first */
    const float *root_log_p, *log_p;
    int *token, *slot, *pos, *cell, *base, *path_off; /* out, as struct rows: [the larger of slots * (1 + max_depth) and slots * width] */
    int *path;                 /* out [as many, max_depth] */
    int *from;                 /* out [as many] */
};

/* The most candidates of a slot. */
STEP_FN int grow_candidates(int top_k, int width, int max_depth)
{
    return top_k + (max_depth > 1 ? max_depth - 1 : 0) * width * top_k;
}

void grow_true_ref(const struct grow *a);             /* the CPU's path too; leaves the clock alone */
void grow_level_ref(const struct grow *a, int level); /* 1 <= level <= max_depth */
KERN_API int grow_true_cuda(const struct grow *a, void *stream); /* the step's first operation */
KERN_API int grow_level_cuda(const struct grow *a, int level, void *stream);
#endif
