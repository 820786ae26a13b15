/* summary_score: sums by prompt, for the bootstrap to draw from; one pass over the tokens and a sort of their
 * KL. */
#include "experiments/summary_score.h"
#include "engine/err.h"
#include <stdlib.h>

/* Sums by prompt, the rows that are drawn again: owned [n, 2] and [n, 4]. */
struct clusters {
    double *nll, *agree, *kl, *pair;
    double *tokens_kl; /* owned: KL of every token */
    int64_t prompts, pairs, tokens;
};

static int clusters_init(struct clusters *c, const struct trace *t, const struct summary_item *items,
                         int64_t n)
{
    size_t tokens = 1, rows = (size_t)n + 1;
    for (int64_t i = 0; i < n; i++)
        tokens += (size_t)t->requests[items[i].row].tokens;
    *c = (struct clusters){.nll = calloc(rows, 2 * sizeof *c->nll),
                           .agree = calloc(rows, 2 * sizeof *c->agree),
                           .kl = calloc(rows, 2 * sizeof *c->kl),
                           .pair = calloc(rows, 4 * sizeof *c->pair),
                           .tokens_kl = calloc(tokens, sizeof *c->tokens_kl)};
    if (!c->nll || !c->agree || !c->kl || !c->pair || !c->tokens_kl)
        FAIL(ERR_MEMORY, "%s: no memory to sum up %zu tokens", t->path, tokens - 1);
    return 0;
}

static void clusters_deinit(struct clusters *c)
{
    free(c->nll);
    free(c->agree);
    free(c->kl);
    free(c->pair);
    free(c->tokens_kl);
}

static void set_pair(double *row, double sum, int64_t tokens)
{
    row[0] = sum;
    row[1] = (double)tokens;
}

/* One prompt: its turns and repeats, n items. */
static void add_prompt(struct clusters *c, const struct trace *t, const struct summary_item *items, int64_t n,
                       struct metrics_scores *sums)
{
    struct metrics_scores all = {0}, both = {0}, baseline = {0};
    for (int64_t i = 0; i < n; i++) {
        const struct trace_request *r = &t->requests[items[i].row];
        metrics_scores_request(&all, t, items[i].row);
        for (int64_t k = 0; k < r->tokens; k++)
            c->tokens_kl[c->tokens++] = (double)t->scores[r->score_begin + k].kl;
        if (items[i].partner < 0)
            continue;
        metrics_scores_request(&both, t, items[i].row);
        metrics_scores_request(&baseline, t, items[i].partner);
    }
    set_pair(c->nll + 2 * c->prompts, all.nll, all.tokens);
    set_pair(c->agree + 2 * c->prompts, (double)all.agree, all.tokens);
    set_pair(c->kl + 2 * c->prompts, all.kl, all.tokens);
    set_pair(c->pair + 4 * c->pairs, both.nll, both.tokens);
    set_pair(c->pair + 4 * c->pairs + 2, baseline.nll, baseline.tokens);
    c->prompts++;
    c->pairs += both.tokens > 0;
    metrics_scores_add(sums, &all);
}

static int fill(struct summary_scores *s, struct clusters *c, const struct stats_resampling *r)
{
    TRY(stats_bootstrap(c->nll, c->prompts, 2, metrics_perplexity, r, &s->perplexity));
    TRY(stats_bootstrap(c->pair, c->pairs, 4, metrics_perplexity_ratio, r, &s->ratio));
    TRY(stats_bootstrap(c->agree, c->prompts, 2, stats_ratio, r, &s->agreement));
    TRY(stats_bootstrap(c->kl, c->prompts, 2, stats_ratio, r, &s->kl));
    stats_sort(c->tokens_kl, c->tokens);
    s->kl_p99 = stats_percentile(c->tokens_kl, c->tokens, 0.99);
    return 0;
}

int summary_score(struct summary_scores *out, const struct trace *t, const struct summary_item *items,
                  int64_t n, const struct stats_resampling *r)
{
    struct summary_scores s = {0};
    struct clusters c;
    int rc = clusters_init(&c, t, items, n);
    for (int64_t i = 0, end; !rc && i < n; i = end) {
        for (end = i + 1; end < n && items[end].prompt == items[i].prompt;)
            end++;
        add_prompt(&c, t, items + i, end - i, &s.sums);
    }
    if (!rc)
        rc = fill(&s, &c, r);
    clusters_deinit(&c);
    if (!rc)
        *out = s;
    return rc;
}
