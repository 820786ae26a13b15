/* record: rows wait in memory until both files of the pair have them. A request is collected apart, with row
 * numbers that start at 0, because several requests grow at the same time; record_finish moves it behind the
 * rows of the others. */
#include "experiments/record.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "experiments/record_meta.h"
#include "experiments/record_rows.h"
#include "experiments/record_swap.h"
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct record_request {
    struct trace_request head;
    struct row_list prompt, tokens, steps, nodes, scores, step_experts,
        node_experts;             /* first = 0: numbers count from the request's own first row */
    struct record_request *spare; /* next unused object */
};

struct record {
    struct record_swap swap;
    struct trace_meta meta; /* owned */
    struct row_list
        table[RECORD_TABLES];       /* arms, prompts and requests whole; of the others what `next` lacks */
    int64_t in_next[RECORD_TABLES]; /* rows of the hidden file */
    int64_t in_path[RECORD_TABLES]; /* rows of the published one */
    int64_t last_prompt;            /* where record_prompt found its last row */
    int failed;                     /* a write failed: nothing more is written */
    struct record_request *spare;   /* owned list */
};

/* Row counts of the bulk tables: where the last of the ranges ends. */
static void count_rows(struct record *r, const struct record_file *f)
{
    for (int t = 0; t < RECORD_TABLES; t++)
        r->in_path[t] = r->in_next[t] = r->table[t].first = record_file_rows(f, (enum record_table)t);
    r->table[RECORD_ARMS].first = r->table[RECORD_PROMPTS].first = r->table[RECORD_REQUESTS].first = 0;
}

static void take_small_tables(struct record *r, struct trace *t)
{
    r->table[RECORD_ARMS] = (struct row_list){.data = t->arms, .n = t->n_arms, .cap = t->n_arms};
    r->table[RECORD_PROMPTS] = (struct row_list){.data = t->prompts, .n = t->n_prompts, .cap = t->n_prompts};
    r->table[RECORD_REQUESTS] =
        (struct row_list){.data = t->requests, .n = t->n_requests, .cap = t->n_requests};
    t->arms = NULL;
    t->prompts = NULL;
    t->requests = NULL;
    t->n_arms = t->n_prompts = t->n_requests = 0;
}

static int continue_file(struct record *r)
{
    struct trace was = {0};
    struct record_file *f = NULL;
    TRY(trace_read(&was, r->swap.path, TRACE_READ_REQUESTS));
    int rc = record_meta_check(r->swap.path, &was.meta, &r->meta);
    if (!rc)
        rc = record_meta_continue(&r->meta, &was.meta);
    if (!rc)
        rc = record_file_copy(r->swap.path, r->swap.next, &r->meta, FILE_GROWING);
    if (!rc)
        rc = record_file_open(&f, r->swap.path, FILE_READ);
    if (!rc) {
        take_small_tables(r, &was);
        count_rows(r, f);
    }
    record_file_close(f);
    trace_deinit(&was);
    return rc;
}

static int start_file(struct record *r)
{
    struct record_file *f = NULL;
    TRY(record_file_create(&f, r->swap.next, &r->meta, FILE_GROWING));
    return record_file_close(f);
}

int record_may_open(const char *path, enum record_mode mode)
{
    if (mode == RECORD_NEW && access(path, F_OK) == 0)
        FAIL(ERR_CONFIG,
             "%s: exists already; continue it with --resume, replace it with --force, or choose another file "
             "with -o",
             path);
    return 0;
}

static int open_pair(struct record *r, enum record_mode mode)
{
    int exists = access(r->swap.path, F_OK) == 0;
    TRY(record_may_open(r->swap.path, mode));
    unlink(r->swap.next);
    TRY(exists && mode == RECORD_RESUME ? continue_file(r) : start_file(r));
    TRY(record_swap_finish(&r->swap));
    return record_swap_copy(&r->swap);
}

static void record_free(struct record *r)
{
    for (int t = 0; t < RECORD_TABLES; t++) {
        record_free_texts((enum record_table)t, r->table[t].data, r->table[t].n);
        free(r->table[t].data);
    }
    while (r->spare) {
        struct record_request *q = r->spare;
        r->spare = q->spare;
        free(q->prompt.data);
        free(q->tokens.data);
        free(q->steps.data);
        free(q->nodes.data);
        free(q->scores.data);
        free(q->step_experts.data);
        free(q->node_experts.data);
        free(q);
    }
    record_swap_close(&r->swap);
    trace_meta_deinit(&r->meta);
    free(r);
}

