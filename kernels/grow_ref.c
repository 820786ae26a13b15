/* grow: loops over slots. The list of a slot holds parents before children, so whatever keeps its order keeps
 * trees valid. */
#include "kernels/grow.h"
#include <math.h>

static void put_row(const struct grow *a, int r, int slot, int token, int pos, int cell, int from)
{
    a->token[r] = token;
    a->slot[r] = slot;
    a->pos[r] = pos;
    a->cell[r] = cell;
    a->base[r] = pos + 1;
    a->path_off[r] = r * a->step->trees.max_depth;
    a->from[r] = from;
}

static void put_dead(const struct grow *a, int r)
{
    put_row(a, r, -1, 0, 0, 0, -1);
}

/* Tokens of the text that have come since the slot's last step; a new request has none. */
static int new_tokens(const struct grow *a, int slot)
{
    const struct step *s = a->step;
    const struct seq_state *q = &s->seq[slot];
    const int row = s->first_row[slot];
    return q->live && row >= 0 && a->serial[slot] == q->serial ? q->n - 1 - s->pos[row] : 0;
}

void grow_true_ref(const struct grow *a)
{
    const struct step *s = a->step;
    const int deep = 1 + s->trees.max_depth;
    for (int slot = 0; slot < s->trees.slots; slot++) {
        const int *path = s->accepted_path + (size_t)slot * (size_t)s->trees.max_depth;
        const int *text = s->text + (size_t)slot * (size_t)s->cap;
        const int n = new_tokens(a, slot), row = s->first_row[slot], at = slot * deep;
        for (int i = 0; i < n; i++) {
            const int pos = s->pos[row] + i;
            put_row(a, at + i, slot, text[pos + 1], pos, pos, i == 0 ? row : row + 1 + path[i - 1]);
        }
        for (int i = n; i < deep; i++)
            put_dead(a, at + i);
        a->last[slot] = n > 0 ? at + n - 1 : -1;
        a->serial[slot] = s->seq[slot].live ? s->seq[slot].serial : 0;
    }
}

/* Children of a node of the list, -1: of the text. Returns the length of the list with them. */
static int add_children(const struct grow *a, struct grow_node *list, int n, int parent, const int *id,
                        const float *log_p)
{
    const struct grow_node *p = parent < 0 ? NULL : &list[parent];
    const int weight = p ? p->weight : 1, k = a->shape == GROW_STATIC ? a->top_k / weight : a->top_k;
    for (int r = 0; r < k; r++)
        list[n++] = (struct grow_node){.token = id[r],
                                       .parent = parent,
                                       .depth = p ? p->depth + 1 : 1,
                                       .weight = weight * (r + 1),
                                       .cell = -1,
                                       .row = -1,
                                       .node = -1,
                                       .log_p = log_p[r],
                                       .score = (p ? p->score : 0) + log_p[r]};
    return n;
}

/* How many of list[from, n) are better than the one at i. */
static int rank_of(const struct grow_node *list, int from, int n, int i)
{
    const float x = list[i].score;
    int better = 0;
    for (int k = from; k < n; k++) {
        const float y = list[k].score;
        better += y > x || (isnan(x) && !isnan(y)) || (k < i && (y == x || (isnan(x) && isnan(y))));
    }
    return better;
}

static int choose(const struct grow *a, const struct grow_node *list, int from, int n, int *frontier)
{
    for (int i = from; i < n; i++) {
        const int place = a->shape == GROW_DYNAMIC ? rank_of(list, from, n, i) : i - from;
        if (place < a->width)
            frontier[place] = i;
    }
    return n - from < a->width ? n - from : a->width;
}

/* A node that goes on, in row r of the next pass. */
static void lay(const struct grow *a, struct grow_node *list, int i, int slot, int r, int cell)
{
    struct grow_node *c = &list[i];
    const int trues = a->step->seq[slot].n - 1;
    put_row(a, r, slot, c->token, trues + c->depth - 1, cell, c->parent < 0 ? slot : list[c->parent].row);
    a->base[r] = trues;
    c->cell = cell;
    c->row = r;
    for (int k = i, at = c->depth - 1; k >= 0; k = list[k].parent)
        a->path[a->path_off[r] + at--] = list[k].cell;
}

static void fill_tree(const struct grow *a, struct grow_node *list, int n, int slot)
{
    const struct trees *t = &a->step->trees;
    const size_t first = (size_t)slot * (size_t)t->max_nodes;
    int nodes = 0;
    for (int i = 0; i < n; i++) {
        if ((a->shape == GROW_DYNAMIC ? rank_of(list, 0, n, i) : i) >= t->max_nodes)
            continue;
        const size_t at = first + (size_t)nodes;
        t->token[at] = list[i].token;
        t->parent[at] = list[i].parent < 0 ? -1 : list[list[i].parent].node;
        t->depth[at] = list[i].depth;
        t->log_q[at] = list[i].log_p;
        t->q_row[at] = -1;
        list[i].node = nodes++;
    }
    t->n[slot] = nodes;
}

static void level_of_slot(const struct grow *a, int level, int slot)
{
    const struct step *s = a->step;
    const struct seq_state *q = &s->seq[slot];
    const size_t k = (size_t)a->top_k;
    const int most = s->trees.max_depth, deep = q->live && q->n > 1 ? step_depth(q, most) : 0;
    struct grow_node *list = a->list + (size_t)slot * (size_t)a->max_candidates;
    int *frontier = a->frontier + (size_t)slot * (size_t)a->width;
    const int from = level == 1 ? 0 : a->n[slot];
    int n = from;
    if (level == 1 && deep > 0)
        n = add_children(a, list, n, -1, a->root_id + (size_t)slot * k, a->root_log_p + (size_t)slot * k);
    for (int i = 0; level > 1 && i < a->n_frontier[slot]; i++) {
        const size_t row = (size_t)slot * (size_t)a->width + (size_t)i;
        n = add_children(a, list, n, frontier[i], a->id + row * k, a->log_p + row * k);
    }
    a->n[slot] = n;
    if (level == most) {
        fill_tree(a, list, n, slot);
        return;
    }
    a->n_frontier[slot] = level < deep ? choose(a, list, from, n, frontier) : 0;
    for (int i = 0; i < a->width; i++) {
        const int r = slot * a->width + i;
        if (i < a->n_frontier[slot])
            lay(a, list, frontier[i], slot, r, q->n - 1 + (level - 1) * a->width + i);
        else
            put_dead(a, r);
    }
}

void grow_level_ref(const struct grow *a, int level)
{
    for (int slot = 0; slot < a->step->trees.slots; slot++)
        level_of_slot(a, level, slot);
}
