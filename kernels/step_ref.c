/* step: loops over slots. What a slot's text becomes is decided from its accepted tokens alone; moved cells
 * are those from the first gap on, as kv_commit moves them. */
#include "kernels/step.h"
#include <assert.h>

static void put_row(const struct step *s, int r, int slot, int token, int pos, int cell)
{
    s->token[r] = token;
    s->slot[r] = slot;
    s->pos[r] = pos;
    s->cell[r] = cell;
    s->base[r] = pos + 1;
    s->path_off[r] = r * (1 + s->trees.max_depth);
}

/* Cells of the root and the ancestors of node k, which is one of them. */
static void put_path(const struct step *s, int r, int slot, int root, int k)
{
    const int *parent = s->trees.parent + (size_t)slot * (size_t)s->trees.max_nodes;
    int *path = s->path + s->path_off[r];
    s->base[r] = root;
    for (int at = s->pos[r] - root; at > 0; at--, k = parent[k])
        path[at] = root + 1 + k;
    path[0] = root;
}

static int plan_slot(const struct step *s, int slot, int row)
{
    const struct seq_state *q = &s->seq[slot];
    const size_t first = (size_t)slot * (size_t)s->trees.max_nodes;
    const int root = q->n - 1, n = s->trees.n[slot];
    put_row(s, row, slot, s->text[(size_t)slot * (size_t)s->cap + (size_t)root], root, root);
    for (int k = 0; k < n; k++) {
        const int r = row + 1 + k, depth = s->trees.depth[first + (size_t)k];
        put_row(s, r, slot, s->trees.token[first + (size_t)k], root + depth, root + 1 + k);
        if (depth != k + 1)
            put_path(s, r, slot, root, k);
    }
    return 1 + n;
}

void step_plan_ref(const struct step *s, int rows)
{
    int at = 0, seqs = 0;
    assert(rows <= s->max_rows);
    for (int slot = 0; slot < s->trees.slots; slot++) {
        s->first_row[slot] = -1;
        if (!s->seq[slot].live)
            continue;
        assert(at + 1 + s->trees.n[slot] <= rows);
        s->first_row[slot] = at;
        at += plan_slot(s, slot, at);
        seqs++;
    }
    s->count[0] = at;
    s->count[1] = seqs;
    for (int r = at; r < rows; r++)
        put_row(s, r, -1, 0, 0, 0);
}

/* The cells of the accepted nodes go where their positions are. */
static void move_cells(const struct step_commit *a, int slot)
{
    const struct step *s = a->step;
    const int *path = s->accepted_path + (size_t)slot * (size_t)s->trees.max_depth;
    const int row = s->first_row[slot], n = s->accepted[slot], root = s->cell[row];
    int stay = 0;
    while (stay < n && path[stay] == stay)
        stay++;
    for (int i = stay; i < n; i++) {
        const int src = s->cell[row + 1 + path[i]];
        for (int l = 0; l < a->n_layers; l++)
            kv_move_ref(&(struct kv_move){
                .kv = a->layers[l], .slot = slot, .dst = root + 1 + i, .n = 1, .src = &src});
    }
}

static int is_stop(const struct step_commit *a, int token)
{
    for (int i = 0; i < a->n_stop; i++)
        if (a->stop[i] == token)
            return 1;
    return 0;
}

static enum step_end end_after(const struct step_commit *a, const struct seq_state *q, int token)
{
    if (is_stop(a, token))
        return STEP_STOP_TOKEN;
    return q->n == q->end ? STEP_LENGTH : q->n == q->context_end ? STEP_CONTEXT : STEP_GOES_ON;
}

/* Token by token, as plain decoding would. */
static void append(const struct step_commit *a, int slot, struct step_slot *out, int *emitted)
{
    const struct step *s = a->step;
    struct seq_state *q = &s->seq[slot];
    const int *path = s->accepted_path + (size_t)slot * (size_t)s->trees.max_depth;
    const int *token = s->trees.token + (size_t)slot * (size_t)s->trees.max_nodes;
    out->end = s->bonus[slot] < 0 ? STEP_NOT_FINITE : STEP_GOES_ON;
    for (int i = 0; i <= out->accepted && out->end == STEP_GOES_ON; i++) {
        emitted[i] = i < out->accepted ? token[path[i]] : s->bonus[slot];
        s->text[(size_t)slot * (size_t)s->cap + (size_t)q->n++] = emitted[i];
        out->emitted++;
        out->end = end_after(a, q, emitted[i]);
    }
    q->live = out->end == STEP_GOES_ON;
}

