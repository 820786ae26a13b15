/* node_stats in plain loops. */
#include "kernels/node_stats.h"

static float log_p_of(const struct node_stats *a, int row, int token)
{
    return a->logits[(size_t)row * (size_t)a->vocab + (size_t)token] - a->stats[row].lse;
}

static void nodes_of_slot(const struct node_stats *a, int slot)
{
    const struct trees *t = a->trees;
    const size_t first = (size_t)slot * (size_t)t->max_nodes;
    for (int k = 0; k < t->n[slot]; k++) {
        const size_t at = first + (size_t)k;
        const int row = a->first_row[slot] + 1 + t->parent[at];
        a->log_p[at] = log_p_of(a, row, t->token[at]);
        a->rank[at] = logits_rank(a->logits + (size_t)row * (size_t)a->vocab, a->vocab, t->token[at]);
        a->entropy[at] = a->stats[row].entropy;
        a->gap[at] = a->stats[row].max - a->stats[row].second;
    }
}

static void path_of_slot(const struct node_stats *a, int slot)
{
    const struct trees *t = a->trees;
    const int *token = t->token + (size_t)slot * (size_t)t->max_nodes;
    const int *path = a->path + (size_t)slot * (size_t)t->max_depth;
    float *out = a->path_log_p + (size_t)slot * (1 + (size_t)t->max_depth);
    int row = a->first_row[slot];
    for (int i = 0; i < a->accepted[slot]; i++) {
        *out++ = log_p_of(a, row, token[path[i]]);
        row = a->first_row[slot] + 1 + path[i];
    }
    *out = a->bonus[slot] < 0 ? 0 : log_p_of(a, row, a->bonus[slot]);
}

void node_stats_ref(const struct node_stats *a)
{
    for (int slot = 0; slot < a->trees->slots; slot++) {
        if (a->first_row[slot] < 0)
            continue;
        if (a->with_nodes)
            nodes_of_slot(a, slot);
        path_of_slot(a, slot);
    }
}
