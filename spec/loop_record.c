/* loop_record: what happened to one sequence in a step. Ranks and log probabilities come from the logits of
 * the row before a token, untouched by temperature and filters, so that they mean the same in every arm.
 * Cost: O(vocab) a node for its rank. */
#include "spec/loop_state.h"

static float log_p_of(const struct spec *s, int row, int token)
{
    return logit_row(s, row)[token] - s->fwd.host_stats[row].lse;
}

static void record_nodes(const struct spec *s, int i, struct node_record *out)
{
    const struct tree *tree = &s->pass.tree[i];
    for (int k = 0; k < tree->n; k++) {
        const struct tree_node *node = &tree->nodes[k];
        int row = s->pass.first_row[i] + 1 + node->parent;
        const struct logit_stats *st = &s->fwd.host_stats[row];
        out[k] =
            (struct node_record){.token = node->token,
                                 .parent = node->parent,
                                 .depth = node->depth,
                                 .log_q = node->log_q,
                                 .log_p = log_p_of(s, row, node->token),
                                 .rank = logits_rank(logit_row(s, row), s->model->cfg.vocab, node->token)};
        if (s->opts.trace == TRACE_FULL) {
            out[k].entropy = st->entropy;
            out[k].gap = st->max - st->second;
        }
    }
    const struct accepted *a = &s->pass.accepted[i];
    for (int k = 0; k < a->n; k++)
        out[a->path[k]].accepted = 1;
}

static unsigned flags_of(const struct spec *s, int i)
{
    const struct seq *q = &s->seq[s->pass.slot[i]];
    unsigned flags = 0;
    if (q->steps == 1)
        flags |= STEP_FIRST;
    if (s->pass.tree[i].n == 0)
        flags |= STEP_NO_DRAFT;
    if (q->finish == FINISH_STOP_TOKEN || q->finish == FINISH_STOP_STRING)
        flags |= STEP_STOP;
    if (q->finish == FINISH_LENGTH || q->finish == FINISH_CONTEXT)
        flags |= STEP_BUDGET;
    return flags;
}

void loop_record(struct spec *s, int i, struct step_record *r)
{
    int slot = s->pass.slot[i];
    const struct accepted *a = &s->pass.accepted[i];
    const struct draft_text *text = &s->pass.text[i];
    float *log_p = s->log_p + (size_t)slot * (size_t)(1 + s->opts.max_depth);
    struct node_record *nodes = NULL;
    if (s->opts.trace != TRACE_STEPS) {
        nodes = s->nodes + (size_t)slot * (size_t)s->opts.max_nodes;
        record_nodes(s, i, nodes);
    }
    *r = (struct step_record){.slot = slot,
                              .user = s->seq[slot].user,
                              .position = text->n,
                              .proposed = s->pass.tree[i].n,
                              .depth = tree_max_depth(&s->pass.tree[i]),
                              .accepted = a->n,
                              .emitted = s->pass.seen[i].n_new,
                              .flags = flags_of(s, i),
                              .pass_rows = s->pass.n_rows,
                              .pass_seqs = s->pass.n,
                              .tokens = text->tokens + text->n,
                              .log_p = log_p,
                              .nodes = nodes};
    for (int k = 0; k < r->emitted; k++) {
        int row = s->pass.first_row[i] + (k == 0 ? 0 : 1 + a->path[k - 1]);
        log_p[k] = log_p_of(s, row, r->tokens[k]);
    }
}
