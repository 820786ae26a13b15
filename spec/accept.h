/* accept: which nodes of a verified tree become text, and the bonus token that the target adds. One function a rule; all
 * but `relaxed` are lossless. Random numbers are functions of (seed, request, position); see kernels/philox.h.
 *
 *   greedy     argmax of the target; equals plain greedy decoding token for token
 *   coupled    the target's token is drawn by Gumbel-max with noise keyed by position, a node is accepted when it is that
 *              token: at any temperature the output is the one that plain decoding gives for the seed
 *   rejection  speculative sampling: accept with min(1, p/q), else draw from norm(max(0, p - q)). A node chosen without randomness has a
 *              one-hot q. Trees: siblings in order, each on what the rejections before it left. Output distributed as p.
 *              Leviathan et al. arXiv 2211.17192; Chen et al. arXiv 2302.01318; trees: Miao et al. arXiv 2305.09781
 *   relaxed    LOSSY: accepts a node among the target's relaxed_top_k tokens whose probability is at least the top one's minus
 *              relaxed_delta, of several siblings the most probable; bonus is the argmax (TensorRT-LLM's rule for
 *              reasoning models) */
#ifndef SPEC_ACCEPT_H
#define SPEC_ACCEPT_H
#include "kernels/accept.h"
#include "spec/tree.h"

/* Working memory of one accept call at a time. */
struct accept_scratch {
    struct sample_dist dist; /* owned arrays */
    void *kernel;            /* owned [accept_bytes] */
    int *node;               /* owned [4, cap_nodes]: token, parent, depth, q_row */
    float *q;                /* owned f32 [cap_q, vocab] */
    int cap_nodes, cap_q;
};
int  accept_scratch_init(struct accept_scratch *s, int vocab);
void accept_scratch_deinit(struct accept_scratch *s); /* a zeroed struct is fine */

struct accept_args {
    const struct tree *tree;
    const float *logits;             /* [1 + tree->n, vocab]: the root's row, then node i at 1 + i */
    const struct logit_stats *stats; /* [1 + tree->n] */
    int vocab;
    const struct sampling *sampling;
    uint32_t request;
    int position;                    /* absolute position of the first token to decide: that of the root plus 1 */
    struct accept_scratch *scratch;
};

struct accepted {
    int n;     /* accepted nodes */
    int *path; /* [max_depth], given by the caller: their indices, root's child first */
    int bonus; /* token after the last accepted node */
};

/* ERR_DEVICE when a row it needs holds no finite logits. */
typedef int (*accept_fn)(const struct accept_args *a, struct accepted *out);

struct accept_rule {
    const char *name, *help;
    int lossy; /* 1: outputs are not the target's; every table says so */
    accept_fn accept; /* of one tree in host memory */
    enum accept_kind kind; /* of the backend's operation */
};
extern const struct accept_rule accept_rules[]; /* ends with name NULL */
const struct accept_rule *accept_rule_find(const char *name); /* NULL: unknown */
#endif
