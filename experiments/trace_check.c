/* Rows are looked at one by one; what two tables say of each other, once both are in memory. */
#include "experiments/trace_check.h"
#include "engine/err.h"
#include "experiments/record_file.h"
#include "spec/loop.h"
#include <string.h>

static int within(int64_t begin, int64_t n, int64_t rows)
{
    return begin >= 0 && n >= 0 && n <= rows && begin <= rows - n;
}

static int check_range(const struct trace *t, int64_t row, const char *name, int64_t begin, int64_t n,
                       int64_t rows)
{
    if (!within(begin, n, rows))
        FAIL(ERR_FORMAT,
             "%s: /requests row %lld: expected rows of /%s, which has %lld, found %lld rows from %lld on",
             t->path, (long long)row, name, (long long)rows, (long long)n, (long long)begin);
    return 0;
}

int trace_check_requests(const struct trace *t, const struct record_file *f)
{
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        if (q->arm < 0 || q->arm >= t->n_arms)
            FAIL(ERR_FORMAT, "%s: /requests row %lld: expected an arm below %lld, found %d", t->path,
                 (long long)i, (long long)t->n_arms, q->arm);
        if (q->prompt < 0 || q->prompt >= t->n_prompts)
            FAIL(ERR_FORMAT, "%s: /requests row %lld: expected a prompt below %lld, found %d", t->path,
                 (long long)i, (long long)t->n_prompts, q->prompt);
        int scored = q->finish == TRACE_SCORED;
        if (q->repeat < 0 || q->concurrency < 1 ||
            (!scored && (q->finish < FINISH_NONE || q->finish > FINISH_INTERRUPTED)))
            FAIL(ERR_FORMAT, "%s: /requests row %lld: repeat %d, concurrency %d or finish %d is out of range",
                 t->path, (long long)i, q->repeat, q->concurrency, q->finish);
        if (q->ns_prefill < 0 || q->ns_first < 0 || q->ns_decode < 0 || q->started < 0)
            FAIL(ERR_FORMAT, "%s: /requests row %lld: found a negative time", t->path, (long long)i);
        TRY(check_range(t, i, "prompt_tokens", q->prompt_begin, q->prompt_tokens,
                        record_file_rows(f, RECORD_PROMPT_TOKENS)));
        TRY(check_range(t, i, "tokens", q->token_begin, q->tokens, record_file_rows(f, RECORD_TOKENS)));
        TRY(check_range(t, i, "steps", q->step_begin, q->steps, record_file_rows(f, RECORD_STEPS)));
        TRY(check_range(t, i, "scores", q->score_begin, scored ? q->tokens : 0,
                        record_file_rows(f, RECORD_SCORES)));
        if (scored != trace_is_scored(t) || (scored && q->steps))
            FAIL(
                ERR_FORMAT,
                "%s: /requests row %lld: expected answers of one kind, generated in steps or scored without, "
                "found finish %d and %lld steps",
                t->path, (long long)i, q->finish, (long long)q->steps);
    }
    return 0;
}

static int check_tokens(const struct trace *t)
{
    for (int64_t i = 0; i < t->n_tokens; i++)
        if (t->tokens[i].request < 0 || t->tokens[i].request >= t->n_requests || t->tokens[i].id < 0)
            FAIL(ERR_FORMAT,
                 "%s: /tokens row %lld: expected a token id and a row of /requests, found %d and %lld",
                 t->path, (long long)i, t->tokens[i].id, (long long)t->tokens[i].request);
    for (int64_t i = 0; i < t->n_prompt_tokens; i++)
        if (t->prompt_tokens[i] < 0)
            FAIL(ERR_FORMAT, "%s: /prompt_tokens row %lld: expected a token id, found %d", t->path,
                 (long long)i, t->prompt_tokens[i]);
    return 0;
}

int trace_has_nodes(const struct trace *t)
{
    return strcmp(t->meta.trace_level, "steps") != 0;
}

