/* node_stats: what a trace records of drafted nodes, and log p of the tokens that became text. All of a node is said under the row of its parent,
 * untouched by temperature and filters, so that it means the same in every arm.
 * shapes   as struct accept, whose outputs accepted, path and bonus are read here; out arrays of slots and nodes not in this pass are not written
 * math     log p = logit - lse, one f32 subtraction; rank 1 + ids that stand before the token (larger logit, or equal and lower id); entropy and
 *          gap (max - second) are those of the row's statistics: exact, CPU and CUDA leave the same bits
 * moves    vocab * 4 bytes a node for its rank, mostly from L2; else a few bytes a node */
#ifndef KERNELS_NODE_STATS_H
#define KERNELS_NODE_STATS_H
#include "kernels/accept.h"

struct node_stats {
    const struct trees *trees;       /* the struct itself is host memory */
    const int *first_row;            /* [slots] -1: not in this pass */
    const int *accepted, *path, *bonus;
    const float *logits;
    const struct logit_stats *stats;
    int vocab;
    int with_nodes;                  /* 0: path_log_p alone is written, the other four may be NULL */
    float *log_p;                    /* out [slots, max_nodes] */
    int *rank;                       /* out [slots, max_nodes] */
    float *entropy, *gap;            /* out [slots, max_nodes] */
    float *path_log_p;               /* out [slots, 1 + max_depth] of each accepted token, then of the bonus; 0 for a bonus of -1 */
};
void node_stats_ref(const struct node_stats *a); /* the CPU's path too */
KERN_API int node_stats_cuda(const struct node_stats *a, void *stream);
#endif
