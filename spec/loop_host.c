/* loop_host: strategies that propose on the host. The text is up to date there because every step is drained
 * before the next is proposed for; trees go up as one block before the step. */
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <assert.h>
#include <string.h>

static struct draft_text text_of(const struct spec *s, int slot)
{
    const struct seq *q = &s->seq[slot];
    return (struct draft_text){slot, q->request, q->text, q->n, q->n_prompt};
}

/* Which sequences take part, and empty trees for them: a node is worth its row only if it and the bonus after
 * it still fit the budget, the cap and the context. */
static void gather(struct spec *s)
{
    struct host_draft *h = &s->host;
    h->n = 0;
    for (int slot = 0; slot < s->opts.slots; slot++) {
        const struct seq *q = &s->seq[slot];
        if (!q->active)
            continue;
        struct tree *tree = &h->tree[h->n];
        tree_clear(tree);
        tree->max_depth = loop_min(s->opts.max_depth, loop_end(s, q) - q->n - 1);
        tree->max_nodes = tree->max_depth > 0 ? s->opts.max_nodes : 0;
        h->text[h->n++] = text_of(s, slot);
    }
}

static int upload_q(struct spec *s, const struct tree *tree, size_t first)
{
    struct backend *be = loop_backend(s);
    const size_t vocab = (size_t)s->model->cfg.vocab;
    for (int k = 0; k < tree->n; k++)
        if (tree->nodes[k].q)
            TRY(be->ops->upload(be, s->step.trees.q + (first + (size_t)k) * vocab, tree->nodes[k].q,
                                vocab * sizeof(float)));
    return 0;
}

/* Trees in the order of struct trees; returns the rows of the step. */
static int stage(struct spec *s)
{
    const struct host_draft *h = &s->host;
    const size_t slots = (size_t)s->opts.slots, width = (size_t)s->opts.max_nodes, all = slots * width;
    int *token = h->staging + slots, rows = 0;
    memset(h->staging, 0, slots * sizeof *h->staging);
    for (int i = 0; i < h->n; i++) {
        const struct tree *tree = &h->tree[i];
        const size_t first = (size_t)h->text[i].slot * width;
        h->staging[h->text[i].slot] = tree->n;
        rows += 1 + tree->n;
        for (int k = 0; k < tree->n; k++) {
            const struct tree_node *node = &tree->nodes[k];
            int *at = token + first + (size_t)k;
            assert(node->token >= 0 && node->token < s->model->cfg.vocab);
            assert(!node->q || s->step.trees.q);
            at[0] = node->token;
            at[all] = node->parent;
            at[2 * all] = node->depth;
            at[3 * all] = node->q ? (int)(first + (size_t)k) : -1;
            memcpy(&at[4 * all], &node->log_q, sizeof *at);
        }
    }
    return rows;
}

int loop_host_step(struct spec *s)
{
    struct backend *be = loop_backend(s);
    const struct draft_ops *draft = s->opts.draft;
    struct host_draft *h = &s->host;
    const int64_t started = clock_ns();
    gather(s);
    TRY_CTX(draft->propose(s->draft, h->text, h->n, h->tree), "draft '%s', proposing", draft->name);
    const int rows = stage(s);
    TRY(be->ops->upload(be, s->trees, h->staging, loop_trees_ints(&s->opts) * sizeof *h->staging));
    for (int i = 0; i < h->n; i++)
        TRY(upload_q(s, &h->tree[i], (size_t)h->text[i].slot * (size_t)s->opts.max_nodes));
    return loop_enqueue(s, rows, started);
}

int loop_host_observe(struct spec *s, const struct spec_step *step, const struct step_entry *e, int64_t *ns)
{
    const struct draft_ops *draft = s->opts.draft;
    const int64_t start = clock_ns();
    for (int i = 0; i < step->n_records; i++) {
        const struct step_record *r = &step->records[i];
        s->host.seen[i] = (struct draft_seen){.text = text_of(s, r->slot),
                                              .n_new = r->emitted,
                                              .n_accepted = loop_min(r->accepted, r->emitted),
                                              .path = e->path + (size_t)r->slot * (size_t)s->opts.max_depth,
                                              .row = loop_first_row(e, r->slot)};
    }
    TRY_CTX(draft->observe(s->draft, s->host.seen, step->n_records), "draft '%s', observing", draft->name);
    *ns = clock_ns() - start;
    return 0;
}
