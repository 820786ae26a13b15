/* loop: the step, from top to bottom of this file's last function: propose, verify, accept, commit, observe,
 * record. The pass's logits are read on the host, once the backend has synchronised; see struct forward.
 * Nothing is allocated. */
#include "spec/loop.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "spec/loop_state.h"
#include <assert.h>
#include <string.h>

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

int spec_active(const struct spec *s)
{
    int n = 0;
    for (int i = 0; i < s->opts.slots; i++)
        n += s->seq[i].active;
    return n;
}

int spec_free_slots(const struct spec *s)
{
    return s->opts.slots - spec_active(s);
}

static int check_request(const struct spec *s, const struct spec_request *r)
{
    int cap = s->opts.cap, context = s->model->cfg.max_positions, vocab = s->model->cfg.vocab;
    if (spec_free_slots(s) == 0)
        FAIL(ERR_LIMIT, "request %u: expected a free slot, all %d are taken", r->request, s->opts.slots);
    if (r->n_prompt < 1 || r->max_tokens < 1)
        FAIL(ERR_CONFIG, "request %u: expected a prompt and an answer of at least 1 token, found %d and %d",
             r->request, r->n_prompt, r->max_tokens);
    if (r->n_prompt > cap || r->max_tokens > cap - r->n_prompt)
        FAIL(ERR_LIMIT, "request %u: expected at most %d tokens of prompt and answer, found %d + %d",
             r->request, cap, r->n_prompt, r->max_tokens);
    if (r->n_prompt >= context)
        FAIL(ERR_LIMIT,
             "request %u: expected a prompt of at most %d tokens (the model's context less 1), found %d",
             r->request, context - 1, r->n_prompt);
    for (int i = 0; i < r->n_prompt; i++)
        if (r->prompt[i] < 0 || r->prompt[i] >= vocab)
            FAIL(ERR_CONFIG, "request %u: prompt token %d: expected an id from 0 to %d, found %d", r->request,
                 i, vocab - 1, r->prompt[i]);
    return 0;
}

/* All but the last token, which is the first root, in blocks that end at fixed positions. */
static int prefill(struct spec *s, int slot, const int *tokens, int n)
{
    kv_reset(&s->kv, slot);
    for (int at = 0, len; at < n; at += len) {
        len = min_int(s->prefill_block - at % s->prefill_block, n - at);
        TRY(forward_prefill(&s->fwd, slot, tokens + at, len));
    }
    return s->model->be->ops->sync(s->model->be);
}

static struct draft_text text_of(const struct spec *s, int slot)
{
    const struct seq *q = &s->seq[slot];
    return (struct draft_text){slot, q->request, q->text, q->n, q->n_prompt};
}

int spec_submit(struct spec *s, const struct spec_request *r)
{
    int64_t start = clock_ns();
    TRY(check_request(s, r));
    int slot = 0;
    while (s->seq[slot].active)
        slot++;
    struct seq *q = &s->seq[slot];
    memcpy(q->text, r->prompt, (size_t)r->n_prompt * sizeof *q->text);
    q->n = q->n_prompt = r->n_prompt;
    q->max_tokens = r->max_tokens;
    q->steps = 0;
    q->request = r->request;
    q->user = r->user;
    q->finish = FINISH_NONE;
    q->submitted = start;
    stop_begin(&q->stop);
    int64_t before = clock_ns();
    TRY_CTX(prefill(s, slot, q->text, q->n_prompt - 1), "prefilling request %u", r->request);
    q->ns_prefill = clock_ns() - before;
    struct draft_text text = text_of(s, slot);
    TRY_CTX(s->opts.draft->begin(s->draft, &text), "draft '%s', request %u", s->opts.draft->name, r->request);
    q->active = 1;
    return 0;
}

/* Which sequences take part, and trees for them: a node is worth its row only if it and the bonus after it
 * still fit the budget, the cap and the context. */
static void gather(struct spec *s)
{
    struct pass *p = &s->pass;
    p->n = 0;
    for (int slot = 0; slot < s->opts.slots; slot++) {
        const struct seq *q = &s->seq[slot];
        if (!q->active)
            continue;
        int tokens_left = min_int(q->max_tokens - (q->n - q->n_prompt), s->limit - q->n);
        struct tree *tree = &p->tree[p->n];
        tree_clear(tree);
        tree->max_depth = min_int(s->opts.max_depth, tokens_left - 1);
        tree->max_nodes = tree->max_depth > 0 ? s->opts.max_nodes : 0;
        p->text[p->n] = text_of(s, slot);
        p->slot[p->n++] = slot;
    }
}

/* One row for each root and each node, sequence after sequence. */
static void lay_rows(struct spec *s)
{
    struct pass *p = &s->pass;
    p->n_rows = 0;
    for (int i = 0; i < p->n; i++) {
        const struct seq *q = &s->seq[p->slot[i]];
        int root = p->first_row[i] = p->n_rows++;
        p->rows[root] = (struct forward_row){q->text[q->n - 1], p->slot[i], -1};
        for (int k = 0; k < p->tree[i].n; k++) {
            const struct tree_node *node = &p->tree[i].nodes[k];
            assert(node->token >= 0 && node->token < s->model->cfg.vocab);
            p->rows[p->n_rows++] = (struct forward_row){node->token, p->slot[i], root + 1 + node->parent};
        }
    }
}

