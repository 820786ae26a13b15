/* Everything is kept prompt by prompt, since that is what is resampled: a variant is a few sums for each
 * prompt. The oracle is a shortest path: the least time from each position of a text to its end, over all
 * drafts that can be had there. */
#include "experiments/whatif.h"
#include "engine/err.h"
#include "experiments/config.h"
#include "experiments/stats_test.h"
#include "experiments/whatif_model.h"
#include "spec/loop.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sums over the answers to one prompt. Times in seconds; all: first steps included. */
struct sums {
    double tokens, steps, rows, exact;
    double later, time, all;
};

struct work {
    const struct trace *t;
    struct whatif_model model;
    int *slot;             /* owned [n_prompts]: which prompt a row of /prompts is of */
    const char **category; /* owned [n_prompts], the first n_slots of them used; borrowed strings */
    int n_slots, longest;
    struct sums *sums;         /* owned [variants + 2, n_slots]: the variants, plain decoding, the oracle */
    int *tokens;               /* owned [longest text] */
    struct whatif_step *steps; /* owned [longest text] */
    double *least;             /* owned [longest text + 1] */
    double *x;                 /* owned [n_slots, 4] */
};

struct indexed {
    int index, row;
};

static int compare_indexed(const void *pa, const void *pb)
{
    const struct indexed *a = pa, *b = pb;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    return (a->row > b->row) - (a->row < b->row);
}

/* Turns of a prompt are one slot. */
static int find_slots(struct work *w)
{
    const struct trace *t = w->t;
    struct indexed *x = malloc(((size_t)t->n_prompts + 1) * sizeof *x);
    if (!x)
        FAIL(ERR_MEMORY, "%s: no memory for %lld prompts", t->path, (long long)t->n_prompts);
    for (int i = 0; i < t->n_prompts; i++)
        x[i] = (struct indexed){t->prompts[i].index, i};
    qsort(x, (size_t)t->n_prompts, sizeof *x, compare_indexed);
    for (int i = 0; i < t->n_prompts; i++) {
        w->n_slots += i == 0 || x[i].index != x[i - 1].index;
        w->slot[x[i].row] = w->n_slots - 1;
        w->category[w->n_slots - 1] = t->prompts[x[i].row].category;
    }
    free(x);
    return 0;
}

static int work_init(struct work *w, const struct trace *t, int variants)
{
    size_t prompts = (size_t)t->n_prompts + 1;
    w->t = t;
    w->slot = calloc(prompts, sizeof *w->slot);
    w->category = calloc(prompts, sizeof *w->category);
    for (int64_t i = 0; i < t->n_requests; i++) {
        int64_t n = t->requests[i].prompt_tokens + t->requests[i].tokens;
        if (n > INT32_MAX / 2)
            FAIL(ERR_FORMAT, "%s: /requests row %lld: a text of %lld tokens is too long", t->path,
                 (long long)i, (long long)n);
        w->longest = n > w->longest ? (int)n : w->longest;
    }
    w->tokens = malloc(((size_t)w->longest + 1) * sizeof *w->tokens);
    w->steps = malloc(((size_t)w->longest + 1) * sizeof *w->steps);
    w->least = malloc(((size_t)w->longest + 2) * sizeof *w->least);
    w->x = malloc(4 * prompts * sizeof *w->x);
    w->sums = calloc((size_t)(variants + 2) * prompts, sizeof *w->sums);
    if (!w->slot || !w->category || !w->tokens || !w->steps || !w->least || !w->x || !w->sums)
        FAIL(ERR_MEMORY, "%s: no memory to replay %lld answers", t->path, (long long)t->n_requests);
    return find_slots(w);
}

static void work_deinit(struct work *w)
{
    free(w->slot);
    free(w->category);
    free(w->tokens);
    free(w->steps);
    free(w->least);
    free(w->x);
    free(w->sums);
}

static struct whatif_text text_of(struct work *w, const struct trace_request *r, int budget)
{
    const struct trace *t = w->t;
    int n = 0;
    for (int64_t i = 0; i < r->prompt_tokens; i++)
        w->tokens[n++] = t->prompt_tokens[r->prompt_begin + i];
    for (int64_t i = 0; i < r->tokens; i++)
        w->tokens[n++] = t->tokens[r->token_begin + i].id;
    int cut = r->finish == FINISH_LENGTH || r->finish == FINISH_CONTEXT;
    return (struct whatif_text){.tokens = w->tokens,
                                .n_prompt = (int)r->prompt_tokens,
                                .n = n,
                                .end = cut ? n : (int)r->prompt_tokens + budget};
}

static double seconds(const struct work *w, const struct whatif_rest *rest, const struct whatif_step *s)
{
    return w->model.costs ? whatif_step_seconds(&w->model, rest, s->rows, s->rows - 1, s->n) : 0;
}

