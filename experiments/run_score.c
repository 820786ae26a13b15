/* run_score: two walks over all answers, the first for the length of the longest text, because memory is
 * sized once. An arm with FP8 numbers has the reference opened beside it, on a device handle of its own, so
 * that later arms find it there; an arm as stored is its own reference. */
#include "experiments/run_score.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/config_whole.h"
#include "experiments/conversation.h"
#include "experiments/reference.h"
#include "experiments/score.h"
#include <stdlib.h>
#include <string.h>

struct scoring {
    const struct score_cell *cell; /* borrowed */
    struct reference *answers;
    struct score *score;
    struct trace_score *rows; /* owned [workload.max_tokens] */
    struct conversation talk;
    int cap; /* tokens of the longest text */
};

/* An answer and where it belongs; the prompt is in scoring.talk. */
struct given {
    int turn, repeat;
    const int *tokens; /* [n] */
    int n, scored;     /* scored: its first tokens, as many as workload.max_tokens allows */
};

static int measure(struct scoring *s, const struct given *g)
{
    const struct score_cell *c = s->cell;
    const struct prompt *p = s->talk.prompt;
    int context = run_model_context(&c->run->with, c->cfg);
    if (s->talk.n_ids > context - g->scored)
        FAIL(ERR_CONFIG,
             "prompt '%s' of '%s', turn %d: %d tokens and an answer of %d, and a context of %d tokens; lower "
             "workload.max_tokens, raise model.max_context if it is set, or remove the prompt",
             p->id, p->dataset, g->turn, s->talk.n_ids, g->scored, context);
    s->cap = s->talk.n_ids + g->scored > s->cap ? s->talk.n_ids + g->scored : s->cap;
    return 0;
}

static int begin_record(struct scoring *s, const struct given *g, struct record_request **out)
{
    const struct score_cell *c = s->cell;
    const struct prompt *p = s->talk.prompt;
    struct trace_prompt row = {p->dataset, p->id, p->category, p->index, g->turn, p->turns[g->turn]};
    struct trace_request head = {.arm = c->arm,
                                 .repeat = g->repeat,
                                 .request = workload_request_id(p->index, g->turn, g->repeat),
                                 .seed = c->cfg->sampling.seed,
                                 .concurrency = 1,
                                 .started = clock_ns() - c->run->started};
    TRY(record_prompt(c->run->record, &row, &head.prompt));
    return record_begin(c->run->record, &head, s->talk.ids, s->talk.n_ids, out);
}

static int judge(struct scoring *s, const struct given *g)
{
    const struct score_cell *c = s->cell;
    const struct prompt *p = s->talk.prompt;
    struct record_request *record = NULL;
    int64_t start = clock_ns(), prefill = 0;
    if (record_find(c->run->record, c->arm, workload_request_id(p->index, g->turn, g->repeat)) >= 0)
        return 0;
    TRY(begin_record(s, g, &record));
    int rc = score_answer(s->score, s->talk.ids, s->talk.n_ids, g->tokens, g->scored, s->rows, &prefill);
    if (rc) {
        record_drop(c->run->record, record);
        err_context("scoring prompt '%s' of '%s', turn %d", p->id, p->dataset, g->turn);
        return rc;
    }
    TRY(record_finish_scored(c->run->record, record, s->rows, g->scored, prefill, clock_ns() - start));
    progress_scored(&c->run->progress, g->scored);
    progress_show(&c->run->progress);
    return 0;
}

static int find_answer(const struct scoring *s, struct given *g)
{
    const struct prompt *p = s->talk.prompt;
    int most = s->cell->cfg->workload.max_tokens;
    g->n = reference_find(s->answers, workload_request_id(p->index, g->turn, g->repeat), &g->tokens);
    if (g->n == 0)
        FAIL(
            ERR_CONFIG,
            "workload.answers: %s has no answer to prompt '%s' of '%s', turn %d, repeat %d; make it with the "
            "same workload.dataset, limit and repeats, or ask for fewer here",
            s->cell->cfg->workload.answers, p->id, p->dataset, g->turn, g->repeat);
    g->scored = g->n < most ? g->n : most;
    return 0;
}

