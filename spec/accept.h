/* accept: the rules by which nodes of a verified tree become text and the target adds its bonus token; the backend's operation is
 * kernels/accept.h. All but `relaxed` are lossless. Random numbers are functions of (seed, request, position); see kernels/philox.h.
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

struct accept_rule {
    const char *name, *help;
    int lossy; /* 1: outputs are not the target's; every table says so */
    enum accept_kind kind;
};
extern const struct accept_rule accept_rules[]; /* ends with name NULL */
const struct accept_rule *accept_rule_find(const char *name); /* NULL: unknown */
#endif