int record_open(struct record **out, const char *path, const struct trace_meta *meta, enum record_mode mode)
{
    struct record *r = calloc(1, sizeof *r);
    if (!r)
        FAIL(ERR_MEMORY, "%s: out of memory while opening", path);
    r->swap.fd = -1;
    int rc = record_meta_copy(&r->meta, meta);
    if (!rc)
        rc = record_meta_set(&r->meta.status, "running");
    if (!rc)
        rc = record_meta_set(&r->meta.ended, "");
    if (!rc)
        rc = record_swap_open(&r->swap, path);
    if (!rc)
        rc = open_pair(r, mode);
    if (rc)
        record_free(r);
    else
        *out = r;
    return rc;
}

static int append_missing(struct record *r, struct record_file *f)
{
    for (int t = 0; t < RECORD_TABLES; t++) {
        const struct row_list *have = &r->table[t];
        int64_t begin = r->in_next[t], skip = begin - have->first;
        assert(record_file_rows(f, (enum record_table)t) == begin);
        if (row_list_end(have) > begin)
            TRY(record_file_append(f, (enum record_table)t,
                                   (char *)have->data + (size_t)skip * record_tables[t].row_bytes,
                                   row_list_end(have) - begin));
    }
    return 0;
}

/* The hidden file was at path one round ago. A reader may still hold it, or come between the question and our
 * opening it: then it is left to him. */
static int open_hidden(struct record *r, struct record_file **f)
{
    if (!record_swap_is_read(&r->swap) && record_file_open(f, r->swap.next, FILE_APPEND) == 0)
        return 0;
    TRY(record_swap_copy(&r->swap));
    memcpy(r->in_next, r->in_path, sizeof r->in_next);
    return record_file_open(f, r->swap.next, FILE_APPEND);
}

static int write_hidden(struct record *r)
{
    struct record_file *f = NULL;
    TRY(open_hidden(r, &f));
    int rc = append_missing(r, f);
    int closed = record_file_close(f);
    return rc ? rc : closed;
}

static int publish(struct record *r)
{
    int exchanged = 0;
    int rc = write_hidden(r);
    if (!rc)
        rc = record_swap_publish(&r->swap, &exchanged);
    if (rc) {
        r->failed = 1;
        err_context("writing results; what %s holds by now stays readable", r->swap.path);
        return rc;
    }
    for (int t = 0; t < RECORD_TABLES; t++) {
        int64_t total = row_list_end(&r->table[t]);
        r->in_next[t] = exchanged ? r->in_path[t] : total;
        r->in_path[t] = total;
        if (t >= RECORD_PROMPT_TOKENS)
            row_list_drop_before(&r->table[t], (enum record_table)t, r->in_next[t]);
    }
    return 0;
}

static int unpublished(const struct record *r)
{
    for (int t = 0; t < RECORD_TABLES; t++)
        if (row_list_end(&r->table[t]) > r->in_path[t])
            return 1;
    return 0;
}

static int finish_file(struct record *r, const char *status)
{
    char *now = record_meta_now();
    if (!now)
        FAIL(ERR_MEMORY, "%s: out of memory while finishing", r->swap.path);
    free(r->meta.ended);
    r->meta.ended = now;
    TRY(record_meta_set(&r->meta.status, status));
    if (unpublished(r))
        TRY(publish(r));
    unlink(r->swap.next); /* a reader may have it open */
    TRY_CTX(record_file_copy(r->swap.path, r->swap.next, &r->meta, FILE_COMPACT),
            "compressing the finished results; %s is whole, but marked as running", r->swap.path);
    return record_swap_finish(&r->swap);
}

int record_close(struct record *r, const char *status)
{
    if (!r)
        return 0;
    int rc = r->failed ? 0 : finish_file(r, status);
    record_free(r);
    return rc;
}

static int add_with_texts(struct record *r, enum record_table t, void *row)
{
    TRY(row_list_reserve(&r->table[t], t, 1));
    TRY(record_own_texts(record_tables[t].fields, record_tables[t].n_fields, row));
    row_list_add(&r->table[t], t, row, 1);
    return 0;
}