static int verify(struct spec *s)
{
    unsigned flags = FORWARD_LOGITS | (s->opts.trace == TRACE_FULL ? FORWARD_ENTROPY : 0);
    TRY(forward_run(&s->fwd, s->pass.rows, s->pass.n_rows, flags));
    return s->model->be->ops->sync(s->model->be);
}

/* Token by token, as plain decoding would: 1 when this one ends the answer. */
static int append(const struct spec *s, struct seq *q, int token)
{
    q->text[q->n++] = token;
    q->finish = stop_push(&q->stop, token);
    if (q->finish == FINISH_NONE && q->n - q->n_prompt == q->max_tokens)
        q->finish = FINISH_LENGTH;
    if (q->finish == FINISH_NONE && q->n == s->limit)
        q->finish = FINISH_CONTEXT;
    return q->finish != FINISH_NONE;
}

/* The i-th sequence: the rule, the text up to where it ends, and the cache of all that text but its last
 * token. */
static int accept_one(struct spec *s, int i)
{
    struct pass *p = &s->pass;
    int slot = p->slot[i], row = p->first_row[i], n_new = 0;
    struct seq *q = &s->seq[slot];
    const struct accept_args args = {.tree = &p->tree[i],
                                     .logits = logit_row(s, row),
                                     .stats = s->fwd.host_stats + row,
                                     .vocab = s->model->cfg.vocab,
                                     .sampling = &s->opts.sampling,
                                     .request = q->request,
                                     .position = q->n,
                                     .scratch = &s->scratch};
    struct accepted *a = &p->accepted[i];
    TRY(s->opts.rule->accept(&args, a));
    for (int over = 0; n_new <= a->n && !over; n_new++)
        over = append(s, q, n_new < a->n ? p->tree[i].nodes[a->path[n_new]].token : a->bonus);
    p->keep[0] = 0;
    for (int k = 1; k < n_new; k++)
        p->keep[k] = 1 + a->path[k - 1];
    TRY(kv_commit(&s->kv, slot, p->keep, n_new));
    q->steps++;
    p->seen[i] = (struct draft_seen){text_of(s, slot), n_new, min_int(a->n, n_new), a->path};
    return 0;
}

static int finish_slot(struct seq *q, int slot, int64_t end, struct spec_finished *out)
{
    if (q->finish == FINISH_NONE)
        return 0;
    q->active = 0;
    *out = (struct spec_finished){.slot = slot,
                                  .user = q->user,
                                  .reason = q->finish,
                                  .tokens = q->text + q->n_prompt,
                                  .n = q->n - q->n_prompt,
                                  .steps = q->steps,
                                  .ns_prefill = q->ns_prefill,
                                  .ns_first = q->first_end - q->submitted,
                                  .ns_decode = end - q->first_end};
    return 1;
}

/* Times of the pass go into every record; answers that are over leave their slots. */
static int close_step(struct spec *s, const struct step_record *times)
{
    int64_t end = clock_ns();
    int n_finished = 0;
    for (int i = 0; i < s->pass.n; i++) {
        struct step_record *r = &s->records[i];
        struct seq *q = &s->seq[r->slot];
        r->ns_draft = times->ns_draft;
        r->ns_verify = times->ns_verify;
        r->ns_accept = times->ns_accept;
        r->ns_total = end - times->ns_total;
        r->ns_host = r->ns_total - r->ns_draft - r->ns_verify - r->ns_accept;
        if (q->steps == 1)
            q->first_end = end;
        n_finished += finish_slot(q, r->slot, end, &s->finished[n_finished]);
    }
    return n_finished;
}

int spec_step(struct spec *s, struct spec_step *out)
{
    const struct draft_ops *draft = s->opts.draft;
    struct pass *p = &s->pass;
    int64_t start = clock_ns();
    gather(s);
    if (p->n == 0) {
        *out = (struct spec_step){s->records, 0, s->finished, 0};
        return 0;
    }
    int64_t at_draft = clock_ns();
    TRY_CTX(draft->propose(s->draft, p->text, p->n, p->tree), "draft '%s', proposing", draft->name);
    int64_t at_rows = clock_ns();
    lay_rows(s);
    int64_t at_verify = clock_ns();
    TRY_CTX(verify(s), "verifying %d rows of %d sequences", p->n_rows, p->n);
    int64_t at_accept = clock_ns();
    for (int i = 0; i < p->n; i++)
        TRY_CTX(accept_one(s, i), "rule '%s'", s->opts.rule->name);
    int64_t at_observe = clock_ns();
    TRY_CTX(draft->observe(s->draft, p->seen, p->n), "draft '%s', observing", draft->name);
    int64_t at_record = clock_ns();
    for (int i = 0; i < p->n; i++)
        loop_record(s, i, &s->records[i]);
    struct step_record times = {.ns_draft = at_rows - at_draft + at_record - at_observe,
                                .ns_verify = at_accept - at_verify,
                                .ns_accept = at_observe - at_accept,
                                .ns_total = start};
    int n_finished = close_step(s, &times);
    *out = (struct spec_step){s->records, p->n, s->finished, n_finished};
    return 0;
}

void spec_abort(struct spec *s)
{
    for (int i = 0; i < s->opts.slots; i++) {
        s->seq[i].active = 0;
        kv_reset(&s->kv, i);
    }
}