/* What a step says of experts: nothing, or so many layers, and of all rows or none which. */
static int check_step_experts(const struct trace *t, int64_t i, const struct trace_step *s,
                              const struct record_file *f)
{
    const int64_t all = (1 + (int64_t)s->proposed) * s->expert_layers, most = INT32_MAX,
                  step_experts = record_file_rows(f, RECORD_STEP_EXPERTS),
                  node_experts = record_file_rows(f, RECORD_NODE_EXPERTS);
    if (s->expert_layers < 0 || s->top_k < 0 || (s->top_k == 0) != (s->expert_layers == 0) ||
        (s->top_k > 0 && all > most / s->top_k) || (s->chosen != 0 && s->chosen != all * s->top_k))
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected (1 + proposed) * expert_layers * top_k choices or none, found "
             "proposed %d, expert_layers %d, top_k %d, chosen %d",
             t->path, (long long)i, s->proposed, s->expert_layers, s->top_k, s->chosen);
    if (!within(s->expert_begin, s->expert_layers, step_experts) ||
        !within(s->chosen_begin, s->chosen, node_experts))
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected rows of /step_experts, which has %lld, and of /node_experts, "
             "which has %lld, found %d from %lld on and %d from %lld on",
             t->path, (long long)i, (long long)step_experts, (long long)node_experts, s->expert_layers,
             (long long)s->expert_begin, s->chosen, (long long)s->chosen_begin);
    return 0;
}

int trace_check_step(const struct trace *t, int64_t i, const struct trace_step *s,
                     const struct record_file *f)
{
    const int64_t nodes = record_file_rows(f, RECORD_NODES);
    if (s->request < 0 || s->request >= t->n_requests)
        FAIL(ERR_FORMAT, "%s: /steps row %lld: expected a request below %lld, found %lld", t->path,
             (long long)i, (long long)t->n_requests, (long long)s->request);
    if (s->accepted < 0 || s->depth < s->accepted || s->proposed < s->depth || s->emitted < 0 ||
        s->emitted > s->accepted + 1 || s->position < 0 || s->pass_rows < 0 || s->pass_seqs < 0 ||
        s->experts < 0)
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected 0 <= accepted <= depth <= proposed and 0 <= emitted <= "
             "accepted + 1, "
             "found proposed %d, depth %d, accepted %d, emitted %d, position %d",
             t->path, (long long)i, s->proposed, s->depth, s->accepted, s->emitted, s->position);
    if (s->ns_draft < 0 || s->ns_verify < 0 || s->ns_accept < 0 || s->ns_host < 0 || s->ns_total < 0)
        FAIL(ERR_FORMAT, "%s: /steps row %lld: found a negative time", t->path, (long long)i);
    if (!within(s->node_begin, trace_has_nodes(t) ? s->proposed : 0, nodes))
        FAIL(ERR_FORMAT,
             "%s: /steps row %lld: expected rows of /nodes, which has %lld, found %d rows from %lld on",
             t->path, (long long)i, (long long)nodes, s->proposed, (long long)s->node_begin);
    return check_step_experts(t, i, s, f);
}

int trace_check_node(const struct trace *t, int64_t step, int k, const struct trace_node *n)
{
    if (n->depth < 1 || n->depth > k + 1 || n->rank < 0 || n->token < 0 || n->parent < -1)
        FAIL(ERR_FORMAT,
             "%s: /nodes: node %d of step %lld: parent %d, depth %d, rank %d or token %d is out of range",
             t->path, k, (long long)step, n->parent, n->depth, n->rank, n->token);
    if (n->step != step || n->parent >= k)
        FAIL(ERR_FORMAT,
             "%s: /nodes: node %d of step %lld: expected that step and a parent before %d, found %lld and %d",
             t->path, k, (long long)step, k, (long long)n->step, n->parent);
    return 0;
}

static int check_steps(const struct trace *t, const struct record_file *f)
{
    for (int64_t i = 0; t->steps && i < t->n_steps; i++)
        TRY(trace_check_step(t, i, &t->steps[i], f));
    return 0;
}

static int check_experts(const struct trace *t)
{
    for (int64_t i = 0; i < t->n_step_experts; i++)
        if (t->step_experts[i] < 0)
            FAIL(ERR_FORMAT, "%s: /step_experts row %lld: expected a number of experts, found %d", t->path,
                 (long long)i, t->step_experts[i]);
    for (int64_t i = 0; i < t->n_node_experts; i++)
        if (t->node_experts[i] < 0)
            FAIL(ERR_FORMAT, "%s: /node_experts row %lld: expected an expert, found %d", t->path,
                 (long long)i, t->node_experts[i]);
    return 0;
}