int record_arm(struct record *r, const struct trace_arm *arm, int *row)
{
    const struct trace_arm *have = r->table[RECORD_ARMS].data;
    int64_t n = r->table[RECORD_ARMS].n, i = 0;
    while (i < n && (strcmp(have[i].label, arm->label) != 0 || strcmp(have[i].config, arm->config) != 0))
        i++;
    struct trace_arm copy = *arm;
    if (i == n)
        TRY(add_with_texts(r, RECORD_ARMS, &copy));
    *row = (int)i;
    return 0;
}

static int same_prompt(const struct trace_prompt *a, const struct trace_prompt *b)
{
    return a->index == b->index && a->turn == b->turn && strcmp(a->id, b->id) == 0 &&
           strcmp(a->dataset, b->dataset) == 0 && strcmp(a->category, b->category) == 0 &&
           strcmp(a->text, b->text) == 0;
}

/* Every arm asks in the same order, so the search starts behind the last hit. */
int record_prompt(struct record *r, const struct trace_prompt *p, int *row)
{
    const struct trace_prompt *have = r->table[RECORD_PROMPTS].data;
    int64_t n = r->table[RECORD_PROMPTS].n, found = n;
    for (int64_t i = 1; i <= n && found == n; i++)
        if (same_prompt(&have[(r->last_prompt + i) % n], p))
            found = (r->last_prompt + i) % n;
    struct trace_prompt copy = *p;
    if (found == n)
        TRY(add_with_texts(r, RECORD_PROMPTS, &copy));
    r->last_prompt = found;
    *row = (int)found;
    return 0;
}

int64_t record_find(const struct record *r, int arm, uint32_t request)
{
    const struct trace_request *have = r->table[RECORD_REQUESTS].data;
    for (int64_t i = 0; i < r->table[RECORD_REQUESTS].n; i++)
        if (have[i].arm == arm && have[i].request == request)
            return i;
    return -1;
}

int record_tokens(struct record *r, int64_t row, int32_t **ids, int64_t *n)
{
    assert(row >= 0 && row < r->table[RECORD_REQUESTS].n);
    const struct trace_request *q = (const struct trace_request *)r->table[RECORD_REQUESTS].data + row;
    struct record_file *f = NULL;
    int rc;
    struct trace_token *tokens = calloc((size_t)q->tokens + 1, sizeof *tokens);
    int32_t *out = calloc((size_t)q->tokens + 1, sizeof *out);
    if (!tokens || !out) {
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory while reading %lld tokens", r->swap.path,
                     (long long)q->tokens);
        goto out;
    }
    rc = record_file_open(&f, r->swap.path, FILE_READ);
    if (rc)
        goto out;
    rc = record_file_read(f, RECORD_TOKENS, q->token_begin, q->tokens, tokens);
    if (rc)
        goto out;
    for (int64_t i = 0; i < q->tokens; i++)
        out[i] = tokens[i].id;
    *ids = out;
    *n = q->tokens;
    out = NULL;
out:
    record_file_close(f);
    free(tokens);
    free(out);
    return rc;
}

int record_begin(struct record *r, const struct trace_request *head, const int *prompt, int n_prompt,
                 struct record_request **out)
{
    struct record_request *q = r->spare;
    if (q)
        r->spare = q->spare;
    else if (!(q = calloc(1, sizeof *q)))
        FAIL(ERR_MEMORY, "record: out of memory for a request");
    q->spare = NULL;
    q->head = *head;
    q->prompt.n = q->tokens.n = q->steps.n = q->nodes.n = q->scores.n = 0;
    q->step_experts.n = q->node_experts.n = 0;
    int rc = row_list_reserve(&q->prompt, RECORD_PROMPT_TOKENS, n_prompt);
    if (rc) {
        record_drop(r, q);
        return rc;
    }
    int32_t *ids = q->prompt.data;
    for (int i = 0; i < n_prompt; i++)
        ids[i] = prompt[i];
    q->prompt.n = n_prompt;
    *out = q;
    return 0;
}

