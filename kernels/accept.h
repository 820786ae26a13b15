/* accept: which nodes of verified trees become text, and the bonus token that the target adds: one operation for all sequences of a
 * pass, on the logits where they are. Rules: spec/accept.h. Random numbers are functions of (seed, request, position); kernels/philox.h.
 *
 * Every rule walks a tree from the root's row downwards and chooses at each row: a child to go on with, or the token that ends the walk.
 *   greedy     the row's argmax: the child that is it, else the bonus
 *   coupled    the token drawn by Gumbel-max (sample_gumbel under PHILOX_TOKEN of the position) from the filtered distribution, likewise;
 *              temperature 0: greedy
 *   rejection  children in order: accept with min(1, p / q) by the uniform philox(seed, request, position, PHILOX_ACCEPT, sibling), else what is
 *              left of p is max(0, p - q) (one-hot q: p without the token); the bonus is drawn from what is left (sample_categorical); temperature 0: greedy
 *   relaxed    among children that are of the relaxed_top_k best and have at least the top probability minus relaxed_delta, the best
 * So what a row chooses is a function of the row, its position and its node's children: CUDA decides all rows at once, then walks.
 * shapes   logits f32 [rows, vocab], stats [rows]: the row of slot s's root is first_row[s], of its node k first_row[s] + 1 + k
 * needs    CUDA: coupled, rejection with temperature > 0 and relaxed: vocab <= ACCEPT_CUDA_VOCAB, a row's weights stand in shared memory
 * math     the CPU's is the truth (sample.c: probabilities f32, sums double). CUDA makes the same choices from the same numbers but for the rounding
 *          of exp and log and the order of sums; it is a function of the row, the key and the node's children alone, so that a token does not
 *          depend on batch, tree or strategy beyond what the rule says
 * moves    CPU, of each visited node: coupled and rejection read a row a few times, greedy O(1), relaxed O(1) and a rank a child.
 *          CUDA, of every node: a row once, about 9 times more out of L2 for top-k and for top-p each; rejection a q besides */
#ifndef KERNELS_ACCEPT_H
#define KERNELS_ACCEPT_H
#include "kernels/logits.h"
#include "kernels/sample.h"

/* A slot's text, in backend memory. */
struct seq_state {
    int live;               /* 1: takes part in steps */
    int n, n_prompt;        /* tokens; the last is the root, whose key and value are not in the cache yet */
    int end, context_end;   /* the text ends at so many tokens: by the request's budget; by the cap or the model's context */
    uint32_t request;       /* identity for random numbers */
    uint32_t serial;        /* counts the requests of the loop: a record of an earlier request of the slot is told by it */
};

/* Trees of all slots, in backend memory: node k of slot s at s * max_nodes + k, parents before children, -1 the root, siblings in the
 * order the draft prefers and of different tokens. */
struct trees {
    int slots, max_nodes, max_depth;
    int *n;                     /* [slots] nodes */
    int *token, *parent, *depth;/* [slots, max_nodes] */
    float *log_q;               /* [slots, max_nodes] of the token under the draft; 0 for a draft without probabilities */
    int *q_row;                 /* [slots, max_nodes] row of q that the token was drawn from at random, -1: chosen without randomness */
    float *q;                   /* f32 [slots * max_nodes, vocab], NULL when no draft draws */
};

enum { ACCEPT_CUDA_VOCAB = 320 * 1024 };
enum accept_kind { ACCEPT_GREEDY, ACCEPT_COUPLED, ACCEPT_REJECTION, ACCEPT_RELAXED };

struct sampling {
    float temperature;   /* 0 means greedy under coupled and rejection too; greedy and relaxed do not read it */
    int top_k;
    float top_p, min_p;  /* see struct sample_filter */
    uint64_t seed;
    int relaxed_top_k;   /* >= 1 */
    float relaxed_delta; /* [0, 1] */
};

struct accept {
    enum accept_kind kind;
    struct sampling sampling;
    const struct seq_state *seq;     /* [slots]; the first token to decide has position seq.n */
    const struct trees *trees;       /* the struct itself is host memory */
    const int *first_row;            /* [slots] -1: not in this pass */
    const float *logits;
    const struct logit_stats *stats;
    int vocab;
    int *accepted;                   /* out [slots] nodes on the accepted path, 0 when not in this pass */
    int *path;                       /* out [slots, max_depth] their indices, root's child first */
    int *bonus;                      /* out [slots]; -1: a row that was needed holds no finite logits; not written when not in this pass */
    int64_t *began;                  /* out, backend memory: when it began, of the backend's clock; NULL: not asked */
    void *scratch;                   /* backend memory [accept_bytes of the backend] */
};
size_t accept_bytes(int vocab);                                     /* of the CPU's scratch */
KERN_API size_t accept_cuda_bytes(int slots, int max_nodes);        /* of CUDA's */
void accept_ref(const struct accept *a);                            /* the CPU's path too */
KERN_API int accept_cuda(const struct accept *a, void *stream);     /* one launch for greedy, else two */
#endif