/* The turns of one conversation: later prompts hold the given answers, whole. */
static int walk_turns(struct scoring *s, int repeat, int (*visit)(struct scoring *s, const struct given *g))
{
    const struct run_model *with = &s->cell->run->with;
    for (int turn = 0; turn < s->talk.prompt->n_turns && *s->cell->run->stop == 0; turn++) {
        struct given g = {.turn = turn, .repeat = repeat};
        TRY(find_answer(s, &g));
        TRY(conversation_encode(&s->talk, &with->chat, with->tokenizer, turn));
        TRY(visit(s, &g));
        TRY(conversation_answer(&s->talk, with->tokenizer, turn, g.tokens, g.n));
    }
    return 0;
}

static int walk(struct scoring *s, int (*visit)(struct scoring *s, const struct given *g))
{
    const struct score_cell *c = s->cell;
    for (int repeat = 0; repeat < c->cfg->workload.repeats; repeat++)
        for (int i = 0; i < c->work->n && *c->run->stop == 0; i++) {
            conversation_begin(&s->talk, &c->work->prompts[i], c->cfg);
            TRY(walk_turns(s, repeat, visit));
        }
    return 0;
}

/* The same configuration with the numbers as stored; NULL: this one has them. */
static int open_reference(const struct score_cell *c, struct model **out)
{
    static const char *const stored[] = {"model.weights=bf16", "model.activations=bf16",
                                         "model.calibration=", "model.kv=bf16"};
    struct config cfg = {0};
    *out = NULL;
    if (config_numbers_as_stored(c->cfg))
        return 0;
    char *yaml = config_dump(c->cfg);
    if (!yaml)
        FAIL(ERR_MEMORY, "score: out of memory for the reference");
    int rc = config_parse(&cfg, yaml, strlen(yaml), "the cell's configuration", stored, 4);
    if (!rc)
        rc = run_model_open(&c->run->reference, &cfg);
    if (rc)
        err_context("opening the reference that FP8 is compared with");
    else
        *out = &c->run->reference.model;
    config_deinit(&cfg);
    free(yaml);
    return rc;
}

static int open_scoring(struct scoring *s)
{
    const struct score_cell *c = s->cell;
    struct model *m = &c->run->with.model, *reference;
    TRY(reference_open(&s->answers, "workload.answers", c->cfg->workload.answers, c->cfg->sampling.rule,
                       m->fingerprint));
    s->rows = calloc((size_t)c->cfg->workload.max_tokens, sizeof *s->rows);
    if (!s->rows)
        FAIL(ERR_MEMORY, "score: out of memory for answers of %d tokens", c->cfg->workload.max_tokens);
    TRY(walk(s, measure));
    TRY(open_reference(c, &reference));
    TRY(score_open(&s->score, m, reference, s->cap));
    log_info("run: %s: texts of up to %d tokens, %.1f MiB", c->label, s->cap,
             (double)score_bytes(s->score) / (1 << 20));
    return 0;
}

int run_score(const struct score_cell *cell)
{
    struct scoring s = {.cell = cell};
    struct progress *p = &cell->run->progress;
    int64_t start = clock_ns();
    int rc = open_scoring(&s);
    if (!rc) {
        progress_begin(p, cell->label, cell->done, cell->total);
        rc = walk(&s, judge);
        progress_end(p);
    }
    if (!rc)
        log_info("run: %s: %lld answers scored, %lld tokens, %.2f s", cell->label,
                 (long long)(p->done - cell->done), (long long)p->tokens,
                 (double)(clock_ns() - start) * 1e-9);
    score_close(s.score);
    reference_close(s.answers);
    conversation_deinit(&s.talk);
    free(s.rows);
    return rc;
}
