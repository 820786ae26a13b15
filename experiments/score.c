/* score: the prompt but its last token is prefilled as in generation; then chains of rows, each of which
 * predicts the token after it, run exactly as verification runs them. Costs a pass for SCORE_ROWS tokens and,
 * against a reference, 2 vocab exponentials of the host for each. */
#include "experiments/score.h"
#include "engine/clock.h"
#include "engine/err.h"
#include <math.h>
#include <stdlib.h>

/* A model that reads along. */
struct reader {
    struct model *model; /* borrowed; NULL: there is none */
    struct kv kv;
    struct forward fwd;
};

struct score {
    struct reader judge, reference;
    size_t bytes;
};

static int reader_open(struct reader *r, struct model *m, int cap)
{
    int limit = cap < m->cfg.max_positions ? cap : m->cfg.max_positions;
    int prefill = m->be->prefill_rows < limit ? m->be->prefill_rows : limit;
    r->model = m;
    TRY(kv_init(&r->kv, m->be, m, 1, limit));
    return forward_init(&r->fwd, m, &r->kv, prefill > SCORE_ROWS ? prefill : SCORE_ROWS, SCORE_ROWS);
}

static void reader_close(struct reader *r)
{
    forward_deinit(&r->fwd);
    kv_deinit(&r->kv);
}

int score_open(struct score **out, struct model *m, struct model *reference, int cap)
{
    struct score *s = calloc(1, sizeof *s);
    if (!s)
        FAIL(ERR_MEMORY, "score: out of memory");
    size_t before = m->be->allocated + (reference ? reference->be->allocated : 0);
    int rc = reader_open(&s->judge, m, cap);
    if (!rc && reference)
        rc = reader_open(&s->reference, reference, cap);
    if (rc) {
        score_close(s);
        return rc;
    }
    s->bytes = m->be->allocated + (reference ? reference->be->allocated : 0) - before;
    *out = s;
    return 0;
}

void score_close(struct score *s)
{
    if (!s)
        return;
    reader_close(&s->judge);
    reader_close(&s->reference);
    free(s);
}

size_t score_bytes(const struct score *s)
{
    return s->bytes;
}

static double log_sum_exp(const float *x, int n, double max)
{
    double sum = 0;
    for (int v = 0; v < n; v++)
        sum += exp(x[v] - max);
    return max + log(sum);
}

static double largest(const float *x, int n)
{
    float max = x[0];
    for (int v = 1; v < n; v++)
        max = x[v] > max ? x[v] : max;
    return max;
}

/* sum p (log p - log q) = sum p (x - y) - lse(x) + lse(y), x and y the logits. */
double score_kl(const float *p, const float *q, int vocab)
{
    double max = largest(p, vocab), sum = 0, moved = 0;
    for (int v = 0; v < vocab; v++) {
        double weight = exp(p[v] - max);
        sum += weight;
        moved += weight > 0 ? weight * ((double)p[v] - q[v]) : 0;
    }
    double kl = moved / sum - (max + log(sum)) + log_sum_exp(q, vocab, largest(q, vocab));
    return kl < 0 ? 0 : kl;
}

static const float *row_of(const struct reader *r, int row)
{
    return r->fwd.host_logits + (size_t)row * (size_t)r->model->cfg.vocab;
}

static int read_prompt(struct reader *r, const int *prompt, int n)
{
    if (!r->model)
        return 0;
    kv_reset(&r->kv, 0);
    TRY(forward_prefill(&r->fwd, 0, prompt, n - 1));
    return r->model->be->ops->sync(r->model->be);
}

static int read_rows(struct reader *r, const struct forward_row *rows, const int *keep, int n)
{
    if (!r->model)
        return 0;
    TRY(forward_run(&r->fwd, rows, n, FORWARD_LOGITS | FORWARD_ENTROPY));
    TRY(r->model->be->ops->sync(r->model->be));
    return kv_commit(&r->kv, 0, keep, n);
}

/* What row `row` of the pass said of the token that came after it. */
static struct trace_score judge(const struct score *s, int row, int token, int position)
{
    const struct logit_stats *own = &s->judge.fwd.host_stats[row], *other = own;
    const float *logits = row_of(&s->judge, row);
    int vocab = s->judge.model->cfg.vocab;
    double kl = 0;
    if (s->reference.model) {
        other = &s->reference.fwd.host_stats[row];
        kl = score_kl(row_of(&s->reference, row), logits, vocab);
    }
    return (struct trace_score){.position = position,
                                .token = token,
                                .log_p = logits[token] - own->lse,
                                .rank = logits_rank(logits, vocab, token),
                                .entropy = own->entropy,
                                .top1 = own->argmax == token,
                                .agree = own->argmax == other->argmax,
                                .kl = (float)kl};
}

static int check_answer(const struct score *s, const int *answer, int n)
{
    int vocab = s->judge.model->cfg.vocab;
    for (int i = 0; i < n; i++)
        if (answer[i] < 0 || answer[i] >= vocab)
            FAIL(ERR_LIMIT, "token %d of the answer: expected an id from 0 to %d, found %d", i, vocab - 1,
                 answer[i]);
    return 0;
}

int score_answer(struct score *s, const int *prompt, int n_prompt, const int *answer, int n,
                 struct trace_score *out, int64_t *ns_prefill)
{
    struct forward_row rows[SCORE_ROWS];
    int keep[SCORE_ROWS];
    int64_t start = clock_ns();
    TRY(check_answer(s, answer, n));
    TRY(read_prompt(&s->judge, prompt, n_prompt));
    TRY(read_prompt(&s->reference, prompt, n_prompt));
    int64_t prefilled = clock_ns();
    for (int at = 0, len; at < n; at += len) {
        len = n - at < SCORE_ROWS ? n - at : SCORE_ROWS;
        for (int i = 0; i < len; i++) {
            int before = at + i == 0 ? prompt[n_prompt - 1] : answer[at + i - 1];
            rows[i] = (struct forward_row){.token = before, .slot = 0, .parent = i - 1};
            keep[i] = i;
        }
        TRY(read_rows(&s->judge, rows, keep, len));
        TRY(read_rows(&s->reference, rows, keep, len));
        for (int i = 0; i < len; i++)
            out[at + i] = judge(s, i, answer[at + i], n_prompt + at + i);
    }
    *ns_prefill = prefilled - start;
    return 0;
}