int record_step(struct record_request *q, const struct step_record *s)
{
    int nodes = s->nodes ? s->proposed : 0, layers = s->expert_layers;
    int chosen = s->chosen ? (1 + s->proposed) * layers * s->top_k : 0, experts = 0;
    TRY(row_list_reserve(&q->steps, RECORD_STEPS, 1));
    TRY(row_list_reserve(&q->tokens, RECORD_TOKENS, s->emitted));
    TRY(row_list_reserve(&q->nodes, RECORD_NODES, nodes));
    TRY(row_list_reserve(&q->step_experts, RECORD_STEP_EXPERTS, layers));
    TRY(row_list_reserve(&q->node_experts, RECORD_NODE_EXPERTS, chosen));
    for (int i = 0; i < layers; i++)
        experts += s->distinct[i];
    struct trace_step step = {.position = s->position,
                              .proposed = s->proposed,
                              .depth = s->depth,
                              .accepted = s->accepted,
                              .emitted = s->emitted,
                              .flags = s->flags,
                              .pass_rows = s->pass_rows,
                              .pass_seqs = s->pass_seqs,
                              .ns_draft = s->ns_draft,
                              .ns_verify = s->ns_verify,
                              .ns_accept = s->ns_accept,
                              .ns_host = s->ns_host,
                              .ns_total = s->ns_total,
                              .node_begin = q->nodes.n,
                              .experts = experts,
                              .expert_layers = layers,
                              .top_k = layers ? s->top_k : 0,
                              .expert_begin = q->step_experts.n,
                              .chosen_begin = q->node_experts.n,
                              .chosen = chosen};
    for (int i = 0; i < s->emitted; i++) {
        struct trace_token token = {.id = s->tokens[i], .log_p = s->log_p[i]};
        row_list_add(&q->tokens, RECORD_TOKENS, &token, 1);
    }
    for (int i = 0; i < nodes; i++) {
        const struct node_record *n = &s->nodes[i];
        struct trace_node node = {.step = q->steps.n,
                                  .token = n->token,
                                  .parent = n->parent,
                                  .depth = n->depth,
                                  .accepted = n->accepted,
                                  .log_q = n->log_q,
                                  .log_p = n->log_p,
                                  .rank = n->rank,
                                  .entropy = n->entropy,
                                  .gap = n->gap};
        row_list_add(&q->nodes, RECORD_NODES, &node, 1);
    }
    row_list_add(&q->step_experts, RECORD_STEP_EXPERTS, s->distinct, layers);
    row_list_add(&q->node_experts, RECORD_NODE_EXPERTS, s->chosen, chosen);
    row_list_add(&q->steps, RECORD_STEPS, &step, 1);
    return 0;
}

/* Move the rows of q behind those of the other requests; their numbers then count over the file. */
static int append_request(struct record *r, const struct record_request *q, const struct trace_request *head)
{
    struct row_list *table = r->table;
    int64_t request = row_list_end(&table[RECORD_REQUESTS]), nodes = row_list_end(&table[RECORD_NODES]);
    int64_t experts = row_list_end(&table[RECORD_STEP_EXPERTS]),
            chosen = row_list_end(&table[RECORD_NODE_EXPERTS]);
    TRY(row_list_reserve(&table[RECORD_REQUESTS], RECORD_REQUESTS, 1));
    TRY(row_list_reserve(&table[RECORD_PROMPT_TOKENS], RECORD_PROMPT_TOKENS, q->prompt.n));
    TRY(row_list_reserve(&table[RECORD_TOKENS], RECORD_TOKENS, q->tokens.n));
    TRY(row_list_reserve(&table[RECORD_STEPS], RECORD_STEPS, q->steps.n));
    TRY(row_list_reserve(&table[RECORD_NODES], RECORD_NODES, q->nodes.n));
    TRY(row_list_reserve(&table[RECORD_SCORES], RECORD_SCORES, q->scores.n));
    TRY(row_list_reserve(&table[RECORD_STEP_EXPERTS], RECORD_STEP_EXPERTS, q->step_experts.n));
    TRY(row_list_reserve(&table[RECORD_NODE_EXPERTS], RECORD_NODE_EXPERTS, q->node_experts.n));
    row_list_add(&table[RECORD_REQUESTS], RECORD_REQUESTS, head, 1);
    row_list_add(&table[RECORD_PROMPT_TOKENS], RECORD_PROMPT_TOKENS, q->prompt.data, q->prompt.n);
    struct trace_token *token =
        row_list_add(&table[RECORD_TOKENS], RECORD_TOKENS, q->tokens.data, q->tokens.n);
    for (int64_t i = 0; i < q->tokens.n; i++)
        token[i].request = request;
    struct trace_step *step = row_list_add(&table[RECORD_STEPS], RECORD_STEPS, q->steps.data, q->steps.n);
    for (int64_t i = 0; i < q->steps.n; i++) {
        step[i].request = request;
        step[i].node_begin += nodes;
        step[i].expert_begin += experts;
        step[i].chosen_begin += chosen;
    }
    row_list_add(&table[RECORD_STEP_EXPERTS], RECORD_STEP_EXPERTS, q->step_experts.data, q->step_experts.n);
    row_list_add(&table[RECORD_NODE_EXPERTS], RECORD_NODE_EXPERTS, q->node_experts.data, q->node_experts.n);
    struct trace_node *node = row_list_add(&table[RECORD_NODES], RECORD_NODES, q->nodes.data, q->nodes.n);
    for (int64_t i = 0; i < q->nodes.n; i++)
        node[i].step += head->step_begin;
    struct trace_score *score =
        row_list_add(&table[RECORD_SCORES], RECORD_SCORES, q->scores.data, q->scores.n);
    for (int64_t i = 0; i < q->scores.n; i++)
        score[i].request = request;
    return 0;
}

