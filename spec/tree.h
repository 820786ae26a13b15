/* tree: the tokens a draft proposes. Node i continues its parent's text; parent -1 continues the root, which is the
 * last token of the text and not a node. A chain is a tree whose node i has parent i - 1; no proposal is an empty tree.
 * Parents stand before children, no two siblings have the same token, siblings stand in the order the draft prefers. */
#ifndef SPEC_TREE_H
#define SPEC_TREE_H

enum { TREE_ROOT = -1 };

struct tree_node {
    int token, parent;
    int depth;        /* 1 for children of the root */
    float log_q;      /* the draft's log probability of this token after its parent; 0 for a draft without probabilities */
    const float *q;   /* f32 [vocab]: the distribution this token was drawn from at random, without replacement: the siblings
                       * before it could not come again (q itself still holds them). Borrowed until the step ends. NULL:
                       * chosen without randomness, which every rule treats as a one-hot q */
};

struct tree {
    struct tree_node *nodes; /* owned [max_nodes] */
    int n, max_nodes, max_depth;
};

int  tree_init(struct tree *t, int max_nodes, int max_depth);
void tree_deinit(struct tree *t); /* a zeroed struct is fine */
void tree_clear(struct tree *t);
/* Add a node and return its index; an existing sibling with this token is returned instead; -1 when the tree is full
 * or the node would be deeper than max_depth. */
int  tree_add(struct tree *t, int parent, int token, float log_q, const float *q);
int  tree_child(const struct tree *t, int parent, int token); /* index, -1: none */
int  tree_max_depth(const struct tree *t);                    /* deepest node, 0 when empty */
#endif
