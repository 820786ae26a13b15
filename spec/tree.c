/* tree: nodes in one array, in the order they were added. Trees hold tens of nodes, so looking for a sibling
 * is a scan. */
#include "spec/tree.h"
#include "engine/err.h"
#include <assert.h>
#include <stdlib.h>

int tree_init(struct tree *t, int max_nodes, int max_depth)
{
    struct tree_node *nodes = calloc(max_nodes > 0 ? (size_t)max_nodes : 1, sizeof *nodes);
    if (!nodes)
        FAIL(ERR_MEMORY, "tree: out of memory for %d nodes", max_nodes);
    *t = (struct tree){.nodes = nodes, .max_nodes = max_nodes, .max_depth = max_depth};
    return 0;
}

void tree_deinit(struct tree *t)
{
    free(t->nodes);
    *t = (struct tree){0};
}

void tree_clear(struct tree *t)
{
    t->n = 0;
}

int tree_child(const struct tree *t, int parent, int token)
{
    for (int i = parent + 1; i < t->n; i++)
        if (t->nodes[i].parent == parent && t->nodes[i].token == token)
            return i;
    return -1;
}

int tree_add(struct tree *t, int parent, int token, float log_q, const float *q)
{
    assert(parent >= TREE_ROOT && parent < t->n);
    int sibling = tree_child(t, parent, token);
    if (sibling >= 0)
        return sibling;
    int depth = parent == TREE_ROOT ? 1 : t->nodes[parent].depth + 1;
    if (t->n >= t->max_nodes || depth > t->max_depth)
        return -1;
    t->nodes[t->n] =
        (struct tree_node){.token = token, .parent = parent, .depth = depth, .log_q = log_q, .q = q};
    return t->n++;
}

int tree_max_depth(const struct tree *t)
{
    int deepest = 0;
    for (int i = 0; i < t->n; i++)
        if (t->nodes[i].depth > deepest)
            deepest = t->nodes[i].depth;
    return deepest;
}