/* Append the rows of q, whose head lacks but its ranges and hash, and publish them. */
static int finish_request(struct record *r, struct record_request *q, struct trace_request head,
                          const int32_t *ids)
{
    head.prompt_begin = row_list_end(&r->table[RECORD_PROMPT_TOKENS]);
    head.prompt_tokens = q->prompt.n;
    head.token_begin = row_list_end(&r->table[RECORD_TOKENS]);
    head.tokens = q->tokens.n;
    head.step_begin = row_list_end(&r->table[RECORD_STEPS]);
    head.steps = q->steps.n;
    head.score_begin = row_list_end(&r->table[RECORD_SCORES]);
    head.hash = trace_hash_tokens(ids, head.tokens);
    int rc = r->failed ? ERR_SET(ERR_IO, "%s: an earlier write failed", r->swap.path)
                       : append_request(r, q, &head);
    record_drop(r, q);
    return rc ? rc : publish(r);
}

int record_finish(struct record *r, struct record_request *q, const struct spec_finished *f)
{
    assert(f->n == q->tokens.n && f->steps == q->steps.n);
    struct trace_request head = q->head;
    head.finish = (int32_t)f->reason;
    head.ns_prefill = f->ns_prefill;
    head.ns_first = f->ns_first;
    head.ns_decode = f->ns_decode;
    return finish_request(r, q, head, f->tokens);
}

static int collect_scores(struct record_request *q, const struct trace_score *scores, int n)
{
    TRY(row_list_reserve(&q->tokens, RECORD_TOKENS, n));
    TRY(row_list_reserve(&q->scores, RECORD_SCORES, n));
    for (int i = 0; i < n; i++) {
        struct trace_token token = {.id = scores[i].token, .log_p = scores[i].log_p};
        row_list_add(&q->tokens, RECORD_TOKENS, &token, 1);
    }
    row_list_add(&q->scores, RECORD_SCORES, scores, n);
    return 0;
}

int record_finish_scored(struct record *r, struct record_request *q, const struct trace_score *scores, int n,
                         int64_t ns_prefill, int64_t ns_total)
{
    assert(q->steps.n == 0 && q->tokens.n == 0);
    struct trace_request head = q->head;
    int32_t *ids = calloc((size_t)n + 1, sizeof *ids);
    int rc =
        ids ? collect_scores(q, scores, n) : ERR_SET(ERR_MEMORY, "record: out of memory for %d scores", n);
    if (rc) {
        record_drop(r, q);
    } else {
        for (int i = 0; i < n; i++)
            ids[i] = scores[i].token;
        head.finish = TRACE_SCORED;
        head.ns_prefill = ns_prefill;
        head.ns_first = ns_total;
        rc = finish_request(r, q, head, ids);
    }
    free(ids);
    return rc;
}

void record_drop(struct record *r, struct record_request *q)
{
    if (!q)
        return;
    q->spare = r->spare;
    r->spare = q;
}