/* Depth is only asked for chains, whose rows say it. */
static void add_steps(const struct work *w, const struct whatif_rest *rest, int n, int end, struct sums *to)
{
    for (int k = 0; k < n; k++) {
        const struct whatif_step *s = &w->steps[k];
        int room = end - s->n, emitted = s->accepted + 1 < room ? s->accepted + 1 : room;
        double time = seconds(w, rest, s);
        to->tokens += emitted;
        to->steps++;
        to->rows += s->rows;
        to->exact += s->exact;
        to->all += time;
        if (k > 0) {
            to->later += emitted;
            to->time += time;
        }
    }
}

static int budget_of(const struct whatif_variant *v, int *budget)
{
    struct config c = {0};
    TRY(config_parse(&c, v->config, strlen(v->config), v->label, NULL, 0));
    *budget = c.workload.max_tokens;
    config_deinit(&c);
    return 0;
}

static int replay_variant(struct work *w, const struct whatif_variant *v, struct sums *sums)
{
    const struct trace *t = w->t;
    struct whatif_rest rest;
    int budget;
    TRY(budget_of(v, &budget));
    whatif_rest_of(t, v->strategy, &rest);
    for (int64_t i = 0; i < t->n_requests; i++) {
        const struct trace_request *r = &t->requests[i];
        if (r->arm != v->arm || !r->tokens || !r->prompt_tokens)
            continue;
        struct whatif_text text = text_of(w, r, budget);
        int n = whatif_replay(&v->draft, &text, t->steps + r->step_begin, (int)r->steps, w->steps);
        add_steps(w, &rest, n, text.n, &sums[w->slot[r->prompt]]);
    }
    return 0;
}

/* least[n]: the shortest time from n tokens to the end of the text, over no draft and all n-gram variants. */
static void shortest(struct work *w, const struct whatif *f, const struct whatif_rest *rest,
                     const struct whatif_text *text)
{
    const struct whatif_draft none = {.kind = WHATIF_NONE};
    w->least[text->n] = 0;
    for (int n = text->n - 1; n >= text->n_prompt; n--) {
        struct whatif_step s;
        whatif_step_at(&none, text, NULL, 0, n, &s);
        w->least[n] = seconds(w, &rest[f->n], &s) + w->least[n + 1];
        for (int i = 0; i < f->n; i++) {
            const struct whatif_variant *v = &f->variants[i];
            if (v->draft.kind != WHATIF_NGRAM)
                continue;
            whatif_step_at(&v->draft, text, NULL, 0, n, &s);
            int next = n + s.accepted + 1 < text->n ? n + s.accepted + 1 : text->n;
            w->least[n] = fmin(w->least[n], seconds(w, &rest[i], &s) + w->least[next]);
        }
    }
}

static int replay_oracle(struct work *w, const struct whatif *f, struct sums *sums)
{
    struct whatif_rest *rest = calloc((size_t)f->n + 1, sizeof *rest);
    int budget,
        rc = rest ? budget_of(&f->variants[0], &budget) : ERR_SET(ERR_MEMORY, "no memory for the oracle");
    for (int i = 0; !rc && i < f->n; i++)
        whatif_rest_of(w->t, f->variants[i].strategy, &rest[i]);
    if (!rc)
        whatif_rest_of(w->t, "none", &rest[f->n]);
    for (int64_t i = 0; !rc && i < w->t->n_requests; i++) {
        const struct trace_request *r = &w->t->requests[i];
        if (r->arm != f->variants[0].arm || !r->tokens || !r->prompt_tokens)
            continue;
        struct whatif_text text = text_of(w, r, budget);
        shortest(w, f, rest, &text);
        sums[w->slot[r->prompt]].all += w->least[text.n_prompt];
    }
    free(rest);
    return rc;
}

/* Prompts that have steps, as rows of a, b and what they are compared with. */
static int64_t rows(const struct work *w, const struct sums *a, const struct sums *plain, int speed)
{
    int64_t n = 0;
    for (int i = 0; i < w->n_slots; i++) {
        if (!(a[i].steps > 0))
            continue;
        double *x = w->x + 4 * n++;
        x[0] = speed ? a[i].later : a[i].tokens;
        x[1] = speed ? a[i].time : a[i].steps;
        x[2] = plain[i].later;
        x[3] = plain[i].time;
    }
    return n;
}

/* Two columns of four, in place. */
static void halve(double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[2 * i] = x[4 * i];
        x[2 * i + 1] = x[4 * i + 1];
    }
}

static void widen(struct stats_interval *x, double error, double level)
{
    double e = stats_normal_quantile((1 + level) / 2) * error;
    double lo = log(x->value / x->lo), hi = log(x->hi / x->value);
    x->lo = x->value * exp(-sqrt(lo * lo + e * e));
    x->hi = x->value * exp(sqrt(hi * hi + e * e));
}