static int check_nodes(const struct trace *t, int64_t steps)
{
    for (int64_t i = 0; i < t->n_nodes; i++) {
        const struct trace_node *n = &t->nodes[i];
        if (n->step < 0 || n->step >= steps || n->parent < -1 || n->depth < 1 || n->rank < 0 || n->token < 0)
            FAIL(ERR_FORMAT,
                 "%s: /nodes row %lld: step %lld of %lld, parent %d, depth %d, rank %d or token %d is out of "
                 "range",
                 t->path, (long long)i, (long long)n->step, (long long)steps, n->parent, n->depth, n->rank,
                 n->token);
    }
    return 0;
}

/* Steps and the rows that they own, once both are in memory: parents stand before children. */
static int check_trees(const struct trace *t)
{
    if (t->n_nodes == 0 || !trace_has_nodes(t))
        return 0;
    for (int64_t i = 0; i < t->n_steps; i++)
        for (int k = 0; k < t->steps[i].proposed; k++) {
            const struct trace_node *n = &t->nodes[t->steps[i].node_begin + k];
            if (n->step != i || n->parent >= k)
                FAIL(ERR_FORMAT,
                     "%s: /nodes row %lld: expected step %lld and a parent before %d, found %lld and %d",
                     t->path, (long long)(t->steps[i].node_begin + k), (long long)i, k, (long long)n->step,
                     n->parent);
        }
    return 0;
}

/* The scores of a request are its own, one for each token of its answer. */
static int check_scores(const struct trace *t)
{
    for (int64_t i = 0; i < t->n_scores; i++) {
        const struct trace_score *s = &t->scores[i];
        if (s->request < 0 || s->request >= t->n_requests || s->token < 0 || s->position < 0 || s->rank < 1)
            FAIL(ERR_FORMAT,
                 "%s: /scores row %lld: request %lld of %lld, position %d, token %d or rank %d is out of "
                 "range",
                 t->path, (long long)i, (long long)s->request, (long long)t->n_requests, s->position,
                 s->token, s->rank);
    }
    for (int64_t i = 0; t->n_scores && i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        for (int64_t k = 0; q->finish == TRACE_SCORED && k < q->tokens; k++) {
            const struct trace_score *s = &t->scores[q->score_begin + k];
            if (s->request != i || (t->n_tokens && t->tokens[q->token_begin + k].id != s->token))
                FAIL(ERR_FORMAT,
                     "%s: /scores row %lld: expected token %lld of request %lld, found token %d of %lld",
                     t->path, (long long)(q->score_begin + k), (long long)k, (long long)i, s->token,
                     (long long)s->request);
        }
    }
    return 0;
}

/* The steps of a request are its own and emit exactly its tokens. */
static int check_emitted(const struct trace *t)
{
    for (int64_t i = 0; t->n_steps && i < t->n_requests; i++) {
        const struct trace_request *q = &t->requests[i];
        int64_t emitted = 0;
        for (int64_t s = q->step_begin; s < q->step_begin + q->steps; s++) {
            if (t->steps[s].request != i)
                FAIL(ERR_FORMAT, "%s: /steps row %lld: expected request %lld, found %lld", t->path,
                     (long long)s, (long long)i, (long long)t->steps[s].request);
            emitted += t->steps[s].emitted;
        }
        if (emitted != q->tokens)
            FAIL(ERR_FORMAT, "%s: /requests row %lld: expected %lld tokens as its steps emitted, found %lld",
                 t->path, (long long)i, (long long)emitted, (long long)q->tokens);
    }
    return 0;
}

int trace_check_rows(const struct trace *t, const struct record_file *f)
{
    TRY(check_tokens(t));
    TRY(check_steps(t, f));
    TRY(check_experts(t));
    TRY(check_nodes(t, record_file_rows(f, RECORD_STEPS)));
    TRY(check_trees(t));
    TRY(check_scores(t));
    return check_emitted(t);
}