static void record_nodes(const struct step *s, int slot, struct step_slot *out, struct step_node *node)
{
    const size_t first = (size_t)slot * (size_t)s->trees.max_nodes;
    for (size_t i = first; i < first + (size_t)out->proposed; i++, node++)
        *node = (struct step_node){s->trees.token[i], s->trees.parent[i], s->trees.depth[i], s->rank[i],
                                   s->trees.log_q[i], s->log_p[i],        s->entropy[i],     s->gap[i]};
}

static int deepest(const struct trees *t, int slot)
{
    const int *depth = t->depth + (size_t)slot * (size_t)t->max_nodes;
    int most = 0;
    for (int k = 0; k < t->n[slot]; k++)
        most = depth[k] > most ? depth[k] : most;
    return most;
}

static void commit_slot(const struct step_commit *a, int slot, const struct step_entry *e)
{
    const struct step *s = a->step;
    const size_t deep = (size_t)s->trees.max_depth, tokens = (size_t)slot * (1 + deep);
    struct step_slot *out = &e->slot[slot];
    *out = (struct step_slot){.serial = s->seq[slot].serial,
                              .position = s->seq[slot].n,
                              .proposed = s->trees.n[slot],
                              .depth = deepest(&s->trees, slot),
                              .accepted = s->accepted[slot]};
    move_cells(a, slot);
    append(a, slot, out, e->token + tokens);
    for (int i = 0; i < out->emitted; i++)
        e->log_p[tokens + (size_t)i] = s->emitted_log_p[tokens + (size_t)i];
    for (int i = 0; i < out->accepted; i++)
        e->path[(size_t)slot * deep + (size_t)i] = s->accepted_path[(size_t)slot * deep + (size_t)i];
    if (a->with_nodes)
        record_nodes(s, slot, out, e->node + (size_t)slot * (size_t)s->trees.max_nodes);
}

static int count_distinct(const int *chosen, int n)
{
    uint32_t seen[STEP_EXPERTS / 32] = {0};
    int distinct = 0;
    for (int i = 0; i < n; i++) {
        assert(chosen[i] >= 0 && chosen[i] < STEP_EXPERTS);
        const uint32_t bit = 1u << chosen[i] % 32;
        distinct += !(seen[chosen[i] / 32] & bit);
        seen[chosen[i] / 32] |= bit;
    }
    return distinct;
}

static void record_experts(const struct step_commit *a, const struct step_entry *e)
{
    const struct step_experts *x = &a->experts;
    const int n = a->step->count[0] * x->top_k;
    for (int l = 0; l < x->layers; l++) {
        const int *chosen = x->chosen + (size_t)l * (size_t)x->rows * (size_t)x->top_k;
        e->distinct[l] = count_distinct(chosen, n);
        for (int i = 0; x->with_ids && i < n; i++)
            e->expert[(size_t)l * (size_t)n + (size_t)i] = chosen[i];
    }
}

static struct step_entry next_entry(const struct step_commit *a)
{
    return step_entry_at(a->ring, &a->step->trees, &a->experts, (size_t)(*a->counter % (uint64_t)a->depth));
}

void step_commit_ref(const struct step_commit *a)
{
    const struct trees *t = &a->step->trees;
    const struct step_entry e = next_entry(a);
    for (int slot = 0; slot < t->slots; slot++)
        if (a->step->first_row[slot] >= 0)
            commit_slot(a, slot, &e);
        else
            e.slot[slot].serial = 0;
    record_experts(a, &e);
}

void step_publish_ref(const struct step_commit *a, int64_t end)
{
    const struct step *s = a->step;
    const struct step_entry e = next_entry(a);
    s->clock[STEP_END] = end;
    memcpy(e.head->clock, s->clock, sizeof e.head->clock);
    e.head->rows = s->count[0];
    e.head->seqs = s->count[1];
    e.head->sequence = ++*a->counter;
    s->clock[STEP_BEGIN] = 0;
}
