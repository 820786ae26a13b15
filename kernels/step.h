/* step: the small operations around a pass that keep the state of decoding in backend memory: step_plan lays the rows of all live sequences
 * and their trees, step_commit makes text of what was accepted and writes a record for the host. One step is
 *   draft -> step_plan -> the pass -> accept -> step_commit
 * and everything in it that changes from step to step is read from here, so that the list of operations is always the same.
 *
 * step_plan: rows [0, rows): of each live slot, ascending, its root, then its nodes in order; the rest of the envelope are dead rows
 *   (slot -1, token 0, pos 0, cell 0, base 1).
 *     root     token = the text's last, pos = cell = n - 1 (so many are committed), base = pos + 1
 *     node k   cell = n + k, pos = n - 1 + depth; base = pos + 1 where that is its cell (then it and its ancestors are nodes 0..k, a chain in
 *              place), else n - 1 with the path's cells, root first
 * step_commit: of each slot in first_row: the accepted tokens and the bonus are appended until a stop token, the budget or the context
 *   ends the text (as appending one by one would); in the cache accepted nodes move to the cells of their positions, in all layers; seq is brought
 *   up to date; the ring's next entry is written, its sequence number last. Of experts it says how many different ones each layer's live
 *   rows chose together and, where asked, which.
 * math     whole numbers and copies, exact: CPU and CUDA leave the same bytes, clocks aside
 * moves    a few KB; where nodes are not in place 2 * kv bytes of a cell * 2 a moved token */
#ifndef KERNELS_STEP_H
#define KERNELS_STEP_H
#include "kernels/accept.h"
#include "kernels/attention.h"

#ifdef __CUDACC__
#define STEP_FN __host__ __device__ static inline
#else
#define STEP_FN static inline
#endif

/* When things happened, ns of the backend's clock: CPU the host's, CUDA %globaltimer. BEGIN is 0 until the step's first operation writes it. */
enum step_clock { STEP_BEGIN, STEP_VERIFY, STEP_ACCEPT, STEP_END, STEP_CLOCKS };
enum step_end { STEP_GOES_ON, STEP_STOP_TOKEN, STEP_LENGTH, STEP_CONTEXT, STEP_NOT_FINITE };

/* The state; all arrays are backend memory, borrowed. trees.slots, max_nodes and max_depth are the sizes. */
struct step {
    struct seq_state *seq;     /* [slots] */
    int *text;                 /* [slots, cap] */
    int cap, max_rows;
    struct trees trees;
    int *token, *slot, *pos, *cell, *base, *path_off; /* [max_rows], as struct rows */
    int *path;                 /* [max_rows, 1 + max_depth] */
    int *first_row;            /* [slots] the root's row, -1: not in this step */
    int *count;                /* [2] live rows, sequences */
    int *accepted, *accepted_path, *bonus; /* as struct accept */
    float *emitted_log_p;      /* [slots, 1 + max_depth] of the accepted nodes and the bonus */
    float *log_p, *entropy, *gap; /* [slots, max_nodes] */
    int *rank;                 /* [slots, max_nodes] */
    int64_t *clock;            /* [STEP_CLOCKS] of the step under way */
};

/* What the host reads of a step: an entry of the ring, in memory of the host. */
struct step_head {
    int64_t clock[STEP_CLOCKS];
    int rows, seqs;
    uint64_t sequence;         /* 1 + number of the step; whoever sees it sees all of the entry */
};
struct step_slot {
    uint32_t serial;           /* of the request; 0: the slot was not in this step */
    int position;              /* of the first token decided */
    int proposed, depth, accepted, emitted;
    int end;                   /* enum step_end; NOT_FINITE: nothing was emitted */
};
/* What the router chose in the step's pass. */
struct step_experts {
    const int *chosen;         /* backend [layers, rows, top_k], see kernels/moe.h; NULL with layers 0 */
    int layers, rows, top_k;   /* layers of experts, 0: the model has none; rows of the pass, dead ones included */
    int with_ids;              /* 1: the record holds what each row chose */
};
enum { STEP_EXPERTS = 4096, STEP_EXPERTS_CUDA = 1024 }; /* a layer has at most so many */
struct step_node {
    int token, parent, depth, rank;
    float log_q, log_p, entropy, gap;
};
struct step_entry {
    struct step_head *head;
    struct step_slot *slot;    /* [slots] */
    int *token;                /* [slots, 1 + max_depth] emitted */
    float *log_p;              /* [slots, 1 + max_depth] */
    int *path;                 /* [slots, max_depth] accepted nodes */
    struct step_node *node;    /* [slots, max_nodes] */
    int *distinct;             /* [layers of experts] */
    int *expert;               /* [layers, head->rows, top_k] */
};

