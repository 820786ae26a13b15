/* ngram: reads the text from end to end for every size: 4096 tokens take microseconds, a step of the CPU
 * milliseconds. A place is named by the position of the n-gram's last token. */
#include "kernels/ngram.h"

/* A tree that grows: pointers to the slot's part of struct trees. */
struct grown {
    int *token, *parent, *depth, *q_row;
    float *log_q;
    int n, max_nodes, max_depth;
};

static int child(const struct grown *t, int parent, int token)
{
    for (int i = parent + 1; i < t->n; i++)
        if (t->parent[i] == parent && t->token[i] == token)
            return i;
    return -1;
}

/* The node, new or there before; -1: no room. */
static int add(struct grown *t, int parent, int token)
{
    const int old = child(t, parent, token), depth = parent < 0 ? 1 : t->depth[parent] + 1;
    if (old >= 0)
        return old;
    if (t->n >= t->max_nodes || depth > t->max_depth)
        return -1;
    t->token[t->n] = token;
    t->parent[t->n] = parent;
    t->depth[t->n] = depth;
    t->q_row[t->n] = -1;
    t->log_q[t->n] = 0;
    return t->n++;
}

/* Add what follows the place; 1 when the tree grew, 0 when it held all of it already or is full. */
static int add_continuation(struct grown *t, const int *tokens, int end, int limit)
{
    const int before = t->n;
    for (int i = end + 1, node = -1; i < limit; i++) {
        node = add(t, node, tokens[i]);
        if (node < 0)
            break;
    }
    return t->n > before;
}

static int matches(const int *tokens, int end, int last, int size)
{
    for (int i = 0; i < size; i++)
        if (tokens[end - i] != tokens[last - i])
            return 0;
    return 1;
}

static void search(const struct ngram *a, const struct seq_state *q, const int *tokens, struct grown *t)
{
    const int limit = a->scope == NGRAM_PROMPT ? q->n_prompt : q->n, last = q->n - 1;
    int left = a->branches;
    for (int size = a->max < q->n ? a->max : q->n; size >= a->min; size--) {
        const int places = limit - size; /* the last token of what is searched ends none */
        int visits = NGRAM_VISITS * a->branches;
        for (int i = 0; i < places && visits > 0; i++) {
            const int end = a->match == NGRAM_FIRST ? size - 1 + i : limit - 2 - i;
            if (!matches(tokens, end, last, size))
                continue;
            visits--;
            left -= add_continuation(t, tokens, end, limit);
            if (left == 0 || t->n == t->max_nodes)
                return;
        }
    }
}

void ngram_ref(const struct ngram *a)
{
    const struct trees *to = a->trees;
    for (int slot = 0; slot < to->slots; slot++) {
        const struct seq_state *q = &a->seq[slot];
        const size_t at = (size_t)slot * (size_t)to->max_nodes;
        struct grown t = {.token = to->token + at,
                          .parent = to->parent + at,
                          .depth = to->depth + at,
                          .q_row = to->q_row + at,
                          .log_q = to->log_q + at,
                          .max_nodes = to->max_nodes,
                          .max_depth = q->live ? step_depth(q, to->max_depth) : 0};
        if (t.max_depth > 0 && t.max_nodes > 0)
            search(a, q, a->text + (size_t)slot * (size_t)a->cap, &t);
        to->n[slot] = t.n;
    }
}