static int summarise(const struct work *w, struct whatif_variant *v, const struct sums *a,
                     const struct sums *plain, const struct stats_resampling *how)
{
    double rows_sum = 0;
    for (int i = 0; i < w->n_slots; i++) {
        v->steps += (int64_t)a[i].steps;
        v->exact += (int64_t)a[i].exact;
        v->tokens += (int64_t)a[i].tokens;
        rows_sum += a[i].rows;
    }
    v->rows = v->steps ? rows_sum / (double)v->steps : NAN;
    int64_t n = rows(w, a, plain, 0);
    halve(w->x, n);
    TRY(stats_bootstrap(w->x, n, 2, stats_ratio, how, &v->al));
    v->speed = v->speedup = (struct stats_interval){NAN, NAN, NAN};
    if (!w->model.costs)
        return 0;
    n = rows(w, a, plain, 1);
    TRY(stats_bootstrap(w->x, n, 4, stats_ratio_of_rates, how, &v->speedup));
    halve(w->x, n);
    TRY(stats_bootstrap(w->x, n, 2, stats_ratio, how, &v->speed));
    widen(&v->speed, w->model.error, how->level);
    widen(&v->speedup, v->draft.kind == WHATIF_NONE ? 0 : w->model.error, how->level);
    return 0;
}

/* Total time of a variant over the prompts of a category, NULL: of all. */
static double total(const struct work *w, const struct sums *a, const char *category)
{
    double time = 0;
    for (int i = 0; i < w->n_slots; i++)
        if (!category || !strcmp(w->category[i], category))
            time += a[i].all;
    return time;
}

static int seen(const struct work *w, int i)
{
    for (int k = 0; k < i; k++)
        if (!strcmp(w->category[k], w->category[i]))
            return 1;
    return 0;
}

static void find_best(const struct work *w, const struct whatif *f, const char *category,
                      struct whatif_best *out)
{
    const struct sums *plain = w->sums + (size_t)f->n * (size_t)w->n_slots, *oracle = plain + w->n_slots;
    double base = total(w, plain, category), least = total(w, oracle, category);
    *out = (struct whatif_best){.category = category, .variant = 0, .speedup = 0, .oracle = NAN};
    for (int i = 0; i < f->n; i++) {
        double s = base / total(w, w->sums + (size_t)i * (size_t)w->n_slots, category);
        if (s > out->speedup) {
            out->speedup = s;
            out->variant = i;
        }
    }
    if (least > 0)
        out->oracle = base / least;
}

static int find_bests(const struct work *w, struct whatif *f)
{
    f->best = calloc((size_t)w->n_slots + 1, sizeof *f->best);
    if (!f->best)
        FAIL(ERR_MEMORY, "no memory for the best of %d categories", w->n_slots);
    find_best(w, f, NULL, &f->best[f->n_best++]);
    for (int i = 0; i < w->n_slots; i++)
        if (!seen(w, i))
            find_best(w, f, w->category[i], &f->best[f->n_best++]);
    return 0;
}

static int check_rows(const struct whatif *w, const struct whatif_costs *costs)
{
    for (int i = 0; costs && i < w->n; i++) {
        const struct whatif_draft *d = &w->variants[i].draft;
        int nodes = d->kind == WHATIF_NONE                                   ? 0
                    : d->kind == WHATIF_CHAIN && d->max_depth < d->max_nodes ? d->max_depth
                                                                             : d->max_nodes;
        if (1 + nodes > whatif_costs_max_rows(costs))
            FAIL(ERR_CONFIG,
                 "'%s' takes passes of %d rows, the cost table has at most %d: measure it with more (bench "
                 "step --cost-table -r)",
                 w->variants[i].label, 1 + nodes, whatif_costs_max_rows(costs));
    }
    return 0;
}

static int evaluate(struct whatif *f, struct work *w, const struct whatif_opts *opts)
{
    struct whatif_variant none = f->variants[0];
    size_t n = (size_t)w->n_slots;
    none.draft = (struct whatif_draft){.kind = WHATIF_NONE};
    char strategy[] = "none";
    none.strategy = strategy;
    struct sums *plain = w->sums + (size_t)f->n * n;
    TRY(replay_variant(w, &none, plain));
    for (int i = 0; i < f->n; i++) {
        struct sums *sums = w->sums + (size_t)i * n;
        TRY(replay_variant(w, &f->variants[i], sums));
        TRY(summarise(w, &f->variants[i], sums, plain, &opts->resampling));
    }
    if (!w->model.costs)
        return 0;
    TRY(replay_oracle(w, f, plain + n));
    return find_bests(w, f);
}

int whatif_init(struct whatif *out, const struct trace *t, const struct whatif_costs *costs,
                const struct whatif_opts *opts)
{
    struct whatif made = {0};
    struct work w = {0};
    int rc = whatif_model_init(&w.model, t, costs);
    if (!rc)
        rc = whatif_variants(&made, t, opts);
    if (!rc)
        rc = check_rows(&made, costs);
    if (!rc)
        rc = work_init(&w, t, made.n);
    if (!rc)
        rc = evaluate(&made, &w, opts);
    made.factor = w.model.factor;
    made.error = w.model.error;
    work_deinit(&w);
    if (rc)
        whatif_deinit(&made);
    else
        *out = made;
    return rc;
}

void whatif_deinit(struct whatif *w)
{
    for (int i = 0; i < w->n; i++) {
        free(w->variants[i].label);
        free(w->variants[i].config);
        free(w->variants[i].strategy);
    }
    free(w->variants);
    free(w->best);
    *w = (struct whatif){0};
}