struct step_commit {
    const struct step *step;
    const int *stop;               /* backend [n_stop] tokens that end a text */
    const struct kv_layer *layers; /* backend [n_layers] */
    int n_stop, n_layers, kv_heads;
    int with_nodes;                /* 1: the record holds the nodes */
    struct step_experts experts;
    void *ring;                    /* host memory of the backend, depth * step_entry_bytes */
    int depth;
    uint64_t *counter;             /* backend: steps so far */
};

STEP_FN size_t step_entry_bytes(const struct trees *t, const struct step_experts *x)
{
    const size_t slots = (size_t)t->slots, depth = (size_t)t->max_depth, nodes = (size_t)t->max_nodes;
    const size_t chosen = x->with_ids ? slots * (1 + nodes) * (size_t)x->top_k : 0;
    const size_t bytes = sizeof(struct step_head) + slots * (sizeof(struct step_slot) + nodes * sizeof(struct step_node) +
                                                            (1 + depth) * 8 + depth * 4) +
                         (size_t)x->layers * (1 + chosen) * 4;
    return (bytes + 63) / 64 * 64;
}

STEP_FN struct step_entry step_entry_at(void *ring, const struct trees *t, const struct step_experts *x, size_t i)
{
    const size_t slots = (size_t)t->slots, depth = (size_t)t->max_depth;
    struct step_entry e;
    e.head = (struct step_head *)((char *)ring + i * step_entry_bytes(t, x));
    e.slot = (struct step_slot *)(e.head + 1);
    e.node = (struct step_node *)(e.slot + slots);
    e.token = (int *)(e.node + slots * (size_t)t->max_nodes);
    e.log_p = (float *)(e.token + slots * (1 + depth));
    e.path = (int *)(e.log_p + slots * (1 + depth));
    e.distinct = e.path + slots * depth;
    e.expert = e.distinct + x->layers;
    return e;
}

/* How deep a tree is worth its rows: a node needs a place in the text, and so does the bonus after it. At most 0: no tree. */
STEP_FN int step_depth(const struct seq_state *q, int max_depth)
{
    const int end = q->end < q->context_end ? q->end : q->context_end, left = end - q->n - 1;
    return left < max_depth ? left : max_depth;
}

STEP_FN struct rows step_rows(const struct step *s, int n)
{
    struct rows r;
    r.n = n;
    r.token = s->token;
    r.slot = s->slot;
    r.pos = s->pos;
    r.cell = s->cell;
    r.base = s->base;
    r.path_off = s->path_off;
    r.path = s->path;
    return r;
}

/* rows: the envelope, at least what the live sequences need, at most max_rows. */
void step_plan_ref(const struct step *s, int rows);
/* All but the entry's clock, counts and sequence number, which step_publish_ref writes, at time `end`. */
void step_commit_ref(const struct step_commit *a);
void step_publish_ref(const struct step_commit *a, int64_t end);
/* CUDA does it in one launch each. */
KERN_API int step_plan_cuda(const struct step *s, int rows, void *stream);
KERN_API int step_commit_cuda(const struct step_commit *a, void *stream);
KERN_API int step_stamp_cuda(int64_t *at, void *stream); /* *at = now */
#endif
